//! The conformance suite, as the developer of an agent runs it, and tests that it can fail.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use rstest::rstest;
use serde_json::Value;
use vm_harness::{
    Environment,
    conformance::{Conformance, GROUPS, Mode, Report, Verdict},
};

/// Runs `vm-harness conformance` without the environment variables of this test run that select an
/// agent.
fn conformance(arguments: &[&str]) -> Output {
    let mut command = Command::new(Environment::from_variables().vm_harness().unwrap());
    for variable in ["AGENT", "POLICY", "INITRD_EXTRA", "PLUGIN_PORT"] {
        command.env_remove(format!("VM_HARNESS_{variable}"));
    }
    command.arg("conformance").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The reference agent as a dynamically linked program, which `ci/build` builds for this test.
fn dynamic_agent() -> PathBuf {
    Environment::from_variables().target.join("release/reference-agent")
}

#[test]
fn agent_that_is_given_by_path_conforms_and_is_reported() {
    let agent = dynamic_agent();
    let needed =
        image_builder::library::needed_by(&agent, Path::new("/usr/bin/agent"), &[]).unwrap();
    assert!(
        needed.keys().any(|path| path.ends_with("libgcc_s.so.1")),
        "libgcc_s.so.1 is needed by this agent only: {needed:?}"
    );
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("report");
    let run = conformance(&[
        "--mode",
        "v2",
        "--agent",
        agent.to_str().unwrap(),
        "--report",
        report.to_str().unwrap(),
    ]);
    let table = text(&run.stdout);
    println!("{table}");
    assert_eq!(run.status.code(), Some(0), "{table}{}", text(&run.stderr));
    let first = table.lines().next().unwrap();
    assert!(
        first.starts_with(
            "reference-agent 0.1.0 with block-volume plugin 0.1.0 (API level 1), kernel "
        ),
        "{first}"
    );
    let json: Value =
        serde_json::from_slice(&std::fs::read(report.join("conformance.json")).unwrap()).unwrap();
    assert_eq!(json["schema"], 2);
    assert_eq!(json["subject"]["kind"], Value::Null, "its details do not tell what it is");
    assert_eq!(json["subject"]["features"], serde_json::json!(["block-volume"]));
    let checks = json["modes"][0]["checks"].as_array().unwrap();
    let all: Vec<_> =
        GROUPS.iter().flat_map(|group| group.checks).map(|check| check.name()).collect();
    assert_eq!(checks.iter().map(|check| check["name"].as_str().unwrap()).collect::<Vec<_>>(), all);
    let count = |verdict| checks.iter().filter(|check| check["verdict"] == verdict).count();
    let (passed, inapplicable) = (count("passed"), count("not_applicable"));
    assert_eq!((passed + inapplicable, inapplicable), (all.len(), 1), "{table}");
    let last = table.lines().last().unwrap();
    assert!(
        last.starts_with(&format!("{passed} run, 0 failed, {inapplicable} not applicable (")),
        "{last}"
    );
    let xml = std::fs::read_to_string(report.join("conformance.xml")).unwrap();
    let junit = quick_junit::Report::deserialize_from_str(&xml).unwrap();
    assert_eq!((junit.test_suites.len(), junit.test_suites[0].test_cases.len()), (1, all.len()));
}

#[test]
fn agent_without_the_plugin_is_named_in_the_first_line_and_fails() {
    let run = conformance(&["--mode", "v2", "--kernel-param", "agent.block_volume=off"]);
    let table = text(&run.stdout);
    assert_eq!(run.status.code(), Some(1), "{table}{}", text(&run.stderr));
    let first = table.lines().next().unwrap();
    assert!(
        first.contains("WITHOUT the block-volume plugin; asked for it, the agent says: "),
        "{first}"
    );
    assert!(table.lines().last().unwrap().starts_with("1 run, 1 failed, "), "{table}");
    for part in ["the agent", "the kernel", "--explain agent::serves_the_plugin"] {
        assert!(table.contains(part), "{part}: {table}");
    }
}

#[test]
fn check_is_explained_without_a_guest() {
    let run = conformance(&["--explain", "unplug::leaves_nothing"]);
    let explained = text(&run.stdout);
    assert_eq!(run.status.code(), Some(0), "{explained}{}", text(&run.stderr));
    for part in ["unplug::leaves_nothing", "proves", "usually breaks", "where to look"] {
        assert!(explained.contains(part), "{part}: {explained}");
    }
}

/// The parameters for a reference agent that serves the plugin on a separate vsock port, and not on
/// the agent's own server.
pub(crate) const SEPARATE_PORT: (&str, &str) = ("1040", "agent.block_volume_port=1040");

/// The environment for such an agent.
pub(crate) fn with_separate_port() -> Environment {
    let mut environment = Environment::from_variables();
    environment.plugin_port = Some(SEPARATE_PORT.0.to_owned());
    environment
}

#[test]
fn plugin_on_a_separate_port_is_named_in_the_first_line_and_checked_there() {
    let checks = ["agent::", "plug::container_reads", "rollback::failure_of_one"];
    let checks = checks.iter().flat_map(|check| ["--check", check]);
    let (port, parameter) = SEPARATE_PORT;
    let arguments = ["--mode", "v2", "--plugin-port", port, "--kernel-param", parameter];
    let run = conformance(&arguments.into_iter().chain(checks).collect::<Vec<_>>());
    let table = text(&run.stdout);
    assert_eq!(run.status.code(), Some(0), "{table}{}", text(&run.stderr));
    let first = table.lines().next().unwrap();
    assert!(
        first.contains(" with block-volume plugin 0.1.0 (API level 1) on vsock port 1040, "),
        "{first}"
    );
    let last = table.lines().last().unwrap();
    assert!(last.starts_with("8 run, 0 failed, 0 not applicable ("), "{last}");
}

#[test]
fn port_without_a_server_is_named_in_the_first_line_and_fails() {
    let arguments = ["--mode", "v2", "--plugin-port", "1041", "--kernel-param", SEPARATE_PORT.1];
    let run = conformance(&arguments);
    let table = text(&run.stdout);
    assert_eq!(run.status.code(), Some(1), "{table}{}", text(&run.stderr));
    let first = table.lines().next().unwrap();
    let expected = "whose block-volume plugin does not serve Probe on vsock port 1041: no process serves vsock port 1041";
    assert!(first.contains(expected), "{first}");
    assert!(table.lines().last().unwrap().starts_with("1 run, 1 failed, "), "{table}");
}

#[test]
fn policy_that_the_caller_gives_is_used_by_the_agent() {
    let directory = tempfile::tempdir().unwrap();
    let policy = directory.path().join("policy.json");
    std::fs::write(&policy, r#"{"deny": [{"method": "ProbeBlockVolumeRequest"}]}"#).unwrap();
    let run = conformance(&["--mode", "v2", "--policy", policy.to_str().unwrap()]);
    let table = text(&run.stdout);
    assert_eq!(run.status.code(), Some(1), "{table}{}", text(&run.stderr));
    let first = table.lines().next().unwrap();
    assert!(
        first.contains("plugin does not serve Probe: ") && first.contains("is denied"),
        "{first}"
    );
}

#[rstest]
#[case::no_agent(&["--agent", "/no/such/agent"], "/no/such/agent")]
#[case::agent_that_is_no_program(&["--agent", "/etc/passwd"], "/etc/passwd")]
#[case::policy_that_is_no_policy(&["--policy", "/etc/passwd"], ".rego")]
#[case::no_kernel(&["--kernel", "/no/such/kernel"], "/no/such/kernel")]
#[case::no_qemu(&["--qemu", "/no/such/qemu"], "/no/such/qemu")]
#[case::program_that_is_not_qemu(&["--qemu", "/bin/false"], "QEMU ended")]
#[case::unknown_check(&["--check", "no such check"], "--list")]
#[case::unknown_check_to_explain(&["--explain", "leave_nothing"], "unplug::leaves_nothing")]
#[case::invalid_port(&["--plugin-port", "4294967295"], "4294967295")]
#[case::unknown_mode(&["--mode", "v3"], "v2-scan")]
fn broken_environment_is_distinguished_from_a_failed_check(
    #[case] arguments: &[&str],
    #[case] expected: &str,
) {
    let run = conformance(arguments);
    let (table, error) = (text(&run.stdout), text(&run.stderr));
    assert_eq!(run.status.code(), Some(2), "{table}{error}");
    assert!(error.contains(expected), "{error}");
}

/// Runs the suite, or the checks that `only` selects, on a reference agent that is broken in one
/// way.
pub(crate) async fn run_broken(fault: &str, only: Option<&str>) -> Report {
    let mut environment = Environment::from_variables();
    environment.overrides = environment.overrides.without_agent();
    let suite = Conformance {
        image: "fault".to_owned(),
        modes: vec![Mode::V2],
        kernel_parameters: vec![format!("block_volume.fault={fault}")],
        only: only.into_iter().map(str::to_owned).collect(),
        timeout: Duration::from_secs(6),
        ..Conformance::new(environment)
    };
    suite.run(&mut |_| ()).await
}

/// Returns the names of the failed checks, with their reasons.
pub(crate) fn failed(report: &Report) -> Vec<(&'static str, String)> {
    assert_eq!(report.broken(), None);
    let checks = report.modes.iter().flat_map(|mode| &mode.checks);
    let failed = checks.filter_map(|outcome| match &outcome.verdict {
        Verdict::Failed { reason, .. } => Some((outcome.name, reason.clone())),
        _ => None,
    });
    failed.collect()
}

#[rstest]
#[case::no_fault("none=skip", "address::disk_with_another_serial_is_refused", None)]
#[case::wrong_serial_accepted(
    "serial=skip",
    "address::disk_with_another_serial_is_refused",
    Some("it succeeded")
)]
#[case::no_rollback(
    "undo=skip",
    "rollback::failure_of_one_volume_rolls_back_the_others",
    Some("not as it was before")
)]
#[case::node_in_the_agents_namespace(
    "namespace=skip",
    "node::is_in_the_container_and_nowhere_else",
    Some("no node in the container")
)]
#[tokio::test]
async fn broken_agent_is_caught_by_the_check_for_this_defect(
    #[case] fault: &str,
    #[case] check: &str,
    #[case] expected: Option<&str>,
) {
    let failed = failed(&run_broken(fault, Some(check)).await);
    match expected {
        None => assert_eq!(failed, [], "the check passes if nothing is broken"),
        Some(expected) => {
            assert_eq!(failed.len(), 1, "{fault}: {failed:?}");
            assert!(failed[0].0 == check && failed[0].1.contains(expected), "{failed:?}");
        }
    }
}

