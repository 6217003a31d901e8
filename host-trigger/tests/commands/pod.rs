//! A pod and a container by their names, looked up at a container engine that answers as a test
//! wants, for a sandbox with a real QEMU.

use std::sync::Arc;

use crate::common::{
    Host, RunOutput,
    fake_cri::{FakeCri, OnCall, exited, running, sandbox},
    volume::Image,
};
use block_volume_api::block_volume::Reason;
use host_trigger::output::envelope::Outcome;
use rstest::rstest;

const MIB: u64 = 1 << 20;
const APP: &[&str] = &["--pod", "shop/db-0", "--container", "app"];

/// A host with a container engine.
struct Node {
    host: Host,
    engine: Arc<FakeCri>,
}

impl Node {
    async fn boot() -> Self {
        let host = Host::boot().await;
        let engine = FakeCri::serve(&host.path("cri.sock"));
        Self { host, engine }
    }

    fn with_cri<'a>(&'a self, options: &[&'a str]) -> Vec<&'a str> {
        [&["--cri", self.engine.socket.to_str().unwrap()], options].concat()
    }

    async fn plug(&self, image: &Image, path: &str, options: &[&str]) -> RunOutput {
        self.host.plug(image.path(), path, &self.with_cri(options)).await
    }

    async fn verb(&self, verb: &str, options: &[&str]) -> RunOutput {
        self.host.verb(verb, &self.with_cri(options)).await
    }

    /// Plugs a volume into the container `app`, which fails as `reason`; nothing is changed.
    async fn assert_refused(&mut self, options: &[&str], reason: &str, exit_code: u8) -> String {
        let before = self.host.snapshot().await;
        let refused = self.plug(&Image::of(MIB), "/dev/xvda", options).await;
        refused.assert_fails(reason, exit_code);
        assert_eq!(self.host.snapshot().await, before);
        assert_eq!(self.host.agent.attached_paths(), [""; 0]);
        refused.failure().message
    }
}

#[tokio::test]
async fn a_volume_is_plugged_shown_and_unplugged_by_the_names_of_its_pod() {
    let mut node = Node::boot().await;
    *node.engine.containers.lock().unwrap() =
        [vec![running("c1", "app", 0), running("c2", "log", 0)]].into();
    let clean = node.host.snapshot().await;
    let log = ["--pod", "shop/db-0", "--container", "log"];
    let image = Image::of(MIB);
    let plugged = node.plug(&image, "/dev/xvda", &log).await.report();
    let volume = &plugged.body.volumes[0];
    assert_eq!((volume.sandbox.as_str(), volume.container.as_str()), ("s1", "c2"));
    let again = node.plug(&image, "/dev/xvda", &log).await.report();
    assert_eq!(again.result, Outcome::Unchanged);

    let pod = ["--pod", "shop/db-0"];
    for options in [&log[..], &pod[..]] {
        let listed = node.verb("list", options).await.listing();
        assert_eq!(listed.body.volumes[0].volume.id, volume.id);
    }
    assert_eq!(node.verb("list", APP).await.listing().body.volumes, []);
    let at = |more: &[&'static str]| [&log[..], &["--device-path", "/dev/xvda"], more].concat();
    node.verb("inspect", &at(&[])).await.listing();
    node.verb("throttle", &at(&["--iops", "100"])).await.report();
    node.verb("resize", &at(&[])).await.report();
    let repaired = node.verb("repair", &pod).await.repaired();
    assert_eq!(repaired.result, Outcome::Unchanged);
    let counted = node.verb("stats", &at(&[])).await;
    assert_eq!(counted.exit_code, Some(0), "{counted:?}");
    let unplugged = node.verb("hot-unplug", &at(&[])).await.report();
    assert_eq!((unplugged.result, &unplugged.body.volumes[0].id), (Outcome::Detached, &volume.id));
    assert_eq!(node.host.snapshot().await, clean);
}

#[tokio::test]
async fn the_only_container_that_runs_needs_no_name() {
    let node = Node::boot().await;
    *node.engine.containers.lock().unwrap() =
        [vec![exited("c9", "init", 0), running("c2", "app", 0)]].into();
    let pod = ["--pod", "shop/db-0"];
    let plugged = node.plug(&Image::of(MIB), "/dev/xvda", &pod).await.report();
    assert_eq!(plugged.body.volumes[0].container, "c2");
}

#[tokio::test]
async fn a_pod_without_a_namespace_is_in_the_default_one() {
    let node = Node::boot().await;
    *node.engine.sandboxes.lock().unwrap() =
        vec![sandbox("s9", "shop", "db-0", true), sandbox("s1", "default", "db-0", true)];
    let plugged = node.plug(&Image::of(MIB), "/dev/xvda", &["--pod", "db-0"]).await.report();
    assert_eq!(plugged.body.volumes[0].sandbox, "s1");
}

#[tokio::test]
async fn the_environment_names_the_engine_and_an_option_overrides_it() {
    let node = Node::boot().await;
    let plug = async |endpoint: &str, options: &[&str]| {
        let image = Image::of(MIB);
        let mut command = node.host.command(&[(image.path(), "/dev/xvda")], options);
        let ran = crate::common::run(command.env("CONTAINER_RUNTIME_ENDPOINT", endpoint)).await;
        node.verb("hot-unplug", &[APP, &["--device-path", "/dev/xvda"]].concat()).await;
        ran
    };
    let endpoint = format!("unix://{}", node.engine.socket.display());
    plug(&endpoint, APP).await.report();
    plug("unix:///nonexistent/cri.sock", &node.with_cri(APP)).await.report();
    plug("unix:///nonexistent/cri.sock", APP).await.assert_fails("cri_unreachable", 14);
    plug("tcp://127.0.0.1:1", APP).await.assert_fails("invalid_cri", 2);
}

#[tokio::test]
async fn with_ids_no_container_engine_is_needed() {
    let node = Node::boot().await;
    let image = Image::of(MIB);
    let ids = ["--sandbox", "s1", "--container", "c1", "--cri", "nonsense"];
    let mut command = node.host.command(&[(image.path(), "/dev/xvda")], &ids);
    let plugged = crate::common::run(command.env("CONTAINER_RUNTIME_ENDPOINT", "nonsense")).await;
    plugged.report();
    assert_eq!(*node.engine.calls.lock().unwrap(), [""; 0]);
}

#[tokio::test]
async fn a_restarted_container_is_the_one_that_runs_now() {
    let node = Node::boot().await;
    let image = Image::of(MIB);
    node.plug(&image, "/dev/xvda", APP).await.report();
    *node.engine.containers.lock().unwrap() =
        [vec![exited("c1", "app", 0), running("c2", "app", 1)]].into();
    let other = Image::of(MIB);
    let plugged = node.plug(&other, "/dev/xvdb", APP).await.report();
    assert_eq!(plugged.body.volumes[0].container, "c2");
    // What the container had before it was restarted is found by its name as well.
    let listed = node.verb("list", APP).await.listing();
    let holders: Vec<_> =
        listed.body.volumes.iter().map(|listed| listed.volume.container.as_str()).collect();
    assert_eq!(holders, ["c1", "c2"]);
    let unplug = [APP, &["--device-path", "/dev/xvda"]].concat();
    let unplugged = node.verb("hot-unplug", &unplug).await.report();
    assert_eq!(unplugged.body.volumes[0].container, "c1");
}

#[tokio::test]
async fn the_volume_of_the_container_that_runs_now_is_meant_first() {
    let node = Node::boot().await;
    node.plug(&Image::of(MIB), "/dev/xvda", APP).await.report();
    *node.engine.containers.lock().unwrap() =
        [vec![exited("c1", "app", 0), running("c2", "app", 1)]].into();
    node.plug(&Image::of(MIB), "/dev/xvda", APP).await.report();
    let unplug = [APP, &["--device-path", "/dev/xvda"]].concat();
    for container in ["c2", "c1"] {
        let unplugged = node.verb("hot-unplug", &unplug).await.report();
        assert_eq!(unplugged.body.volumes[0].container, container);
    }
}

#[tokio::test]
async fn a_container_that_restarts_meanwhile_has_its_own_error() {
    let mut node = Node::boot().await;
    *node.host.agent.probe_failure.lock().unwrap() = Some(Reason::REASON_CONTAINER_NOT_RUNNING);
    let before = vec![running("c1", "app", 0)];
    let after = vec![exited("c1", "app", 0), running("c2", "app", 1)];
    *node.engine.containers.lock().unwrap() = [before.clone(), after].into();
    let message = node.assert_refused(APP, "container_restarted", 3).await;
    assert!(message.contains("\"app\" of pod shop/db-0"), "{message}");
    // One that ended, and one that the engine still believes to run.
    *node.engine.containers.lock().unwrap() = [before.clone(), vec![exited("c1", "app", 0)]].into();
    node.assert_refused(APP, "pod_container_not_running", 3).await;
    *node.engine.containers.lock().unwrap() = [before].into();
    node.assert_refused(APP, "container_not_running", 3).await;
}

#[rstest]
#[case::other_name(&["--pod", "shop/web"], "pod_not_found", 3)]
#[case::other_namespace(&["--pod", "test/db-0"], "pod_not_found", 3)]
#[case::other_container(&["--pod", "shop/db-0", "--container", "web"], "pod_container_not_found", 3)]
#[case::ended(&["--pod", "shop/db-0", "--container", "init"], "pod_container_not_running", 3)]
#[case::not_named(&["--pod", "shop/db-0"], "container_not_named", 2)]
#[case::twice(&["--pod", "shop/db-0", "--container", "two"], "ambiguous_container", 2)]
#[case::not_kata(&["--pod", "shop/runc"], "not_kata", 10)]
#[case::not_ready(&["--pod", "shop/old"], "pod_not_ready", 3)]
#[case::two_sandboxes(&["--pod", "shop/twice"], "ambiguous_pod", 2)]
#[case::invalid(&["--pod", "a/b/c"], "usage", 2)]
#[case::sandbox_as_well(&["--pod", "shop/db-0", "--sandbox", "s1"], "usage", 2)]
#[tokio::test]
async fn what_is_not_the_only_one_that_runs_is_refused(
    #[case] options: &[&str],
    #[case] reason: &str,
    #[case] exit_code: u8,
) {
    let mut node = Node::boot().await;
    node.engine.sandboxes.lock().unwrap().extend([
        sandbox("s9", "shop", "runc", true),
        sandbox("s3", "shop", "old", false),
        sandbox("s4", "shop", "twice", true),
        sandbox("s5", "shop", "twice", true),
    ]);
    *node.engine.containers.lock().unwrap() = [vec![
        running("c1", "app", 0),
        running("c2", "two", 0),
        running("c3", "two", 1),
        exited("c4", "init", 0),
    ]]
    .into();
    let message = node.assert_refused(options, reason, exit_code).await;
    if reason == "not_kata" {
        assert!(message.contains("\"runc\"") || message.contains("is runc"), "{message}");
    }
}

#[rstest]
#[case(OnCall::Refuses(12), "cri_disabled", 10)]
#[case(OnCall::Refuses(14), "cri_refused", 14)]
#[case(OnCall::Http(404), "not_cri", 10)]
#[case(OnCall::Page, "not_cri", 10)]
#[case(OnCall::SpeaksHttp1, "not_cri", 10)]
#[case(OnCall::Closes, "cri_unreachable", 14)]
#[case(OnCall::Garbage, "cri_reply", 1)]
#[case(OnCall::Short, "cri_reply", 1)]
#[case(OnCall::Endless, "cri_reply", 1)]
#[case(OnCall::Unfinished, "cri_reply", 1)]
#[case(OnCall::Hangs, "timed_out", 7)]
#[tokio::test]
async fn an_engine_that_does_not_tell_has_its_own_error(
    #[case] on_call: OnCall,
    #[case] reason: &str,
    #[case] exit_code: u8,
) {
    let mut node = Node::boot().await;
    *node.engine.on_call.lock().unwrap() = on_call;
    let hasty = [APP, &["--timeout", "1s"]].concat();
    let options = if on_call == OnCall::Hangs { &hasty } else { APP };
    let message = node.assert_refused(options, reason, exit_code).await;
    assert!(message.contains("cri.sock"), "{message}");
}

#[rstest]
#[case::missing("missing.sock", "cri_unreachable", 14)]
#[case::no_listener("dead.sock", "cri_unreachable", 14)]
#[case::file("file", "cri_unreachable", 14)]
#[case::of_another_user("others/cri.sock", "untrusted_path", 11)]
#[tokio::test]
async fn a_socket_that_cannot_be_used_has_its_own_error(
    #[case] name: &str,
    #[case] reason: &str,
    #[case] exit_code: u8,
) {
    let node = Node::boot().await;
    drop(std::os::unix::net::UnixListener::bind(node.host.path("dead.sock")).unwrap());
    std::fs::write(node.host.path("file"), "").unwrap();
    std::fs::create_dir(node.host.path("others")).unwrap();
    FakeCri::serve(&node.host.path("others/cri.sock"));
    std::os::unix::fs::chown(node.host.path("others"), Some(65534), None).unwrap();
    let socket = node.host.path(name);
    let options = [APP, &["--cri", socket.to_str().unwrap()]].concat();
    let image = Image::of(MIB);
    let refused = node.host.plug(image.path(), "/dev/xvda", &options).await;
    refused.assert_fails(reason, exit_code);
    let message = refused.failure().message;
    assert!(message.contains(name.split('/').next().unwrap()), "{message}");
}

#[tokio::test]
async fn a_pod_is_checked_and_one_that_is_not_there_is_a_finding() {
    let node = Node::boot().await;
    let check = async |options: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_ecr-runtime"));
        command.args(["check", "--output", "json", "--run-dir"]).arg(node.host.path(""));
        let checked = crate::common::run(command.args(node.with_cri(options))).await;
        let document: serde_json::Value = serde_json::from_str(&checked.stdout).unwrap();
        let findings = document["checks"].as_array().unwrap().clone();
        let named = move |name: &str| {
            let found = findings.iter().find(|finding| finding["name"] == name);
            found.map(|finding| (finding["message"].clone(), finding["exit_code"].clone()))
        };
        (document["sandbox"].clone(), named)
    };
    let (sandbox, named) = check(APP).await;
    assert_eq!(sandbox, "s1");
    assert_eq!(named("pod"), Some(("shop/db-0 app".into(), 0.into())));
    assert_eq!(named("qmp").unwrap().1, 0);
    assert!(named("container").is_some());
    let (sandbox, named) = check(&["--pod", "shop/web"]).await;
    assert_eq!(sandbox, serde_json::Value::Null);
    assert_eq!(named("pod").unwrap().1, 3);
    assert_eq!(named("qmp"), None);
}
