//! What is wrong with configurations of both runtimes, in trees of files.

use rstest::rstest;

use super::*;
use crate::kata::{
    node::drop_in::{self, DropIn, Made},
    test_tree::tree,
};

const GO: &str = "opt/kata/share/defaults/kata-containers/configuration-qemu.toml";
const RUST: &str =
    "opt/kata/share/defaults/kata-containers/runtime-rs/configuration-qemu-runtime-rs.toml";
const QEMU: &str = "[hypervisor.qemu]\npath = \"/usr/bin/qemu-1\"\n";
const SCSI: &str = "block_device_driver = \"virtio-scsi\"\n";
const DEBUG: &str = "enable_debug = true\nextra_monitor_socket = \"qmp\"\n";
const ANNOTATED: &str = "enable_annotations = [\"path\"]\n";

fn containerd() -> String {
    [("kata-go", GO), ("kata-rust", RUST)]
        .map(|(name, file)| {
            format!(
                "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.{name}]\n\
                 runtime_type = \"io.containerd.kata.v2\"\n\
                 options = {{ ConfigPath = \"/{file}\" }}\n"
            )
        })
        .concat()
}

/// Judges the class whose configuration is `file`, with these lines after QEMU's path.
fn judged(file: &str, lines: &str, more: &[(&str, &str)]) -> Judged {
    let beside = |name: &str| Path::new(file).with_file_name(name).display().to_string();
    let mut files = vec![
        ("etc/containerd/config.toml".to_owned(), containerd()),
        (file.to_owned(), format!("{QEMU}{lines}")),
    ];
    files.extend(more.iter().map(|(name, text)| (beside(name), (*text).to_owned())));
    let files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let root = tree(&files);
    let runtime = if file == GO { Runtime::Go } else { Runtime::Rust };
    let mut found = judge(root.path(), Some(runtime)).unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    let one = found.remove(0);
    assert_eq!(one.runtime, runtime);
    one
}

fn enabled() -> String {
    DropIn { wrapper: "/usr/bin/ecr-qemu".into(), made: Made::default() }.text()
}

#[rstest]
#[case::stock_go(GO, "", &["the shim holds"])]
#[case::stock_rust(RUST, SCSI, &["the shim holds"])]
#[case::debug_of_go(GO, DEBUG, &[])]
#[case::debug_alone(GO, "enable_debug = true\n", &["the shim holds"])]
#[case::monitor_alone(GO, "extra_monitor_socket = \"qmp\"\n", &["the shim holds"])]
#[case::human_monitor(GO, "enable_debug = true\nextra_monitor_socket = \"hmp\"\n", &["the shim holds"])]
#[case::debug_of_rust(RUST, &format!("{DEBUG}{SCSI}"), &["keeps every pod", "the shim holds"])]
#[case::monitor_of_rust_alone(RUST, "extra_monitor_socket = \"qmp\"\nblock_device_driver = \"virtio-scsi\"\n", &["the shim holds"])]
#[case::driver_of_go(GO, "block_device_driver = \"virtio-blk\"\n", &["the shim holds", "is \"virtio-blk\""])]
#[case::driver_of_rust(RUST, "", &["the shim holds", "is \"virtio-blk-pci\""])]
fn each_fault_is_found(#[case] file: &str, #[case] lines: &str, #[case] expected: &[&str]) {
    let judged = judged(file, lines, &[]);
    let found: Vec<_> = judged.faults.iter().map(Fault::to_string).collect();
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.contains(expected), "{found}");
    }
}

#[rstest]
#[case::go(GO, "", &[])]
#[case::rust(RUST, SCSI, &[])]
#[case::human_monitor(GO, "enable_debug = true\nextra_monitor_socket = \"hmp\"\n", &["takes the place"])]
#[case::rust_stops(RUST, &format!("{DEBUG}{SCSI}"), &["keeps every pod"])]
#[case::annotation(GO, &format!("{ANNOTATED}valid_hypervisor_paths = [\"/usr/bin/qemu*\"]\n"), &["without ecr-qemu"])]
#[case::annotation_of_the_wrapper(GO, &format!("{ANNOTATED}valid_hypervisor_paths = [\"/usr/bin/ecr-qemu\"]\n"), &[])]
#[case::annotation_without_paths(GO, ANNOTATED, &[])]
fn with_the_wrapper_other_faults_remain(
    #[case] file: &str,
    #[case] lines: &str,
    #[case] expected: &[&str],
) {
    let drop_in = format!("config.d/{}", drop_in::NAME);
    let judged = judged(file, lines, &[(&drop_in, &enabled())]);
    let found: Vec<_> = judged.faults.iter().map(Fault::to_string).collect();
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn a_later_drop_in_overrides_the_wrapper() {
    let drop_in = format!("config.d/{}", drop_in::NAME);
    let text = "[hypervisor.qemu]\npath = \"/usr/bin/qemu-2\"\n";
    let judged = judged(GO, "", &[(&drop_in, &enabled()), ("config.d/zzz.toml", text)]);
    let [fault @ Fault::Refused { .. }] = &judged.faults[..] else { panic!("{judged:?}") };
    assert!(fault.to_string().contains("config.d/zzz.toml"), "{fault}");
    assert!(fault.remedy("kata-go").last().unwrap().contains("node status"));
}

#[test]
fn the_lines_are_those_of_the_file_that_has_the_setting() {
    let text = "[hypervisor.qemu]\nblock_device_driver = \"virtio-blk-ccw\"\n";
    let judged = judged(RUST, &format!("{DEBUG}{SCSI}"), &[("config.d/10.toml", text)]);
    let lines: Vec<_> =
        judged.faults.iter().flat_map(|fault| fault.remedy(&judged.class)).collect();
    let [stops, enable, file, table, driver] = &lines[..] else { panic!("{lines:?}") };
    assert!(stops.ends_with("configuration-qemu-runtime-rs.toml: extra_monitor_socket = \"qmp\""));
    assert!(enable.ends_with(": ecr-runtime node enable --runtime-class kata-rust"), "{enable}");
    assert!(file.ends_with("/config.d/10.toml:"), "{file}");
    assert_eq!([table, driver], ["[hypervisor.qemu]", "block_device_driver = \"virtio-scsi\""]);
}

#[test]
fn each_runtime_is_judged_by_its_own_classes() {
    let containerd = containerd();
    let root = tree(&[
        ("etc/containerd/config.toml", containerd.as_str()),
        (GO, QEMU),
        (RUST, "[hypervisor.clh]\n"),
    ]);
    let classes = |runtime| {
        let found = judge(root.path(), runtime).unwrap();
        found.into_iter().map(|one| one.class).collect::<Vec<_>>()
    };
    assert_eq!(classes(None), ["kata-go"]);
    assert_eq!(classes(Some(Runtime::Go)), ["kata-go"]);
    assert_eq!(classes(Some(Runtime::Rust)), [""; 0]);
}

#[test]
fn a_configuration_that_cannot_be_read_does_not_hide_the_others() {
    let containerd = containerd();
    let root =
        tree(&[("etc/containerd/config.toml", containerd.as_str()), (GO, "["), (RUST, QEMU)]);
    let found = judge(root.path(), None).unwrap();
    let [go, rust] = &found[..] else { panic!("{found:?}") };
    assert!(matches!(go.faults[..], [Fault::Unreadable { .. }]), "{go:?}");
    assert_eq!(rust.faults.len(), 2, "{rust:?}");
}
