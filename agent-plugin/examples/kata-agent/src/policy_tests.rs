//! Tests of the documented policy: the rules alone, appended to policies of the shapes that Kata's
//! own have, and the complete example.

use std::fs;
use std::path::Path;

use rstest::rstest;
use serde_json::{json, Value};

use crate::policy::AgentPolicy;

const RULES: &str = include_str!("../rules.rego");
const COMPLETE: &str = include_str!("../policy.rego");

/// The shape of a policy that allows everything: rules alone.
const ALLOW_ALL: &str = "# A comment.\n\npackage agent_policy\n\n\
    default CreateContainerRequest := true\ndefault ExecProcessRequest := true\n";

/// The shape of a generated policy: imports, constants, functions and data.
const GENERATED: &str = r#"package agent_policy

import future.keywords.in
import future.keywords.every
import future.keywords.if

default CreateContainerRequest := false
default AllowRequestsFailingPolicy := false

PREFIX = "/run/"

CreateContainerRequest if {
    every mount in input.mounts { allow_mount(mount) }
    some name in policy_data.names
    name == input.name
}

allow_mount(mount) if { startswith(mount.source, PREFIX) }

policy_data := {"names": ["c1"]}
"#;

/// The shape of a policy that is written for Rego v1.
const V1: &str = "package agent_policy\n\nimport rego.v1\n\n\
    default CreateContainerRequest := false\nCreateContainerRequest if input.name == \"c1\"\n";

const NO_RULES: &str = "package agent_policy\n\ndefault CreateContainerRequest := true\n";

const FAIL_OPEN: &str = "package agent_policy\n\ndefault AllowRequestsFailingPolicy := true\n";

const METHODS: [&str; 5] = [
    "ProbeBlockVolumeRequest",
    "AttachBlockVolumeRequest",
    "DetachBlockVolumeRequest",
    "InspectBlockVolumeRequest",
    "ResizeBlockVolumeRequest",
];

fn policy(text: &str) -> AgentPolicy {
    let mut policy = AgentPolicy::default();
    policy
        .set_policy(text)
        .unwrap_or_else(|error| panic!("{}\n{}", error, text));
    policy
}

/// Returns whether the agent serves the request.
fn allows(policy: &mut AgentPolicy, method: &str, input: &Value) -> bool {
    policy
        .allow_request(method, &input.to_string())
        .unwrap_or(false)
}

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../..")
        .join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {}", path.display(), error))
}

/// The input of `method` in the documentation, which a test compares with what the plugin sends.
fn documented(method: &str) -> Value {
    let page = read("docs/policy.md");
    let (_, rest) = page
        .split_once(&format!("<!-- input of {} -->", method))
        .unwrap();
    let (_, rest) = rest.split_once("```json\n").unwrap();
    serde_json::from_str(rest.split_once("```").unwrap().0).unwrap()
}

/// The default of an option of `ecr-runtime block-volume hot-plug`, by its manual page, which a
/// test compares with the program.
fn default_of(option: &str) -> String {
    let page = read("host-trigger/man/ecr-runtime-block-volume-hot-plug.1");
    let (_, rest) = page
        .split_once(&format!("\n\\fB\\-\\-{}\\fR \\fI", option))
        .unwrap();
    let (_, default) = rest.split_once("[default: ").unwrap();
    default.split_once(']').unwrap().0.to_owned()
}

/// What `ecr-runtime` requests, where its options are not given.
fn attachment(path: &str) -> Value {
    json!({
        "container_id": "c1", "controller": null, "target": 255, "lun": 1, "serial": "0123456789abcdef",
        "size": 1 << 20, "path": path, "access": "read-write",
        "uid": default_of("uid").parse::<u32>().unwrap(),
        "gid": default_of("gid").parse::<u32>().unwrap(),
        "mode": u32::from_str_radix(&default_of("mode"), 8).unwrap(),
        "mount": null,
    })
}

fn with(field: &str, value: impl Into<Value>) -> Value {
    let mut attachment = attachment("/dev/xvda");
    attachment[field] = value.into();
    attachment
}

fn mounted(path: &str) -> Value {
    let mut attachment = attachment(path);
    attachment["mode"] = 0.into();
    attachment["mount"] = json!({ "file_system": "", "options": [], "fs_group": null });
    attachment
}

