//! Tests of the glue against the stub, with real processes as containers and over a real ttrpc
//! connection.

use std::collections::HashMap;
use std::convert::TryFrom as _;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex as StdMutex};
use std::time::Duration;

use agent_plugin::api::block_volume::{self as wire, Reason};
use agent_plugin::api::block_volume_ttrpc::BlockVolumeClient;
use agent_plugin::namespace::Target;
use agent_plugin::{Agent, ContainerError, DeviceRule};
use oci_spec::runtime::Spec;
use rstest::rstest;
use runtime_spec::ContainerState;
use rustjail::container::{Config, LinuxContainer, Manager};
use serde_json::{json, Value};
use tempfile::TempDir;
use tokio::sync::Mutex;
use ttrpc::r#async::Client;

use crate::block_volume::BlockVolume;
use crate::policy::AGENT_POLICY;
use crate::sandbox::Sandbox;

/// The cgroup of every container, or an error if there is none.
#[derive(Debug)]
struct Group(Option<&'static str>);

impl Manager for Group {
    fn get_cgroup_path(&self, cg: &str) -> io::Result<String> {
        let path = self.0.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        Ok(if unified {
            format!("/sys/fs/cgroup/{}", path)
        } else {
            format!("/sys/fs/cgroup/{}{}", cg, path)
        })
    }
}

/// A waiting process that plays a container's first process, and the agent's handle of it.
struct Process {
    child: Child,
    /// Kept open, as kata-agent does.
    namespace: File,
}

impl Process {
    fn start() -> Self {
        let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let namespace = File::open(format!("/proc/{}/ns/mnt", child.id())).unwrap();
        Self { child, namespace }
    }

    fn end(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn spec(&self) -> Value {
        let pinned = format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd());
        json!({
            "ociVersion": "1.2.0",
            "linux": {
                "namespaces": [{ "type": "ipc" }, { "type": "mount", "path": pinned }],
                "resources": { "devices": [
                    { "allow": false, "access": "rwm" },
                    { "allow": true, "type": "b", "major": 8, "minor": -1, "access": "rw" },
                    { "allow": true, "type": "p", "major": 1, "minor": 1, "access": "rw" },
                    { "allow": true, "type": "c", "major": 1, "minor": 3 },
                ] },
            },
        })
    }

    fn container(&self, status: ContainerState, spec: Option<Value>) -> LinuxContainer {
        LinuxContainer {
            config: Config { spec: spec.map(|spec| serde_json::from_value::<Spec>(spec).unwrap()) },
            cgroup_manager: Arc::new(Group(Some("/pod/c1"))),
            init_process_pid: libc::pid_t::try_from(self.child.id()).unwrap(),
            status,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only if the test has ended it already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn agent(container: LinuxContainer) -> BlockVolume {
    let containers = std::iter::once(("c1".to_owned(), container)).collect::<HashMap<_, _>>();
    BlockVolume { sandbox: Arc::new(Mutex::new(Sandbox { containers })) }
}

#[tokio::test]
async fn a_running_container_has_handles_its_cgroup_and_its_rules() {
    let process = Process::start();
    let agent = agent(process.container(ContainerState::Running, Some(process.spec())));
    let container = agent.container("c1").await.unwrap();
    assert!(
        agent.sandbox.try_lock().is_ok(),
        "the lock is released before the handles are returned"
    );
    assert_eq!(container.cgroup, PathBuf::from("/pod/c1"));
    assert!(container.user_namespace.is_none());
    let rule = |allow, kind, major, minor, access: &str| DeviceRule {
        allow,
        kind,
        major,
        minor,
        access: access.to_owned(),
    };
    let expected = [
        rule(false, 'a', None, None, "rwm"),
        rule(true, 'b', Some(8), None, "rw"),
        rule(true, 'c', Some(1), Some(3), ""),
    ];
    assert_eq!(container.device_rules, expected);
}

#[rstest]
#[case::no_path_yet(json!({ "ociVersion": "1.2.0", "linux": { "namespaces": [{ "type": "mount" }] } }))]
#[case::no_namespaces(json!({ "ociVersion": "1.2.0", "linux": {} }))]
#[case::nothing(json!({ "ociVersion": "1.2.0" }))]
#[tokio::test]
async fn an_agent_that_pins_no_namespace_uses_the_one_of_the_process(#[case] spec: Value) {
    let process = Process::start();
    let agent = agent(process.container(ContainerState::Running, Some(spec)));
    assert!(agent.container("c1").await.unwrap().device_rules.is_empty());
}

#[rstest]
#[case(ContainerState::Creating, ContainerError::Created)]
#[case(ContainerState::Created, ContainerError::Created)]
#[case(ContainerState::Paused, ContainerError::Paused)]
#[case(ContainerState::Stopped, ContainerError::Stopped)]
#[tokio::test]
async fn a_container_that_does_not_run_is_reported_with_its_state(
    #[case] status: ContainerState,
    #[case] expected: ContainerError,
) {
    let process = Process::start();
    let agent = agent(process.container(status, Some(process.spec())));
    assert_eq!(agent.container("c1").await.unwrap_err(), expected);
    assert_eq!(agent.container("c2").await.unwrap_err(), ContainerError::Unknown);
    assert!(agent.sandbox.try_lock().is_ok());
}

#[tokio::test]
async fn a_container_whose_process_ended_is_stopped_though_the_agent_has_not_noticed() {
    let mut process = Process::start();
    let agent = agent(process.container(ContainerState::Running, Some(process.spec())));
    process.end();
    assert_eq!(agent.container("c1").await.unwrap_err(), ContainerError::Stopped);
}

#[tokio::test]
async fn another_process_with_the_same_pid_is_not_taken_for_the_container() {
    let (container, other) = (Process::start(), File::open("/proc/self/ns/net").unwrap());
    let mut spec = container.spec();
    spec["linux"]["namespaces"][1]["path"] = json!(format!("/proc/self/fd/{}", other.as_raw_fd()));
    let agent = agent(container.container(ContainerState::Running, Some(spec)));
    let target = Target { id: "c1".into(), container: agent.container("c1").await.unwrap().into() };
    let error = target.check_inside().unwrap_err().message();
    assert!(error.contains("is not in the container's mount namespace"), "{}", error);
}

#[tokio::test]
async fn what_remains_of_a_stopped_container_is_its_pinned_namespace_and_its_cgroup() {
    let mut process = Process::start();
    let agent = agent(process.container(ContainerState::Running, Some(process.spec())));
    process.end();
    assert_eq!(agent.container("c1").await.unwrap_err(), ContainerError::Stopped);
    let remains = agent.remains("c1").await.unwrap();
    let inode = |file: File| file.metadata().unwrap().ino();
    assert_eq!(
        inode(remains.mount_namespace.into()),
        inode(process.namespace.try_clone().unwrap())
    );
    assert_eq!((remains.cgroup, remains.device_rules.len()), (PathBuf::from("/pod/c1"), 3));
    assert!(agent.remains("c2").await.is_none());
}

#[tokio::test]
async fn nothing_remains_of_a_stopped_container_whose_namespace_is_not_pinned() {
    let mut process = Process::start();
    let mut spec = process.spec();
    spec["linux"]["namespaces"][1]["path"] = json!(format!("/proc/{}/ns/mnt", process.child.id()));
    let agent = agent(process.container(ContainerState::Running, Some(spec)));
    process.end();
    assert!(agent.remains("c1").await.is_none());
}

#[tokio::test]
async fn a_container_without_a_cgroup_cannot_be_reached() {
    let process = Process::start();
    let mut container = process.container(ContainerState::Running, Some(process.spec()));
    container.cgroup_manager = Arc::new(Group(None));
    let error = agent(container).container("c1").await.unwrap_err().to_string();
    assert!(error.starts_with("the agent cannot reach the container: its cgroup: "), "{}", error);
}

fn attachment(path: &str, mode: u32) -> Value {
    json!({
        "container_id": "c1", "controller": null, "target": 255, "lun": 1, "serial": "0123456789abcdef",
        "size": 1 << 20, "path": path, "access": "read-write", "uid": 0, "gid": 0, "mode": mode,
    })
}

#[rstest]
#[case("AttachBlockVolumeRequest", json!({ "attachments": [attachment("/dev/xvda", 0o600)] }), "")]
#[case("AttachBlockVolumeRequest", json!({ "attachments": [attachment("/dev/xvda", 0o660)] }), "is blocked by policy")]
#[case("AttachBlockVolumeRequest", json!({ "attachments": [attachment("/dev/xvda", 0o600), attachment("/x", 0o600)] }), "is blocked by policy")]
#[case("ProbeBlockVolumeRequest", json!({ "container_id": "", "paths": [] }), "")]
#[case("InspectBlockVolumeRequest", json!({ "attachments": [] }), "")]
#[case("DetachBlockVolumeRequest", json!({ "attachments": [], "force": false }), "")]
#[case("ResizeBlockVolumeRequest", json!({ "attachments": [] }), "")]
#[case("FormatBlockVolumeRequest", json!({}), "FormatBlockVolumeRequest: ")]
#[tokio::test]
async fn the_policy_of_the_guide_allows_and_denies(
    #[case] method: &str,
    #[case] request: Value,
    #[case] denied: &str,
) {
    let agent = agent(Process::start().container(ContainerState::Running, None));
    // The policy is evaluated without the sandbox's lock: another task may hold it.
    let _other_task = agent.sandbox.lock().await;
    match agent.authorize(method, &request).await {
        Ok(()) => assert_eq!(denied, ""),
        Err(error) => assert!(!denied.is_empty() && error.0.contains(denied), "{}", error),
    }
}

#[tokio::test]
async fn a_slow_policy_does_not_hold_the_sandbox_lock() {
    let agent = agent(Process::start().container(ContainerState::Running, None));
    let busy = AGENT_POLICY.lock().await;
    let request = json!({ "container_id": "", "paths": [] });
    let asking = agent.authorize("ProbeBlockVolumeRequest", &request);
    tokio::pin!(asking);
    let waits =
        tokio::select! { biased; _ = &mut asking => false, () = std::future::ready(()) => true };
    assert!(waits && agent.sandbox.try_lock().is_ok());
    drop(busy);
    asking.await.unwrap();
}

/// Records that reached the `log` facade, which kata-agent's logger receives.
static LINES: StdMutex<Vec<String>> = StdMutex::new(Vec::new());

struct Lines;

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.target().starts_with("agent_plugin") {
            LINES.lock().unwrap().push(format!("{} {}", record.level(), record.args()));
        }
    }

    fn flush(&self) {}
}

#[tokio::test]
async fn the_agents_server_serves_both_services_and_logs_each_operation() {
    log::set_logger(&Lines).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    let process = Process::start();
    let directory = TempDir::new().unwrap();
    let address = format!("unix://{}/agent.sock", directory.path().display());
    let sandbox = agent(process.container(ContainerState::Paused, Some(process.spec()))).sandbox;
    let mut server = crate::rpc::start(sandbox, &address).unwrap();
    server.start().await.unwrap();

    let client = Client::connect(&address).await.unwrap();
    let context = || ttrpc::context::with_duration(Duration::from_secs(20));
    let kata = agent_api::agent_ttrpc::AgentServiceClient::new(client.clone());
    let details = kata.get_guest_details(context(), &Default::default()).await.unwrap();
    assert_eq!(details.agent_details.extra_features, ["agent-policy", "block-volume"]);

    let plugin = BlockVolumeClient::new(client);
    let probe = |id: &str| wire::ProbeRequest { container_id: id.into(), ..Default::default() };
    let reply = plugin.probe(context(), &probe("")).await.unwrap();
    assert!(reply.failure.is_none() && reply.api_level == 1, "{:?}", reply);
    for (id, expected) in
        [("c1", Reason::REASON_CONTAINER_NOT_RUNNING), ("c2", Reason::REASON_CONTAINER_NOT_FOUND)]
    {
        let reply = plugin.probe(context(), &probe(id)).await.unwrap();
        assert_eq!(reply.failure.reason, expected.into(), "{:?}", reply);
    }
    let attachment = wire::Attachment {
        container_id: "c1".into(),
        address: Some(wire::ScsiAddress { target: 255, lun: 1, ..Default::default() }).into(),
        serial: "0123456789abcdef".into(),
        size: 1 << 20,
        path: "/elsewhere".into(),
        access: wire::Access::ACCESS_READ_WRITE.into(),
        mode: 0o600,
        ..Default::default()
    };
    let attach = wire::AttachRequest {
        attachments: vec![attachment],
        timeout_ms: 10_000,
        ..Default::default()
    };
    let reply = plugin.attach(context(), &attach).await.unwrap();
    assert_eq!(reply.failure.reason, Reason::REASON_DENIED.into(), "{:?}", reply);
    let denied =
        "the agent's policy refuses this request: AttachBlockVolumeRequest is blocked by policy";
    assert_eq!(reply.failure.message, denied);

    // The line of an answered Probe is written after its reply. The line of a request that was
    // refused earlier is written before its reply.
    let lines = LINES.lock().unwrap();
    assert!(lines.iter().all(|line| line.starts_with("INFO ")), "{:?}", lines);
    assert!(lines.iter().any(|line| line.contains("REASON_CONTAINER_NOT_RUNNING")), "{:?}", lines);
    assert!(
        lines
            .iter()
            .any(|line| line.contains("operation=\"attach\"") && line.contains("REASON_DENIED")),
        "{:?}",
        lines
    );
}
