//! Tests of the glue against a stub of kata-agent 3.x, with a real process as a container.

use std::convert::TryFrom as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_plugin::{Agent, DeviceRule};
use rstest::rstest;
use rustjail::container::{Config, LinuxContainer, Manager};
use serde_json::{json, Value};

use crate::sandbox::Sandbox;
use crate::ContainerState;

/// A manager that has a path in every hierarchy.
#[derive(Debug)]
struct Group;

impl Manager for Group {
    fn get_cgroup_path(&self, cg: &str) -> io::Result<String> {
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let root = if unified {
            String::new()
        } else {
            format!("{}/", cg)
        };
        Ok(format!("/sys/fs/cgroup/{}/pod/c1", root))
    }
}

/// The agent with a container whose first process is this one.
fn agent(spec: Value) -> Arc<crate::block_volume::BlockVolume> {
    let container = LinuxContainer {
        config: Config {
            spec: Some(serde_json::from_value(spec).expect("a specification")),
        },
        cgroup_manager: Box::new(Group),
        init_process_pid: i32::try_from(std::process::id()).expect("a pid"),
        status: ContainerState::Running,
    };
    let mut sandbox = Sandbox::default();
    sandbox.containers.insert("c1".to_owned(), container);
    crate::block_volume::agent(Arc::new(tokio::sync::Mutex::new(sandbox)))
}

#[rstest]
#[case::no_path(json!({ "type": "mount" }))]
#[case::of_the_process(json!({ "type": "mount", "path": "/proc/self/ns/mnt" }))]
#[case::none(json!({ "type": "ipc" }))]
#[tokio::test]
async fn a_running_container_has_handles_its_cgroup_and_its_rules(#[case] namespace: Value) {
    let agent = agent(json!({
        "ociVersion": "1.2.0",
        "linux": {
            "namespaces": [{ "type": "uts" }, namespace],
            "resources": { "devices": [
                { "allow": false, "access": "rwm" },
                { "allow": true, "type": "b", "major": 8, "minor": -1, "access": "rw" },
                { "allow": true, "type": "p", "major": 1, "minor": 1, "access": "rw" },
                { "allow": true, "type": "c", "major": 1, "minor": 3 },
            ] },
        },
    }));
    let container = agent.container("c1").await.unwrap();
    assert_eq!(container.cgroup, PathBuf::from("/pod/c1"));
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
    assert!(agent.remains("c1").await.is_none(), "3.x pins no namespace");
}

#[tokio::test]
async fn a_specification_without_linux_has_no_rules() {
    let container = agent(json!({ "ociVersion": "1.2.0" }))
        .container("c1")
        .await
        .unwrap();
    assert!(container.device_rules.is_empty());
}

#[rstest]
#[case("/dev/xvda", 0o660, true)]
#[case("/dev/xvda", 0o666, false)]
#[case("/srv/x", 0o660, false)]
#[tokio::test]
async fn the_policy_decides(#[case] path: &str, #[case] mode: u32, #[case] allowed: bool) {
    let agent = agent(json!({ "ociVersion": "1.2.0" }));
    let volume = json!({ "path": path, "uid": 0, "gid": 0, "mode": mode });
    let request = json!({ "attachments": [volume] });
    let decided = agent.authorize("AttachBlockVolumeRequest", &request).await;
    assert_eq!(decided.is_ok(), allowed, "{:?}", decided);
    for method in ["ProbeBlockVolumeRequest", "DetachBlockVolumeRequest"] {
        agent.authorize(method, &json!({})).await.unwrap();
    }
    assert!(agent
        .authorize("FormatBlockVolumeRequest", &json!({}))
        .await
        .is_err());
}

#[rstest]
#[case::rules_alone("package agent_policy\ndefault GuestDetailsRequest := true\n")]
#[case::imports(
    "package agent_policy\nimport future.keywords.every\nimport future.keywords.if\n\
     GuestDetailsRequest if { every name in [\"c1\"] { name != \"\" } }\n"
)]
fn the_rules_can_be_appended_to_a_policy_of_kata_3(#[case] before: &str) {
    let rules = include_str!("../../../kata-agent/rules.rego");
    let mut engine = regorus::Engine::new();
    engine
        .add_policy("policy.rego".to_owned(), before.to_owned() + rules)
        .unwrap();
    let allowed = |engine: &mut regorus::Engine, method: &str, input: Value| {
        engine.set_input_json(&input.to_string()).unwrap();
        engine
            .eval_rule(format!("data.agent_policy.{}", method))
            .unwrap()
            == true.into()
    };
    assert!(allowed(&mut engine, "GuestDetailsRequest", json!({})));
    let volume = |path| json!({ "path": path, "uid": 0, "gid": 0, "mode": 0o660 });
    for (path, expected) in [("/dev/xvda", true), ("/srv/x", false)] {
        let input = json!({ "attachments": [volume(path)] });
        assert_eq!(
            allowed(&mut engine, "AttachBlockVolumeRequest", input),
            expected
        );
    }
}