#[rstest]
#[case::allow_all(ALLOW_ALL, &["CreateContainerRequest", "ExecProcessRequest"])]
#[case::generated(GENERATED, &["CreateContainerRequest"])]
#[case::rego_v1(V1, &["CreateContainerRequest"])]
fn the_rules_can_be_appended_to_any_policy(#[case] before: &str, #[case] agents_own: &[&str]) {
    let mut policy = policy(&(before.to_owned() + RULES));
    for method in METHODS {
        assert!(
            allows(&mut policy, method, &documented(method)),
            "{}",
            method
        );
    }
    let own = json!({ "name": "c1", "mounts": [{ "source": "/run/x" }] });
    for method in agents_own {
        assert!(allows(&mut policy, method, &own), "{}", method);
    }
    let foreign = json!({ "attachments": [attachment("/etc/passwd")] });
    assert!(!allows(&mut policy, "AttachBlockVolumeRequest", &foreign));
}

#[rstest]
#[case::default(&[attachment("/dev/xvda")], true)]
#[case::two(&[attachment("/dev/xvda"), attachment("/dev/xvdb")], true)]
#[case::root_alone(&[with("mode", 0o600)], true)]
#[case::read_only(&[with("access", "read-only")], true)]
#[case::elsewhere(&[attachment("/dev/sda")], false)]
#[case::one_of_two(&[attachment("/dev/xvda"), attachment("/srv/x")], false)]
#[case::one_of_two_first(&[attachment("/srv/x"), attachment("/dev/xvda")], false)]
#[case::everyone(&[with("mode", 0o666)], false)]
#[case::a_user(&[with("uid", 1000)], false)]
#[case::a_group(&[with("gid", 6)], false)]
#[case::a_mount(&[mounted("/data")], true)]
#[case::a_mount_below_mnt(&[mounted("/mnt/a/b")], true)]
#[case::both(&[mounted("/data"), attachment("/dev/xvda")], true)]
#[case::a_mount_elsewhere(&[mounted("/etc")], false)]
#[case::a_node_where_mounts_are(&[attachment("/data")], false)]
#[case::a_mount_where_nodes_are(&[mounted("/dev/xvda")], false)]
fn the_complete_policy_allows_what_it_says(#[case] volumes: &[Value], #[case] allowed: bool) {
    let input = json!({ "attachments": volumes });
    assert_eq!(
        allows(&mut policy(COMPLETE), "AttachBlockVolumeRequest", &input),
        allowed
    );
}

#[test]
fn the_complete_policy_allows_the_documented_inputs_and_what_it_names() {
    let mut policy = policy(COMPLETE);
    for method in METHODS {
        assert!(
            allows(&mut policy, method, &documented(method)),
            "{}",
            method
        );
    }
    assert!(allows(&mut policy, "CreateContainerRequest", &json!({})));
    assert!(!allows(&mut policy, "SetPolicyRequest", &json!({})));
    // An input without volumes is never sent.
    assert!(!allows(&mut policy, "AttachBlockVolumeRequest", &json!({})));
}

#[test]
fn the_complete_policy_ends_with_the_rules() {
    assert!(COMPLETE.ends_with(&format!("\n\n{}", RULES)));
}

#[test]
fn a_missing_rule_denies_unless_the_policy_allows_what_fails() {
    for method in METHODS {
        let input = documented(method);
        assert!(!allows(&mut policy(NO_RULES), method, &input), "{}", method);
        assert!(allows(&mut policy(FAIL_OPEN), method, &input), "{}", method);
    }
}

#[test]
fn a_policy_that_allows_what_fails_ignores_every_rule_that_denies() {
    let mut policy = policy(&(FAIL_OPEN.to_owned() + RULES));
    let foreign = json!({ "attachments": [attachment("/etc/passwd")] });
    assert!(allows(&mut policy, "AttachBlockVolumeRequest", &foreign));
}

#[test]
fn the_policies_of_the_patches_name_every_method() {
    let allow_all = include_str!("../kata-opa/allow-all.rego");
    let generated = include_str!("../genpolicy/rules.rego");
    for method in METHODS {
        let input = documented(method);
        assert!(allows(&mut policy(allow_all), method, &input), "{}", method);
        let decided = policy(generated).allow_request(method, &input.to_string());
        assert_eq!(decided, Ok(false), "{}", method);
    }
}
