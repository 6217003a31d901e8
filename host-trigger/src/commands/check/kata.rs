//! Kata's configuration: whether new sandboxes take volumes; and for a running sandbox, what of its
//! runtime's configuration explains what it lacks.

use std::path::Path;

use crate::{
    Error,
    kata::node::{
        directory::is_wrapper,
        judgement::{self, Judged, PATH_ANNOTATION},
        runtime_class::{self, Runtime},
    },
    output::findings::Finding,
};

const NAME: &str = "kata_configuration";

/// What a running sandbox has proved, whatever its configuration is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Proved {
    /// It has a monitor for us, or lacks one for another reason than its configuration.
    pub(super) monitor: bool,
    /// It has a controller for volumes, or that is not known.
    pub(super) controller: bool,
}

/// Checks all runtime classes of QEMU's on the node at `root`.
pub(super) fn check(root: &Path) -> Finding {
    let judged = match judgement::judge(root, None) {
        Ok(judged) => judged,
        Err(e) => return unreadable(&e),
    };
    if judged.is_empty() {
        return not_found(root, None);
    }
    if judged.iter().all(|one| one.faults.is_empty()) {
        let classes: Vec<_> = judged.iter().map(label).collect();
        let message = format!("new sandboxes take volumes: {}", classes.join(", "));
        return Finding::ok(NAME, message);
    }
    faults(&judged, "new sandboxes may not take volumes:")
}

/// Checks the configuration of the runtime that started a sandbox, if the sandbox lacks anything
/// because of it. `annotated` is the path of QEMU that the pod itself names.
pub(super) fn check_sandbox(
    root: &Path,
    runtime: Option<Runtime>,
    proved: Proved,
    annotated: Option<String>,
) -> Option<Finding> {
    let runtime = runtime.filter(|_| !proved.monitor || !proved.controller)?;
    if let Some(path) = annotated.filter(|path| !proved.monitor && !is_wrapper(Path::new(path))) {
        let message =
            format!("the pod's annotation {PATH_ANNOTATION} starts {path:?}, not ecr-qemu");
        let remedy = ["start the pod without this annotation"];
        return Some(Finding::warning(NAME, message, &remedy));
    }
    let mut judged = match judgement::judge(root, Some(runtime)) {
        Ok(judged) => judged,
        Err(e) => return Some(unreadable(&e)),
    };
    if judged.is_empty() {
        return Some(not_found(root, Some(runtime)));
    }
    for one in &mut judged {
        let is_disproved = |is_of_controller| match is_of_controller {
            true => proved.controller,
            false => proved.monitor,
        };
        one.faults.retain(|fault| !is_disproved(fault.is_of_controller()));
    }
    if judged.iter().any(|one| !one.faults.is_empty()) {
        return Some(faults(&judged, "the sandbox may be of"));
    }
    let classes: Vec<_> = judged.iter().map(label).collect();
    let message = format!(
        "new sandboxes have what this one lacks ({}): it was started before, or without it",
        classes.join(", ")
    );
    let remedy = [
        "start the pod again",
        "if that does not help: `journalctl --identifier ecr-qemu` says why there is no socket",
    ];
    Some(Finding::warning(NAME, message, &remedy))
}

/// One warning for all classes.
fn faults(judged: &[Judged], what: &str) -> Finding {
    let faulty: Vec<_> = judged.iter().filter(|one| !one.faults.is_empty()).collect();
    // A node may have a dozen classes, and a message has a limit.
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    for one in &faulty {
        let faults: Vec<_> = one.faults.iter().map(ToString::to_string).collect();
        let text = faults.join(", and ");
        match groups.iter_mut().find(|(other, _)| *other == text) {
            Some((_, classes)) => classes.push(label(one)),
            None => groups.push((text, vec![label(one)])),
        }
    }
    let texts = groups.iter().map(|(text, classes)| format!("{}: {text}", classes.join(", ")));
    let message = format!("{what} {}", texts.collect::<Vec<_>>().join("; "));
    let mut lines = Vec::new();
    for one in faulty {
        // Where all need the same, one command does it.
        let is_common =
            |fault| judged.iter().all(|one| one.faults.iter().any(|other| other == fault));
        let mend = one.faults.iter().flat_map(|fault| match is_common(fault) {
            true => fault.remedy(""),
            false => fault.remedy(&one.class),
        });
        let mend: Vec<_> = mend.filter(|line| !lines.contains(line)).collect();
        lines.extend(mend);
    }
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    Finding::warning(NAME, message, &lines)
}

/// The class and its runtime; the file, where there is no class.
fn label(judged: &Judged) -> String {
    let runtime = runtime_name(judged.runtime);
    match judged.class.as_str() {
        "" => format!("{} ({runtime})", judged.file.display()),
        class => format!("{class} ({runtime})"),
    }
}

fn runtime_name(runtime: Runtime) -> &'static str {
    match runtime {
        Runtime::Go => "Go",
        Runtime::Rust => "Rust",
    }
}

fn unreadable(error: &Error) -> Finding {
    let remedy = error.class().remedy;
    Finding::warning(NAME, error.message(), remedy.as_slice())
}

