//! The bench measures: its quick mode runs, and its report has every row.

use std::{fs, process::Command};

use vm_harness::Environment;

#[test]
fn quick_run_reports_every_row_and_writes_the_plots() {
    let directory = tempfile::tempdir().unwrap();
    let program = Environment::from_variables().vm_harness().unwrap();
    let report = directory.path().join("report");
    let output = Command::new(program)
        .args(["bench", "--quick", "--trace", "--report"])
        .arg(&report)
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{shown}{}", String::from_utf8_lossy(&output.stderr));

    let text = fs::read(report.join("report.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let rows: Vec<_> = json["sections"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|section| section["rows"].as_array().unwrap())
        .collect();
    for measure in [
        "hot-plug without process start / floor",
        "hot-unplug without process start / bare sequence",
        "hot-plug, device filter without process start / floor",
        "hot-plug: last 6 of 24 / first 6",
        "hot-unplug: last 6 of 24 / first 6",
        "hot-plug of 8 at once, per volume / floor",
        "list of 24 volumes",
        "polls every 100 ms",
        "hot-plug of a file system without process start / bare disk and bare mount",
        "hot-unplug of a file system without process start / bare sequence",
        "hot-plug of a file system / of a device, the whole process",
        "from the command to a file read by a process that waits",
        "hot-plug, both without the transport to the guest (connections: 1, waits for an answer:",
        "read 4k, queue depth 32, aio io_uring",
    ] {
        let found = rows.iter().find(|row| row["measure"].as_str().unwrap().contains(measure));
        let row = found.unwrap_or_else(|| panic!("no row {measure:?}: {shown}"));
        let median = row["figure"]["median"].as_f64().unwrap();
        assert!(median.is_finite() && median > 0.0 || measure.starts_with("list"), "{row}");
        assert!(!row["ours"]["samples"].as_array().unwrap().is_empty(), "{row}");
    }
    for fact in ["cpu", "kernel", "qemu", "accelerator", "governor", "date", "commit"] {
        assert!(!json["machine"][fact].as_str().unwrap().is_empty(), "{fact}: {json}");
    }
    for plot in ["figures-distribution.svg", "figures-growth.svg"] {
        assert!(fs::read_to_string(report.join(plot)).unwrap().contains("<circle"), "{plot}");
    }
    assert!(shown.contains("| guest |") && shown.contains("→ device_add"), "{shown}");
}
