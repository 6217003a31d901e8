//! Tests of the glue against the stub, with real processes as containers and over a real ttrpc
//! connection.

use std::collections::HashMap;
use std::convert::TryFrom as _;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use agent_plugin::api::block_volume::{self as wire, Reason};
use agent_plugin::api::block_volume_ttrpc::BlockVolumeClient;
use agent_plugin::namespace::Target;
use agent_plugin::{Agent, ContainerError, DeviceRule};
use oci_spec::runtime::Spec;
use rstest::rstest;
use runtime_spec::ContainerState;
use rustjail::container::{Config, FsManager, LinuxContainer};
use serde_json::{json, Value};
use tempfile::TempDir;
use tokio::sync::Mutex;
use ttrpc::r#async::Client;

use crate::audit_log_tests::Lines;
use crate::block_volume::BlockVolume;
use crate::policy::AGENT_POLICY;
use crate::sandbox::Sandbox;

/// A waiting process that plays a container's first process, and the agent's handle of it.
pub(crate) struct Process {
    child: Child,
    /// Kept open, as kata-agent does.
    namespace: File,
}

impl Process {
    pub(crate) fn start() -> Self {
        let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let namespace = File::open(format!("/proc/{}/ns/mnt", child.id())).unwrap();
        Self { child, namespace }
    }