/// A failure has the agent's log of this check apart from the kernel's.
#[tokio::test]
async fn logs_of_agent_and_kernel_are_beside_a_failed_check() {
    let check = "address::disk_with_another_serial_is_refused";
    let report = run_broken("serial=skip", Some(check)).await;
    assert_eq!(report.broken(), None);
    let Verdict::Failed { agent_log, kernel_log, .. } = &report.modes[0].checks[0].verdict else {
        panic!("{report:?}")
    };
    assert!(agent_log.contains("attach"), "{agent_log}");
    assert!(!agent_log.contains("serving at vsock port"), "of before the check: {agent_log}");
    let is_kernels = |line: &str| line.starts_with('[') && line.contains("] ");
    assert!(!agent_log.lines().any(is_kernels), "{agent_log}");
    // On a quiet console there may be none of the kernel.
    assert!(kernel_log.lines().all(is_kernels), "{kernel_log}");
}

/// The number of the agent's threads changes with its own calls: the suite's commands in containers
/// occupy its pool (`agent.pool`), one more thread of it with the eighth, which is after the
/// snapshot of this check. Only what the plugin leaves behind is a failure.
#[rstest]
#[case::pool("none=skip", None)]
#[case::leak("thread=stay", Some("(block-volume)"))]
#[tokio::test]
async fn thread_that_the_plugin_leaves_is_told_from_those_of_the_agents_pool(
    #[case] fault: &str,
    #[case] expected: Option<&str>,
) {
    let check = "side_effects::threads_and_descriptors_stay_as_many";
    let report = run_broken(&format!("{fault} agent.pool=8"), Some(check)).await;
    let failed = failed(&report);
    match expected {
        None => assert_eq!(failed, []),
        Some(expected) => {
            assert_eq!(failed.len(), 1, "{failed:?}");
            let reason = &failed[0].1;
            assert!(reason.contains(expected), "{reason}");
            assert!(!reason.contains("tokio"), "the pool's thread is named: {reason}");
        }
    }
}
