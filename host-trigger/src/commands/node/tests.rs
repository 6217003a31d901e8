//! `node` on trees of files in place of a node's.

mod config_d;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::PathBuf,
};

use rstest::rstest;

use super::*;
use crate::{
    error::ErrorBody,
    output::{
        envelope::Outcome,
        node_report::{ClassState, ReportedClass, ReportedRuntime},
    },
};

const GO: &str = "opt/kata/share/defaults/kata-containers/runtimes/qemu/configuration-qemu.toml";
const RUST: &str =
    "opt/kata/share/defaults/kata-containers/runtime-rs/runtimes/q/configuration.toml";
const CLH: &str = "opt/kata/share/defaults/kata-containers/runtimes/clh/configuration-clh.toml";
const QEMU: &str = "[hypervisor.qemu]\npath = \"/usr/bin/qemu-system-x86_64\"\n";
const QEMU_2: &str = "[hypervisor.qemu]\npath = \"/usr/bin/qemu-snp\"\n";
const CLOUD: &str = "[hypervisor.clh]\npath = \"/usr/bin/cloud-hypervisor\"\n";
const DROP_IN: &str = "config.d/zz-ecr-runtime.toml";

struct Node {
    root: tempfile::TempDir,
    wrapper: PathBuf,
}

impl Node {
    /// A node with these classes and configurations.
    fn new(classes: &[(&str, &str)], files: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut containerd = "version = 2\n".to_owned();
        for (name, file) in classes {
            containerd.push_str(&format!(
                "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.{name}]\n\
                 runtime_type = \"io.containerd.kata.v2\"\n\
                 options = {{ ConfigPath = \"/{file}\" }}\n"
            ));
        }
        let wrapper = root.path().join("usr/bin/ecr-qemu");
        let node = Self { root, wrapper };
        node.write("etc/containerd/config.toml", &containerd);
        files.iter().for_each(|(file, text)| node.write(file, text));
        node.add_wrapper("ecr-qemu");
        node
    }

    fn add_wrapper(&self, name: &str) -> PathBuf {
        let wrapper = self.wrapper.with_file_name(name);
        self.write(&format!("usr/bin/{name}"), "");
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
        wrapper
    }

    fn path(&self, file: &str) -> PathBuf {
        self.root.path().join(file)
    }

    fn write(&self, file: &str, text: &str) {
        let file = self.path(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    fn beside(&self, configuration: &str, file: &str) -> PathBuf {
        self.path(configuration).with_file_name(file)
    }

    fn run(&self, verb: &NodeVerb) -> Envelope<NodeReport> {
        run_at(self.root.path(), verb).unwrap()
    }

    fn enable(&self, classes: &[&str]) -> Envelope<NodeReport> {
        self.run(&NodeVerb::Enable(self.enable_verb(classes)))
    }

    fn enable_verb(&self, classes: &[&str]) -> Enable {
        let wrapper = Some(self.wrapper.clone());
        Enable { selection: selection(classes), wrapper, dry_run: false }
    }

    fn disable(&self, classes: &[&str]) -> Envelope<NodeReport> {
        let (force, dry_run) = (false, false);
        self.run(&NodeVerb::Disable(Disable { selection: selection(classes), force, dry_run }))
    }

    fn force_disable(&self) -> Envelope<NodeReport> {
        let (force, dry_run) = (true, false);
        self.run(&NodeVerb::Disable(Disable { selection: selection(&[]), force, dry_run }))
    }

    fn status(&self) -> Vec<ReportedClass> {
        let verb = NodeVerb::Status(Status { selection: selection(&[]) });
        self.run(&verb).body.runtime_classes
    }

    fn record(&self) -> Option<String> {
        let record = fs::read(self.path("etc/ecr-runtime/ecr-qemu.path"));
        record.ok().map(|text| String::from_utf8(text).unwrap())
    }

    /// All files and directories, with their content and mode.
    fn tree(&self) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
        let mut tree = BTreeMap::new();
        let mut directories = vec![self.root.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let status = path.symlink_metadata().unwrap();
                let text = if status.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
                tree.insert(path.clone(), (status.permissions().mode(), text));
                if status.is_dir() {
                    directories.push(path);
                }
            }
        }
        tree
    }
}

fn selection(classes: &[&str]) -> Selection {
    let runtime_class = classes.iter().map(|name| (*name).to_owned()).collect();
    Selection { runtime_class, output: Format::Json }
}

#[track_caller]
fn error(envelope: &Envelope<NodeReport>) -> &ErrorBody {
    assert_eq!(envelope.result, Outcome::Error);
    envelope.error.as_ref().unwrap()
}

