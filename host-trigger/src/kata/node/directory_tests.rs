//! What a drop-in would change in a directory.

use std::fs;

use rstest::rstest;

use super::*;

const QEMU_1: &str = "[hypervisor.qemu]\npath = \"/usr/bin/qemu-1\"\n";
const QEMU_2: &str = "[hypervisor.qemu]\npath = \"/usr/bin/qemu-2\"\n";
const BOTH: &str = "[hypervisor.qemu]\npath = \"/q\"\n[hypervisor.clh]\npath = \"/c\"\n";
const CLH: &str = "[hypervisor.clh]\npath = \"/usr/bin/clh\"\n";

fn use_of(files: &[(&str, &str)]) -> Result<Use, Error> {
    let root = tempfile::tempdir().unwrap();
    for (file, text) in files {
        let file = root.path().join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    let name_of = |file: &Path| {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        if name.starts_with("spare") { String::new() } else { format!("kata-{name}") }
    };
    Directory::read(root.path())?.use_of(name_of)
}

#[rstest]
#[case::one(&[("q.toml", QEMU_1)], "/usr/bin/qemu-1")]
#[case::several(&[("q.toml", QEMU_1), ("r.toml", QEMU_1)], "/usr/bin/qemu-1")]
#[case::a_drop_in_before_ours(&[("q.toml", QEMU_1), ("config.d/10.toml", QEMU_2)], "/usr/bin/qemu-2")]
#[case::drop_in_makes_them_equal(&[("q.toml", QEMU_1), ("r.toml", QEMU_2), ("config.d/1", QEMU_2)], "/usr/bin/qemu-2")]
#[case::a_later_one_without_path(&[("q.toml", QEMU_1), ("config.d/zzz", "[agent.kata]\n")], "/usr/bin/qemu-1")]
#[case::no_configuration(&[("q.toml", QEMU_1), ("nydus.toml", "version = 1\n"), ("q.toml.bak", CLH)], "/usr/bin/qemu-1")]
fn configurations_with_one_path_can_change_together(
    #[case] files: &[(&str, &str)],
    #[case] path: &str,
) {
    assert_eq!(use_of(files).unwrap(), Use::Qemu(path.into()));
}

#[rstest]
#[case::another_hypervisor(&[("q.toml", QEMU_1), ("clh.toml", CLH)], "mixed_configurations", "kata-clh (clh.toml: clh)")]
#[case::another_that_is_not_used(&[("q.toml", QEMU_1), ("spare.toml", CLH)], "mixed_configurations", "spare.toml (clh; no runtime class uses it)")]
#[case::more_that_are_not_used(&[("q.toml", QEMU_1), ("r.toml", QEMU_2), ("spare.toml", CLH), ("spare-2.toml", CLH)], "mixed_configurations", "kata-r (r.toml: /usr/bin/qemu-2), spare-2.toml (clh) and 1 more, which no runtime class uses")]
#[case::another_path(&[("q.toml", QEMU_1), ("r.toml", QEMU_2)], "mixed_configurations", "kata-r (r.toml: /usr/bin/qemu-2)")]
#[case::two_in_one(&[("q.toml", BOTH)], "mixed_configurations", "qemu and clh")]
#[case::later(&[("q.toml", QEMU_1), ("config.d/zzz", QEMU_2)], "later_drop_in", "config.d/zzz")]
#[case::foreign(&[("q.toml", QEMU_1), ("config.d/zz-ecr-runtime.toml", QEMU_2)], "foreign_drop_in", "zz-ecr-runtime.toml")]
#[case::no_path(&[("q.toml", "[hypervisor.qemu]\n")], "no_qemu_path", "q.toml")]
#[case::empty(&[("q.toml", "[hypervisor.qemu]\npath = \"\"\n")], "no_qemu_path", "q.toml")]
#[case::relative(&[("q.toml", "[hypervisor.qemu]\npath = \"qemu\"\n")], "no_qemu_path", "absolute")]
#[case::bad(&[("q.toml", "[hypervisor")], "configuration_unreadable", "not valid TOML")]
#[case::bad_drop_in(&[("q.toml", QEMU_1), ("config.d/1", "[hypervisor")], "configuration_unreadable", "config.d/1")]
#[case::directory_as_drop_in(&[("q.toml", QEMU_1), ("config.d/d/1", "")], "configuration_unreadable", "config.d/d")]
fn what_cannot_change_together_is_refused(
    #[case] files: &[(&str, &str)],
    #[case] reason: &str,
    #[case] named: &str,
) {
    let error = use_of(files).unwrap_err();
    assert_eq!(error.class().reason, reason);
    assert!(error.message().contains(named), "{error}");
}

#[test]
fn a_wrapper_is_never_taken_for_qemu() {
    let text = "[hypervisor.qemu]\npath = \"/usr/local/bin/ecr-qemu-snp\"\n";
    let expected = Use::ByHand("/usr/local/bin/ecr-qemu-snp".into());
    assert_eq!(use_of(&[("q.toml", text)]).unwrap(), expected);
    assert_eq!(use_of(&[("q.toml", QEMU_1), ("config.d/5", text)]).unwrap(), expected);
}

#[test]
fn a_link_belongs_to_the_directory_that_it_leads_to() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("q.toml"), QEMU_1).unwrap();
    std::os::unix::fs::symlink("/elsewhere/clh.toml", root.path().join("configuration.toml"))
        .unwrap();
    let found = Directory::read(root.path()).unwrap();
    assert_eq!(found.configurations.len(), 1);
}

#[test]
fn another_hypervisor_alone_is_not_concerned() {
    assert_eq!(use_of(&[("clh.toml", CLH)]).unwrap(), Use::NotQemu);
}
