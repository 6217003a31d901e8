//! The plugin of kubectl, against a real API server.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use block_volume_kubernetes::{node::Failure, resource::BlockVolumeAttachment};
use serde_json::Value;

use crate::{
    api_server::User,
    cluster::{Cluster, NAMESPACE},
    fake_host::FakeHost,
};

/// What a command has printed, and how it ended.
struct Ran {
    out: String,
    err: String,
    status: i32,
}

impl Ran {
    /// The output of one that succeeded.
    fn ok(self) -> String {
        assert_eq!(self.status, 0, "{}{}", self.out, self.err);
        self.out
    }

    /// The errors of one that ended with `status`.
    fn failed(self, status: i32) -> String {
        assert_eq!(self.status, status, "{}{}", self.out, self.err);
        self.err
    }
}

/// Runs `kubectl block_volume` with these words.
async fn run(kubeconfig: &Path, words: &str) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-block_volume"));
    command.env("KUBECONFIG", kubeconfig).args(words.split_whitespace());
    command.args(["--namespace", NAMESPACE]);
    let ran = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { out: text(ran.stdout), err: text(ran.stderr), status: ran.status.code().unwrap() }
}

/// A cluster with the pod `db-0` and a claim, and who the administrator is there.
async fn cluster() -> (Cluster, PathBuf) {
    let cluster = Cluster::with_pod().await;
    cluster.claim("data", "1Gi").await;
    let admin = cluster.server.kubeconfig(User::Admin);
    (cluster, admin)
}

const ATTACH: &str = "attach db-0 --claim data --device-path /dev/xvda";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_attached_listed_described_and_detached() {
    let (cluster, admin) = cluster().await;
    let host = FakeHost::default();
    let _controller = cluster.controller();
    let _agent = cluster.node_agent("node-1", host.clone());

    let submitted = run(&admin, ATTACH).await.ok();
    assert_eq!(
        submitted,
        "Successfully submitted attach request of claim data to pod db-0 at /dev/xvda (attachment \
         db-0-xvda)\n"
    );
    let made = cluster.attachment("db-0-xvda").await.unwrap();
    assert_eq!(made.spec.container_name, "app", "the only container of the pod");
    cluster.run_attachment_pod(&made).await;
    let attached = run(&admin, &format!("{ATTACH} --wait")).await.ok();
    assert!(attached.starts_with("Successfully attached claim data"), "{attached}");
    let other = run(&admin, &format!("{ATTACH} --read-only")).await.failed(4);
    assert!(other.contains("asks for something else") && other.contains("--name"), "{other}");

    let list = run(&admin, "list").await.ok();
    let row: Vec<_> = list.lines().nth(1).unwrap().split_whitespace().collect();
    let expected =
        ["db-0-xvda", "db-0", "app", "pvc/data", "/dev/xvda", "1", "GiB", "True", "Attached"];
    assert_eq!(row, expected);
    let json: Value = serde_json::from_str(&run(&admin, "list db-0 -o json").await.ok()).unwrap();
    assert_eq!(json["items"][0]["metadata"]["name"], "db-0-xvda");
    assert_eq!(run(&admin, "list other").await.ok(), "");
    let described = run(&admin, "describe db-0-xvda").await.ok();
    let conditions = ["Accepted     True", "SourceReady  True", "Attached     True"];
    let places: Vec<_> = conditions.map(|one| described.find(one)).into_iter().collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{described}");

    let held = "sleep (7) holds it; end its use".to_owned();
    host.fails(Some(Failure { reason: "Busy".to_owned(), message: held, passes: true }));
    let busy = run(&admin, "detach db-0-xvda --wait --timeout 5s").await.failed(7);
    assert!(busy.contains("waiting: Busy: sleep (7) holds it"), "{busy}");
    let forced = run(&admin, "detach db-0-xvda --force hangs --wait").await.ok();
    assert_eq!(forced, "Successfully detached /dev/xvda from pod db-0 (attachment db-0-xvda)\n");
    assert!(cluster.attachment("db-0-xvda").await.is_none());
    run(&admin, "describe db-0-xvda").await.failed(3);
    run(&admin, "detach db-0-xvda").await.failed(3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_changes_nothing() {
    let (cluster, admin) = cluster().await;
    let yaml = run(&admin, &format!("{ATTACH} --dry-run=client -o yaml")).await.ok();
    assert!(yaml.contains("claimName: data"), "{yaml}");
    let server = run(&admin, &format!("{ATTACH} --dry-run=server")).await.ok();
    assert!(server.ends_with("(server dry run)\n"), "{server}");
    assert!(cluster.attachment("db-0-xvda").await.is_none());
    // What the API server refuses, it refuses here, too.
    let refused = "attach db-0 --claim data --mount-path data --dry-run=server";
    let refused = run(&admin, refused).await.failed(2);
    assert!(refused.contains("spec.mount.path"), "{refused}");
    // An object that is printed can be applied.
    let path = admin.with_extension("yaml");
    std::fs::write(&path, yaml).unwrap();
    cluster.server.kubectl(&["apply", "--filename", path.to_str().unwrap()]);
    let made: BlockVolumeAttachment = cluster.attachment("db-0-xvda").await.unwrap();
    run(&admin, "detach db-0-xvda --dry-run=server").await.ok();
    let still = cluster.attachment("db-0-xvda").await.unwrap();
    assert_eq!(still.metadata.deletion_timestamp, made.metadata.deletion_timestamp);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_has_an_exit_status_and_a_remedy() {
    let (cluster, admin) = cluster().await;
    let silent = format!("{ATTACH} --wait --timeout 2s");
    let silent = run(&admin, &silent).await.failed(7);
    assert!(silent.contains("get deployment block-volume-controller"), "{silent}");
    let _controller = cluster.controller();
    let no_pod = "attach db-9 --container app --claim data --device-path /dev/xvda --wait";
    let no_pod = run(&admin, no_pod).await.failed(3);
    assert!(no_pod.contains("PodNotFound") && no_pod.contains("kubectl get pod"), "{no_pod}");
    run(&admin, "attach db-9 --claim data --device-path /dev/xvda").await.failed(3);
    let user = cluster.server.kubeconfig(User::Plain);
    let denied = run(&user, "list").await.failed(11);
    assert!(denied.contains("forbidden") && denied.contains("remedy: "), "{denied}");
    run(&admin.with_file_name("none"), "list").await.failed(2);
    let context = run(&admin, "list --context other").await.failed(2);
    assert!(context.contains("other"), "{context}");
}