fn both() -> Node {
    let classes = [("kata-qemu", GO), ("kata-rust", RUST), ("kata-clh", CLH)];
    Node::new(&classes, &[(GO, QEMU), (RUST, QEMU), (CLH, CLOUD)])
}

#[test]
fn both_runtimes_are_enabled_and_disabled_without_a_trace() {
    let node = both();
    let before = node.tree();
    let enabled = node.enable(&[]);
    assert_eq!((enabled.result, &enabled.error), (Outcome::Enabled, &None));
    assert_eq!(node.record().as_deref(), Some("/usr/bin/qemu-system-x86_64\n"));
    for configuration in [GO, RUST] {
        let drop_in = node.beside(configuration, DROP_IN);
        let text = String::from_utf8(fs::read(&drop_in).unwrap()).unwrap();
        let expected = format!("\n[hypervisor.qemu]\npath = {:?}\n", node.wrapper);
        assert!(text.ends_with(&expected), "{text}");
        assert_eq!(drop_in.metadata().unwrap().permissions().mode() & 0o7777, 0o644);
        assert_eq!(fs::read_dir(drop_in.parent().unwrap()).unwrap().count(), 1);
    }
    assert!(!node.beside(CLH, "config.d").exists());
    let states: Vec<_> = node.status().iter().map(|row| (row.runtime, row.state)).collect();
    let expected = [
        (ReportedRuntime::Go, ClassState::NotQemu),
        (ReportedRuntime::Go, ClassState::Enabled),
        (ReportedRuntime::Rust, ClassState::Enabled),
    ];
    assert_eq!(states, expected);
    let after = node.tree();
    assert_eq!(node.enable(&[]).result, Outcome::Unchanged);
    assert_eq!(node.tree(), after);
    assert_eq!(node.disable(&[]).result, Outcome::Disabled);
    assert_eq!(node.tree(), before);
    assert_eq!(node.disable(&[]).result, Outcome::Unchanged);
}

#[test]
fn what_was_there_before_stays() {
    let node = both();
    fs::create_dir(node.beside(GO, "config.d")).unwrap();
    node.write("etc/ecr-runtime/ecr-qemu.path", "/usr/bin/qemu-system-x86_64");
    let before = node.tree();
    assert_eq!(node.enable(&[]).result, Outcome::Enabled);
    assert_eq!(node.disable(&[]).result, Outcome::Disabled);
    assert_eq!(node.tree(), before);
}

#[test]
fn the_record_stays_until_the_last_drop_in_is_removed() {
    let node = both();
    let before = node.tree();
    assert_eq!(node.enable(&["kata-qemu"]).result, Outcome::Enabled);
    assert!(!node.beside(RUST, DROP_IN).exists());
    assert_eq!(node.enable(&["kata-rust"]).result, Outcome::Enabled);
    assert_eq!(node.disable(&["kata-qemu"]).result, Outcome::Disabled);
    assert!(node.record().is_some() && node.beside(RUST, DROP_IN).exists());
    assert_eq!(node.disable(&["kata-rust"]).result, Outcome::Disabled);
    assert_eq!(node.tree(), before);
}

#[test]
fn a_drop_in_whose_class_is_gone_is_removed() {
    let node = both();
    let containerd = fs::read(node.path("etc/containerd/config.toml")).unwrap();
    let before = node.tree();
    node.enable(&[]);
    node.write("etc/containerd/config.toml", "version = 2\n");
    assert_eq!(node.disable(&[]).result, Outcome::Disabled);
    fs::write(node.path("etc/containerd/config.toml"), containerd).unwrap();
    assert_eq!(node.tree(), before);
}

#[test]
fn a_dry_run_changes_nothing_and_names_all_files() {
    let node = both();
    let before = node.tree();
    let verb = Enable { dry_run: true, ..node.enable_verb(&[]) };
    let planned = node.run(&NodeVerb::Enable(verb));
    assert_eq!((planned.result, planned.dry_run), (Outcome::Enabled, true));
    assert_eq!(node.tree(), before);
    assert_eq!(planned.body.files, node.enable(&[]).body.files);
    let (after, selection) = (node.tree(), selection(&[]));
    let planned = node.run(&NodeVerb::Disable(Disable { selection, force: false, dry_run: true }));
    assert_eq!((planned.result, node.tree()), (Outcome::Disabled, after));
    assert_eq!(planned.body.files, node.disable(&[]).body.files);
}

