//! A Debian node as a VM, as `just node` runs it: the package, the wrapper, native vsock, pods by
//! name, the audit in the journal. The scenarios are in `vm-harness/src/node/suite`.

use std::{path::Path, process::Command};

#[test]
fn every_scenario_passes_in_a_node() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ci/node");
    // Printed below as the output of the test.
    let output = Command::new(script).output().expect("ci/node can be run");
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "ci/node: {}", output.status);
    assert!(text.contains("the pod is stopped while a volume is plugged"), "the last scenario ran");
}