/// It is somewhere else, so nothing can write it but a person.
fn not_found(root: &Path, runtime: Option<Runtime>) -> Finding {
    let of = runtime.map(|runtime| format!("the {} runtime of ", runtime_name(runtime)));
    let searched: Vec<_> =
        runtime_class::searched(root).iter().map(|path| path.display().to_string()).collect();
    let message = format!(
        "it is not known whether sandboxes have a free QMP socket: {}Kata is not configured for \
         QEMU in {}",
        of.unwrap_or_default(),
        searched.join(", ")
    );
    let remedy = [
        "if its configuration is elsewhere, name the wrapper by hand in config.d beside it:",
        "[hypervisor.qemu]",
        "path = \"/usr/bin/ecr-qemu\"",
        "and the path of QEMU until now in /etc/ecr-runtime/ecr-qemu.path",
    ];
    Finding::warning(NAME, message, &remedy)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rstest::rstest;

    use super::*;
    use crate::output::findings::Status;

    const GO: &str = "etc/kata-containers/configuration.toml";
    const RUST: &str = "etc/kata-containers/runtime-rs/configuration.toml";
    const QEMU: &str = "[hypervisor.qemu]\npath = \"/usr/bin/qemu\"\n";
    const WRAPPED: &str = "[hypervisor.qemu]\npath = \"/usr/bin/ecr-qemu\"\n\
                           block_device_driver = \"virtio-scsi\"\n";

    fn node(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        root
    }

    #[rstest]
    #[case::nothing(&[], Status::Warning, "not configured", "by hand in config.d")]
    #[case::another_hypervisor(&[(GO, "[hypervisor.clh]\n")], Status::Warning, "not configured", "by hand")]
    #[case::wrapped(&[(GO, WRAPPED)], Status::Ok, "configuration.toml (Go)", "")]
    #[case::both(&[(GO, WRAPPED), (RUST, WRAPPED)], Status::Ok, "runtime-rs/configuration.toml (Rust)", "")]
    #[case::stock(&[(GO, QEMU)], Status::Warning, "configuration.toml (Go)", "sandboxes only: ecr-runtime node enable")]
    #[case::one_of_two(&[(GO, WRAPPED), (RUST, QEMU)], Status::Warning, "runtime-rs/configuration.toml (Rust)", "block_device_driver = ")]
    #[case::not_valid(&[(GO, "[hypervisor")], Status::Warning, "not valid TOML", "correct that file")]
    fn a_node_is_judged_by_all_its_classes(
        #[case] files: &[(&str, &str)],
        #[case] status: Status,
        #[case] found: &str,
        #[case] remedy: &str,
    ) {
        let finding = check(node(files).path());
        assert_eq!(finding.status, status, "{finding:?}");
        assert!(finding.message.contains(found), "{finding:?}");
        assert!(finding.remedy.unwrap_or_default().contains(remedy));
    }

    #[test]
    fn classes_with_the_same_faults_are_named_together() {
        let scsi = format!("{QEMU}block_device_driver = \"virtio-scsi\"\n");
        let finding = check(node(&[(GO, &scsi), (RUST, &scsi)]).path());
        let expected = "configuration.toml (Rust): the shim holds QEMU's only QMP socket";
        assert!(finding.message.ends_with(expected), "{finding:?}");
        assert_eq!(finding.message.matches("the shim holds").count(), 1, "{finding:?}");
    }

    #[test]
    fn a_command_for_all_classes_is_printed_once() {
        let scsi = format!("{QEMU}block_device_driver = \"virtio-scsi\"\n");
        let finding = check(node(&[(GO, &scsi), (RUST, &scsi)]).path());
        let expected =
            "let Kata start QEMU by ecr-qemu, for new sandboxes only: ecr-runtime node enable";
        assert_eq!(finding.remedy.as_deref(), Some(expected), "{finding:?}");
    }

    #[rstest]
    #[case::free_socket(Runtime::Rust, (true, true), None)]
    #[case::held_on_rust(Runtime::Rust, (false, true), Some(("Rust", "node enable")))]
    #[case::held_on_go(Runtime::Go, (false, true), Some(("new sandboxes have", "start the pod again")))]
    #[case::no_controller(Runtime::Rust, (true, false), Some(("virtio-blk-pci", "block_device_driver")))]
    #[case::controller_of_go(Runtime::Go, (true, false), Some(("new sandboxes have", "start the pod")))]
    fn a_sandbox_is_judged_by_its_own_runtime(
        #[case] runtime: Runtime,
        #[case] (monitor, controller): (bool, bool),
        #[case] expected: Option<(&str, &str)>,
    ) {
        let root = node(&[(GO, WRAPPED), (RUST, QEMU)]);
        let proved = Proved { monitor, controller };
        let finding = check_sandbox(root.path(), Some(runtime), proved, None);
        assert_eq!(finding.is_some(), expected.is_some(), "{finding:?}");
        for (finding, (message, remedy)) in finding.iter().zip(expected) {
            assert_eq!(finding.status, Status::Warning);
            assert!(finding.message.contains(message), "{finding:?}");
            let lines = finding.remedy.as_deref().unwrap();
            assert!(lines.contains(remedy), "{finding:?}");
            // Nothing of the other runtime, and nothing that was disproved.
            assert!(!finding.message.contains("(Go)") || runtime == Runtime::Go, "{finding:?}");
            let of_monitor = lines.contains("node enable");
            assert!(!(of_monitor && monitor), "{finding:?}");
        }
    }

    #[test]
    fn a_sandbox_whose_sockets_were_named_is_not_judged() {
        let proved = Proved { monitor: false, controller: true };
        assert_eq!(check_sandbox(node(&[]).path(), None, proved, None), None);
    }

    #[rstest]
    #[case::another_qemu("/usr/bin/qemu-2", true)]
    #[case::the_wrapper("/usr/bin/ecr-qemu", false)]
    fn a_pod_that_chose_its_qemu_is_told_so(#[case] path: &str, #[case] expected: bool) {
        let proved = Proved { monitor: false, controller: true };
        let root = node(&[(GO, WRAPPED)]);
        let finding =
            check_sandbox(root.path(), Some(Runtime::Go), proved, Some(path.into())).unwrap();
        assert_eq!(finding.message.contains("the pod's annotation"), expected, "{finding:?}");
    }
}
