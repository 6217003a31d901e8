//! The complete conformance suite: every kind of guest, and every broken variant of the reference
//! agent.

use std::collections::HashSet;

use rstest::rstest;
use vm_harness::{
    Environment,
    conformance::{Conformance, Event, GROUPS, Mode, Report, Verdict},
};

use crate::conformance::{SEPARATE_PORT, failed, run_broken, with_separate_port};

/// Runs the suite and prints its table. No check may fail.
async fn conforms(suite: &Conformance) -> Report {
    let report = suite
        .run(&mut |event| {
            if let Event::Outcome(mode, outcome) = event {
                println!("{:<8} {outcome}", mode.name());
            }
        })
        .await;
    println!("{}", report.counts());
    assert_eq!(failed(&report), []);
    report
}

#[tokio::test]
async fn reference_agent_conforms_in_every_mode_and_each_check_runs_in_some_mode() {
    let suite = Conformance::new(Environment::from_variables());
    let report = conforms(&suite).await;
    let outcomes = report.modes.iter().flat_map(|mode| &mode.checks);
    let ran: HashSet<_> = outcomes
        .filter(|outcome| outcome.verdict == Verdict::Passed)
        .map(|outcome| outcome.name)
        .collect();
    let never: Vec<_> =
        suite.checks().map(|check| check.name()).filter(|name| !ran.contains(name)).collect();
    assert_eq!(never, [""; 0], "these checks ran in no mode");
}

#[tokio::test]
async fn reference_agent_conforms_with_the_plugin_on_a_separate_port() {
    let suite = Conformance {
        modes: vec![Mode::V2],
        kernel_parameters: vec![SEPARATE_PORT.1.to_owned()],
        ..Conformance::new(with_separate_port())
    };
    let report = conforms(&suite).await;
    assert_eq!(report.subject.unwrap().plugin_port, Some(1040));
}

/// A parameter on the kernel's command line breaks the reference agent in one way. The whole suite
/// runs, and the check that covers this defect is among those that fail.
#[rstest]
#[case::no_scan("scan=skip", "plug::container_reads_what_the_host_wrote")]
#[case::wrong_address("address=skip", "plug::container_reads_what_the_host_wrote")]
#[case::scans_everything("scan-one=skip", "address::only_the_named_address_is_scanned")]
#[case::wrong_serial_accepted("serial=skip", "address::disk_with_another_serial_is_refused")]
#[case::node_in_the_agents_namespace("namespace=skip", "plug::container_reads_what_the_host_wrote")]
#[case::success_without_a_node("node=skip", "plug::container_reads_what_the_host_wrote")]
#[case::wrong_owner("owner=skip", "plug::node_has_the_owner_and_mode_that_were_asked")]
#[case::no_filter("filter=skip", "filter::filtered_container_uses_its_volume")]
#[case::no_rollback("undo=skip", "rollback::failure_of_one_volume_rolls_back_the_others")]
#[case::node_stays("unlink=skip", "unplug::leaves_nothing")]
#[case::never_unchanged("unchanged=skip", "plug::repeated_call_is_unchanged")]
#[case::no_deadline("deadline=skip", "address::disk_that_never_appears_times_out")]
#[case::leaks_a_thread("thread=stay", "side_effects::threads_and_descriptors_stay_as_many")]
#[case::no_mount("mount=skip", "mount::container_reads_what_the_host_wrote")]
#[case::mount_with_devices("nodev=skip", "mount::gives_neither_devices_nor_privileges")]
#[case::mount_stays("unmount=skip", "mount::leaves_nothing")]
#[tokio::test]
async fn broken_variant_is_caught(#[case] fault: &str, #[case] check: &str) {
    let report = run_broken(fault, None).await;
    let failed: Vec<_> = failed(&report).into_iter().map(|(name, _)| name).collect();
    println!("| {fault} | {} | {} |", failed.join(", "), report.counts());
    assert!(failed.contains(&check), "{fault} is not caught by {check}, but by {failed:?}");
}

/// The defect that one check of the mounts alone covers, and what its failure says.
fn defect_of(check: &str) -> (&'static str, &'static str) {
    match check {
        "mount::container_reads_what_the_host_wrote" => {
            ("mount=guest", "the agent's own mount namespace has the path")
        }
        "mount::gives_neither_devices_nor_privileges" => ("nodev=skip", "the mount is not nodev"),
        "mount::read_only_file_system_is_not_written" => ("read-only=skip", "file_system_refused"),
        "mount::held_file_system_is_refused_and_works_on" => ("files=skip", "it is not named"),
        "mount::what_was_written_is_on_the_host" => ("write-back=skip", "it was not unmounted"),
        "mount::leaves_nothing" => ("tidy=skip", "./leaves/nothing"),
        "mount::volume_without_a_file_system_is_refused" => ("magic=skip", "file_system_refused"),
        "mount::container_with_a_user_namespace_owns_its_files" => {
            ("idmap=skip", "the owner as the container sees it")
        }
        _ => panic!("{check} needs a defect of the reference agent that it covers"),
    }
}

/// Each check of the mounts fails by its own defect, and no other one of them does.
#[tokio::test]
async fn each_check_of_mounts_covers_a_defect_that_no_other_one_does() {
    let group = GROUPS.iter().find(|group| group.name == "mount").unwrap();
    assert_eq!(failed(&run_broken("none=skip", Some("mount::")).await), [], "without a defect");
    let mut wrong = Vec::new();
    for check in group.checks {
        let (fault, expected) = defect_of(check.name());
        let report = run_broken(fault, Some("mount::")).await;
        let failed = failed(&report);
        println!("| {fault} | {failed:?} | {} |", report.counts());
        match &failed[..] {
            [(name, reason)] if *name == check.name() && reason.contains(expected) => {}
            _ => wrong.push((fault, failed)),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