    fn end(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn spec(&self) -> Value {
        let pinned = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.namespace.as_raw_fd()
        );
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

    pub(crate) fn container(&self, status: ContainerState, spec: Option<Value>) -> LinuxContainer {
        LinuxContainer {
            config: Config {
                spec: spec.map(|spec| serde_json::from_value::<Spec>(spec).unwrap()),
            },
            cgroup_manager: Arc::new(FsManager::new("/pod/c1")),
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

pub(crate) fn agent(container: LinuxContainer) -> BlockVolume {
    let containers = std::iter::once(("c1".to_owned(), container)).collect::<HashMap<_, _>>();
    BlockVolume {
        sandbox: Arc::new(Mutex::new(Sandbox { containers })),
    }
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
    assert_eq!(
        agent.container("c2").await.unwrap_err(),
        ContainerError::Unknown
    );
    assert!(agent.sandbox.try_lock().is_ok());
}

#[tokio::test]
async fn a_container_whose_process_ended_is_stopped_though_the_agent_has_not_noticed() {
    let mut process = Process::start();
    let agent = agent(process.container(ContainerState::Running, Some(process.spec())));
    process.end();
    assert_eq!(
        agent.container("c1").await.unwrap_err(),
        ContainerError::Stopped
    );
}

#[tokio::test]
async fn another_process_with_the_same_pid_is_not_taken_for_the_container() {
    let (container, other) = (Process::start(), File::open("/proc/self/ns/net").unwrap());
    let mut spec = container.spec();
    spec["linux"]["namespaces"][1]["path"] = json!(format!("/proc/self/fd/{}", other.as_raw_fd()));
    let agent = agent(container.container(ContainerState::Running, Some(spec)));
    let target = Target {
        id: "c1".into(),
        container: agent.container("c1").await.unwrap().into(),
    };
    let error = target.check_inside().unwrap_err().message();
    assert!(
        error.contains("is not in the container's mount namespace"),
        "{}",
        error
    );
}

#[tokio::test]
async fn what_remains_of_a_stopped_container_is_its_pinned_namespace_and_its_cgroup() {
    let mut process = Process::start();
    let agent = agent(process.container(ContainerState::Running, Some(process.spec())));
    process.end();
    assert_eq!(
        agent.container("c1").await.unwrap_err(),
        ContainerError::Stopped
    );
    let remains = agent.remains("c1").await.unwrap();
    let inode = |file: File| file.metadata().unwrap().ino();
    assert_eq!(
        inode(remains.mount_namespace.into()),
        inode(process.namespace.try_clone().unwrap())
    );
    assert_eq!(
        (remains.cgroup, remains.device_rules.len()),
        (PathBuf::from("/pod/c1"), 3)
    );
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
async fn the_policy_of_the_guide_is_asked_without_the_sandbox_lock() {
    let agent = agent(Process::start().container(ContainerState::Running, None));
    // Another task may hold it.
    let _other_task = agent.sandbox.lock().await;
    let request = json!({ "container_id": "", "paths": [] });
    agent
        .authorize("ProbeBlockVolumeRequest", &request)
        .await
        .unwrap();
    let denied = agent
        .authorize("FormatBlockVolumeRequest", &request)
        .await
        .unwrap_err();
    assert!(
        denied
            .0
            .starts_with("FormatBlockVolumeRequest: internal error"),
        "{}",
        denied
    );
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

#[tokio::test]
async fn the_agents_server_serves_both_services_and_logs_each_operation() {
    let log = Lines::default();
    slog_scope::set_global_logger(log.logger()).cancel_reset();
    let process = Process::start();
    let directory = TempDir::new().unwrap();
    let address = format!("unix://{}/agent.sock", directory.path().display());
    let sandbox = agent(process.container(ContainerState::Paused, Some(process.spec()))).sandbox;
    let mut server = crate::rpc::start(sandbox, &address).await.unwrap();
    server.start().await.unwrap();

    let client = Client::connect(&address).await.unwrap();
    let context = || ttrpc::context::with_duration(Duration::from_secs(20));
    let kata = agent_api::agent_ttrpc::AgentServiceClient::new(client.clone());
    let details = kata
        .get_guest_details(context(), &Default::default())
        .await
        .unwrap();
    assert_eq!(
        details.agent_details.extra_features,
        ["agent-policy", "block-volume"]
    );

    let plugin = BlockVolumeClient::new(client);
    let probe = |id: &str| wire::ProbeRequest {
        container_id: id.into(),
        ..Default::default()
    };
    let reply = plugin.probe(context(), &probe("")).await.unwrap();
    assert!(
        reply.failure.is_none() && reply.api_level == 1,
        "{:?}",
        reply
    );
    for (id, expected) in [
        ("c1", Reason::REASON_CONTAINER_NOT_RUNNING),
        ("c2", Reason::REASON_CONTAINER_NOT_FOUND),
    ] {
        let reply = plugin.probe(context(), &probe(id)).await.unwrap();
        assert_eq!(reply.failure.reason, expected.into(), "{:?}", reply);
    }
    let attachment = wire::Attachment {
        container_id: "c1".into(),
        address: Some(wire::ScsiAddress {
            target: 255,
            lun: 1,
            ..Default::default()
        })
        .into(),
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
    assert_eq!(
        reply.failure.reason,
        Reason::REASON_DENIED.into(),
        "{:?}",
        reply
    );
    let denied =
        "the agent's policy refuses this request: AttachBlockVolumeRequest is blocked by policy";
    assert_eq!(reply.failure.message, denied);

    // The line of an answered Probe is written after its reply. The line of a request that was
    // refused earlier is written before its reply.
    let lines = log.lines();
    assert!(
        lines
            .iter()
            .all(|line| line.starts_with("INFO block-volume ")),
        "{:?}",
        lines
    );
    assert!(
        lines
            .iter()
            .any(|line| line.contains("REASON_CONTAINER_NOT_RUNNING")),
        "{:?}",
        lines
    );
    assert!(
        lines
            .iter()
            .any(|line| line.contains("operation=\"attach\"") && line.contains("REASON_DENIED")),
        "{:?}",
        lines
    );
}

#[tokio::test]
async fn a_server_that_is_bound_without_a_pause_in_accept_serves_other_addresses_too() {
    let directory = TempDir::new().unwrap();
    let address = format!("unix://{}/agent.sock", directory.path().display());
    let mut server = crate::no_pause::bind(&address).unwrap();
    server.start().await.unwrap();
    Client::connect(&address).await.unwrap();
}