#[rstest]
#[case::clh_beside(&[("configuration-clh.toml", CLOUD)], "mixed_configurations", "configuration-clh.toml")]
#[case::other_qemu_beside(&[("configuration-snp.toml", QEMU_2)], "mixed_configurations", "/usr/bin/qemu-snp")]
#[case::later(&[("config.d/zzz.toml", QEMU_2)], "later_drop_in", "config.d/zzz.toml")]
#[case::foreign(&[(DROP_IN, QEMU_2)], "foreign_drop_in", "zz-ecr-runtime.toml")]
#[case::unreadable(&[("config.d/1", "[")], "configuration_unreadable", "config.d/1")]
fn a_refusal_changes_nothing(
    #[case] files: &[(&str, &str)],
    #[case] reason: &str,
    #[case] named: &str,
) {
    let node = both();
    for (file, text) in files {
        let file = node.beside(GO, file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    let before = node.tree();
    let refused = node.enable(&[]);
    assert_eq!(error(&refused).reason, reason);
    assert!(error(&refused).message.contains(named), "{refused:?}");
    assert_eq!(node.tree(), before);
    let row = refused.body.runtime_classes.iter().find(|row| row.name == "kata-qemu").unwrap();
    assert_eq!(row.state == ClassState::Refused, row.why.is_some(), "{row:?}");
    // The other directory can be enabled by the name of its class.
    assert_eq!(node.enable(&["kata-rust"]).result, Outcome::Enabled);
}

#[test]
fn the_commands_for_a_directory_of_its_own_lead_to_success() {
    let node = Node::new(&[("kata-qemu", GO), ("kata-clh", "opt/clh.toml")], &[(GO, QEMU)]);
    node.write("opt/kata/share/defaults/kata-containers/runtimes/qemu/clh.toml", CLOUD);
    fs::create_dir(node.beside(GO, "config.d")).unwrap();
    symlink(node.beside(GO, "clh.toml"), node.path("opt/clh.toml")).unwrap();
    let refused = node.enable(&["kata-qemu"]);
    assert!(error(&refused).message.contains("kata-clh (clh.toml: clh)"), "{refused:?}");
    let commands = &refused.body.commands;
    let starts = [
        "# ",
        "mkdir -p /etc/kata-containers/kata-qemu",
        "cp ",
        "cp -r ",
        "# then, in ",
        "systemctl",
        "ecr-runtime node enable --runtime-class kata-qemu",
    ];
    assert_eq!(commands.len(), starts.len(), "{commands:?}");
    for (command, start) in commands.iter().zip(starts) {
        assert!(command.starts_with(start), "{command}");
    }
    let own = "etc/kata-containers/kata-qemu/configuration-qemu.toml";
    assert!(
        commands[4]
            .ends_with(&format!("ConfigPath = \"/{own}\" in the options of the runtime kata-qemu"))
    );
    node.write(own, QEMU);
    let defined = fs::read(node.path("etc/containerd/config.toml")).unwrap();
    let defined = String::from_utf8(defined).unwrap().replace(GO, own);
    node.write("etc/containerd/config.toml", &defined);
    assert_eq!(node.enable(&["kata-qemu"]).result, Outcome::Enabled);
}

#[test]
fn a_second_qemu_needs_a_second_wrapper() {
    let node = both();
    node.write(RUST, QEMU_2);
    let before = node.tree();
    let refused = node.enable(&[]);
    assert_eq!(error(&refused).reason, "other_record");
    assert_eq!(node.tree(), before);
    assert_eq!(node.enable(&["kata-qemu"]).result, Outcome::Enabled);
    assert_eq!(error(&node.enable(&["kata-rust"])).reason, "other_record");
    let wrapper = Some(node.add_wrapper("ecr-qemu-snp"));
    let verb = Enable { wrapper, ..node.enable_verb(&["kata-rust"]) };
    assert_eq!(node.run(&NodeVerb::Enable(verb)).result, Outcome::Enabled);
    let record = fs::read(node.path("etc/ecr-runtime/ecr-qemu-snp.path")).unwrap();
    assert_eq!(record, b"/usr/bin/qemu-snp\n");
    assert_eq!(node.disable(&[]).result, Outcome::Disabled);
    assert!(!node.path("etc/ecr-runtime").exists());
}

#[test]
fn a_record_for_another_path_is_refused() {
    let node = both();
    node.write("etc/ecr-runtime/ecr-qemu.path", "/usr/bin/another\n");
    let before = node.tree();
    let refused = node.enable(&[]);
    assert_eq!(error(&refused).reason, "other_record");
    assert!(error(&refused).message.contains("/usr/bin/another"), "{refused:?}");
    assert_eq!(node.tree(), before);
}

#[test]
fn a_record_that_is_gone_is_written_again() {
    let node = both();
    node.enable(&[]);
    fs::remove_file(node.path("etc/ecr-runtime/ecr-qemu.path")).unwrap();
    assert_eq!(node.enable(&[]).result, Outcome::Enabled);
    assert!(node.record().is_some());
}

#[test]
fn a_drop_in_that_was_edited_is_removed_by_force_alone() {
    let node = both();
    node.enable(&[]);
    let drop_in = node.beside(GO, DROP_IN);
    let mut text = fs::read(&drop_in).unwrap();
    text.extend_from_slice(b"enable_debug = true\n");
    fs::write(&drop_in, text).unwrap();
    let before = node.tree();
    assert_eq!(error(&node.disable(&[])).reason, "foreign_drop_in");
    assert_eq!(error(&node.enable(&[])).reason, "foreign_drop_in");
    assert_eq!(node.tree(), before);
    assert_eq!(node.force_disable().result, Outcome::Disabled);
    assert!(!drop_in.exists() && !node.beside(RUST, DROP_IN).exists());
}

#[test]
fn a_wrapper_that_an_administrator_named_is_left_alone() {
    let by_hand = "[hypervisor.qemu]\npath = \"/usr/bin/ecr-qemu\"\n";
    let node = Node::new(&[("kata", GO)], &[(GO, by_hand)]);
    let before = node.tree();
    assert_eq!(node.enable(&[]).result, Outcome::Unchanged);
    assert_eq!(node.disable(&[]).result, Outcome::Unchanged);
    assert_eq!(node.tree(), before);
    assert_eq!(node.status()[0].state, ClassState::ByHand);
}

#[test]
fn a_configuration_that_others_can_write_is_refused() {
    let node = both();
    let directory = node.path(GO).parent().unwrap().to_owned();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).unwrap();
    let before = node.tree();
    assert_eq!(error(&node.enable(&[])).exit_code, 11);
    assert_eq!(node.tree(), before);
}

#[test]
fn a_wrapper_that_others_can_write_is_refused() {
    let node = both();
    fs::set_permissions(&node.wrapper, fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(error(&node.enable(&[])).reason, "untrusted_path");
    assert_eq!(node.record(), None);
}

#[rstest]
#[case::program("usr/bin/ecr-qemu", 0o700)]
#[case::directory("usr", 0o750)]
fn a_wrapper_that_the_user_of_a_rootless_vmm_cannot_execute_is_refused(
    #[case] closed: &str,
    #[case] mode: u32,
) {
    let node = both();
    fs::set_permissions(node.path(closed), fs::Permissions::from_mode(mode)).unwrap();
    let refused = node.enable(&[]);
    assert_eq!(error(&refused).reason, "wrapper_unusable");
    let message = &error(&refused).message;
    assert!(message.contains(&format!("{closed}\"")), "{message}");
    assert_eq!(node.record(), None);
}

#[rstest]
#[case::missing("usr/bin/none")]
#[case::no_program("etc/containerd/config.toml")]
#[case::other_name("usr/bin/tool")]
fn what_is_no_wrapper_is_refused(#[case] wrapper: &str) {
    let node = both();
    node.add_wrapper("tool");
    let wrapper = Some(node.path(wrapper));
    let refused = node.run(&NodeVerb::Enable(Enable { wrapper, ..node.enable_verb(&[]) }));
    assert_eq!(error(&refused).reason, "wrapper_unusable");
}

#[test]
fn classes_that_cannot_be_enabled_are_named() {
    let node = Node::new(&[("kata-clh", CLH), ("kata-x", "none.toml")], &[(CLH, CLOUD)]);
    let refused = node.enable(&[]);
    assert_eq!(error(&refused).reason, "not_qemu");
    assert!(error(&refused).message.ends_with("kata-clh (clh), kata-x (no configuration)"));
    let verb = NodeVerb::Status(Status { selection: selection(&["kata"]) });
    let unknown = run_at(node.root.path(), &verb).unwrap_err();
    assert_eq!(unknown.class().reason, "runtime_class_not_found");
    let empty = tempfile::tempdir().unwrap();
    let verb = NodeVerb::Status(Status { selection: selection(&[]) });
    let none = run_at(empty.path(), &verb).unwrap_err();
    assert_eq!(none.class().reason, "no_kata_configuration");
}

#[test]
fn a_failure_half_way_removes_what_was_written() {
    let node = both();
    // Where the second directory's drop-in would be, its directory for drop-ins is a file.
    fs::write(node.beside(RUST, "config.d"), "").unwrap();
    let before = node.tree();
    let failed = node.enable(&[]);
    error(&failed);
    assert_eq!(node.tree(), before);
}
