//! `kubectl describe` alone tells what is wrong, and what to do about it.

use std::os::unix::net::UnixStream;

use block_volume_kubernetes::resource::{BlockVolumeAttachment, ConditionType, Truth};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt as _;
use serde_json::{Value, json};
use vm_harness::{Environment, Machine, PodOptions, Volume};

use crate::{
    cluster::NAMESPACE,
    kata_node::{KataNode, host_path},
    page,
    tenant::attachment,
    wait::until,
};

use ConditionType::{Accepted, Attached};

/// The port that the VM's agent serves the plugin on. Its own one, which the node agent knows, is
/// without.
const PLUGIN_PORT: &str = "1025";

/// A set-up that cannot work, and what `kubectl describe` says. The page has the reasons, too.
struct Broken {
    set_up: &'static str,
    condition: ConditionType,
    reason: &'static str,
    /// What the message names: the cause, and the remedy.
    names: &'static [&'static str],
}

impl Broken {
    /// Creates the attachment, describes it, and ends what is `in_the_way` of its end.
    async fn check<T>(&self, node: &KataNode, attachment: Value, in_the_way: T) {
        let Self { set_up, condition, reason, names } = self;
        let made: BlockVolumeAttachment = node.cluster.create(attachment).await;
        let name = made.name_any();
        let told = node.cluster.until_condition(&name, *condition, Truth::False, reason).await;
        let namespace = format!("--namespace={NAMESPACE}");
        let text = || node.cluster.server.kubectl(&["describe", "bva", &name, &namespace]);
        if *condition == Attached {
            // The node agent tells people by an event, too.
            let is_there = || async {
                text().split_once("\nEvents:").is_some_and(|(_, events)| events.contains(reason))
            };
            until(&format!("an event {reason}"), is_there).await;
        }
        let text = text();
        let message = &told.condition(*condition).unwrap().message;
        println!("{set_up}: {reason}: {message}");
        for part in [reason, &message.as_str()] {
            assert!(text.contains(part), "{set_up}: {part} is missing in\n{text}");
        }
        for name in *names {
            assert!(message.contains(name), "{set_up}: {name:?} is missing in {message}");
        }
        assert!(page::text().contains(&format!("| `{reason}`")), "no row of {reason} in the page");
        drop(in_the_way);
        node.cluster.delete(&name).await;
        node.cluster.until_gone(&name).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_set_up_is_in_the_description_of_the_attachment() {
    let volume = Volume::image(1 << 20);
    let directory = volume.path().parent().unwrap().display().to_string();
    // The plugin is not where the node agent finds the VM's agent.
    let (mut environment, mut machine) = (Environment::from_variables(), Machine::default());
    environment.plugin_port = Some(PLUGIN_PORT.to_owned());
    machine.kernel_parameters = vec![format!("agent.block_volume_port={PLUGIN_PORT}")];
    let rule = format!("{NAMESPACE}={directory}");
    let mut node = KataNode::with("db-0", &environment, &machine, &[&rule]).await;
    node.start_agent();

    let no_qmp = Broken {
        set_up: "another client holds the only QMP socket of the sandbox, as Kata's shim does",
        condition: Attached,
        reason: "QmpHeld",
        names: &["qmp.sock", "`ecr-runtime node enable`"],
    };
    let shim = UnixStream::connect(node.sandbox.qmp_socket()).unwrap();
    no_qmp.check(&node, host_path("one", volume.name()), shim).await;

    let no_plugin = Broken {
        set_up: "the VM's agent was built without the plugin",
        condition: Attached,
        reason: "NoPlugin",
        names: &["has no block volume plugin", "docs/builders-guide.md"],
    };
    no_plugin.check(&node, host_path("two", volume.name()), ()).await;

    let file_system = Broken {
        set_up: "the claim is a file system",
        condition: Accepted,
        reason: "ClaimNotBlock",
        names: &["claim three is a file system", "use a claim with volumeMode: Block"],
    };
    let claim = json!({
        "metadata": { "name": "three" },
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": { "requests": { "storage": "1Gi" } },
        },
    });
    node.cluster.create::<PersistentVolumeClaim>(claim).await;
    file_system.check(&node, attachment("three", "db-0"), ()).await;

    let not_allowed = Broken {
        set_up: "no rule allows the path of the node",
        condition: Attached,
        reason: "HostPathNotAllowed",
        names: &["/dev/vg/scratch", "--allow-host-path"],
    };
    not_allowed.check(&node, host_path("four", "/dev/vg/scratch"), ()).await;

    let not_kata = Broken {
        set_up: "the pod's runtime class is not one of Kata's",
        condition: Attached,
        reason: "NotKata",
        names: &["db/web-0", "set runtimeClassName"],
    };
    let web = node.cluster.run_pod("web-0", "node-1", "c1").await;
    let options = PodOptions { uid: web.uid().unwrap(), ..PodOptions::named(NAMESPACE, "web-0") };
    let pod = node.containerd.run_pod(&options).await.unwrap();
    let app = pod.start_container("app").await.unwrap();
    node.cluster.container_runs("web-0", app.id()).await;
    let mut five = host_path("five", volume.name());
    five["spec"]["podName"] = "web-0".into();
    not_kata.check(&node, five, ()).await;
}
