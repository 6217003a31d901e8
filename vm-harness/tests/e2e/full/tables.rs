//! The commands of `vm-harness` that print tables and figures, as a user runs them. The exit status
//! of each one is the result.

use std::process::Command;

use rstest::rstest;
use vm_harness::Environment;

fn run(arguments: &[&str]) {
    let program = Environment::from_variables().vm_harness().unwrap();
    // Printed below as the output of the test.
    let output = Command::new(program).args(arguments).output().unwrap();
    print!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{arguments:?}: {}", output.status);
}

#[rstest]
#[case::of_devices("device")]
#[case::of_file_systems("file-system")]
fn crash_table(#[case] kind: &str) {
    run(&["crash", "--kind", kind]);
}

#[test]
fn soak_of_a_hundred_cycles() {
    run(&["soak", "--cycles", "100"]);
}
