//! `ecr-runtime node` as a program: in a mount namespace of its own, with a `/etc` of its own.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::{Command, Stdio},
};

use host_trigger::output::{
    envelope::{Envelope, Outcome},
    node_report::{ClassState, NodeReport},
    schema::schema,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

const CONFIGURATION: &str = "/etc/kata-containers/configuration.toml";
const RECORD: &str = "/etc/ecr-runtime/ecr-qemu.path";
const DROP_IN: &str = "/etc/kata-containers/config.d/zz-ecr-runtime.toml";

/// Gives this test's thread, and the programs that it starts, an empty `/etc` and `/run`.
fn empty_node() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    for directory in ["/etc", "/run"] {
        mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
    }
}

/// A directory with a copy of the program and a wrapper beside it, to which only root can write.
fn installed() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for (name, file) in [
        ("ecr-runtime", env!("CARGO_BIN_EXE_ecr-runtime")),
        ("ecr-qemu", env!("CARGO_BIN_EXE_ecr-qemu")),
    ] {
        fs::copy(file, directory.path().join(name)).unwrap();
    }
    directory
}

fn node(installed: &Path, words: &[&str]) -> (Option<i32>, Envelope<NodeReport>) {
    let program = installed.join("ecr-runtime");
    let audit = installed.join("audit");
    let done = Command::new(program)
        .arg("node")
        .args(words)
        .args(["--output", "json", "--audit-log"])
        .arg(audit)
        .output()
        .unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    let document = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    jsonschema::validate(&schema(), &document).unwrap_or_else(|e| panic!("{e}: {text}"));
    (done.status.code(), serde_json::from_value(document).unwrap())
}

#[test]
fn a_node_is_enabled_and_disabled() {
    let installed = installed();
    let installed = installed.path();
    empty_node();
    fs::create_dir("/etc/kata-containers").unwrap();
    fs::write(CONFIGURATION, "[hypervisor.qemu]\npath = \"/usr/bin/qemu\"\n").unwrap();
    let (status, found) = node(installed, &["status"]);
    assert_eq!((status, found.result), (Some(0), Outcome::Listed));
    let default = found.body.runtime_classes.iter().find(|row| row.name.is_empty()).unwrap();
    assert_eq!(default.state, ClassState::Disabled);

    let (status, enabled) = node(installed, &["enable"]);
    assert_eq!((status, enabled.result), (Some(0), Outcome::Enabled), "{enabled:?}");
    assert_eq!(fs::read(RECORD).unwrap(), b"/usr/bin/qemu\n");
    let drop_in = String::from_utf8(fs::read(DROP_IN).unwrap()).unwrap();
    let wrapper = fs::canonicalize(installed).unwrap().join("ecr-qemu");
    assert!(drop_in.ends_with(&format!("path = {wrapper:?}\n")), "{drop_in}");

    fs::write(DROP_IN, format!("{drop_in}\n")).unwrap();
    let (status, refused) = node(installed, &["disable"]);
    assert_eq!((status, refused.error.unwrap().reason.as_str()), (Some(4), "foreign_drop_in"));
    fs::write(DROP_IN, drop_in).unwrap();
    let (status, disabled) = node(installed, &["disable"]);
    assert_eq!((status, disabled.result), (Some(0), Outcome::Disabled));
    assert!(!Path::new("/etc/ecr-runtime").exists());
    assert_eq!(fs::read_dir("/etc/kata-containers").unwrap().count(), 1);

    // Each that may change something is recorded when it begins.
    let audit = String::from_utf8(fs::read(installed.join("audit")).unwrap()).unwrap();
    let begun = audit.lines().filter(|line| line.contains("\"phase\":\"begin\"")).count();
    assert_eq!(begun, 3, "{audit}");
}

#[test]
fn a_run_waits_for_one_that_is_changing_something() {
    let installed = installed();
    let installed = installed.path();
    empty_node();
    fs::create_dir("/etc/kata-containers").unwrap();
    fs::write(CONFIGURATION, "[hypervisor.qemu]\npath = \"/usr/bin/qemu\"\n").unwrap();
    assert_eq!(node(installed, &["enable"]).1.result, Outcome::Enabled);
    let lock = fs::File::open("/run/ecr-runtime").unwrap();
    assert_eq!(lock.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
    lock.lock().unwrap();
    let mut waiting = Command::new(installed.join("ecr-runtime"))
        .args(["node", "disable", "--output", "json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let inode = format!(":{} ", lock.metadata().unwrap().ino());
    let is_awaited = || {
        let locks = fs::read("/proc/locks").unwrap();
        let locks = String::from_utf8_lossy(&locks).into_owned();
        locks.lines().any(|line| line.contains("-> FLOCK") && line.contains(&inode))
    };
    while !is_awaited() {
        assert_eq!(waiting.try_wait().unwrap(), None, "it did not wait");
        std::thread::yield_now();
    }
    // What changes nothing does not wait.
    assert_eq!(node(installed, &["status"]).1.result, Outcome::Listed);
    assert_eq!(node(installed, &["disable", "--dry-run"]).1.result, Outcome::Disabled);
    assert!(Path::new(DROP_IN).exists());
    lock.unlock().unwrap();
    let done = waiting.wait_with_output().unwrap();
    assert_eq!((done.status.code(), Path::new(DROP_IN).exists()), (Some(0), false), "{done:?}");
}

#[test]
fn a_usage_error_names_the_verb() {
    let installed = installed();
    let done = Command::new(installed.path().join("ecr-runtime"))
        .args(["node", "enable", "--output", "json", "--bad"])
        .output()
        .unwrap();
    let document: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((&document["command"], done.status.code()), (&"node enable".into(), Some(2)));
}
