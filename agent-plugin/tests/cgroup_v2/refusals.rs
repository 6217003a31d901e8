//! Programs that the plugin refuses to change (not safe to change, not its own, or not readable):
//! the error has the reason, and nothing is changed.

use std::{os::fd::OwnedFd, path::Path, process::Command};

use agent_plugin::{
    Error, Unsupported,
    block::DeviceNumber,
    cgroup::{Access, hierarchy::Hierarchies, v2::Group},
};
use rstest::rstest;

use crate::{
    groups::{DISK, Groups, allow, usual, with_rule},
    runtimes::{self, ALLOW_MULTI, BLOCK, CHAR, Runtime, constant, program},
};

#[test]
fn a_program_of_an_ancestor_is_never_changed() {
    let groups = Groups::with("above", &usual());
    groups.attach(
        "",
        &program(Runtime::Runc, &[(BLOCK, 7, Some(8), None, true), (CHAR, 7, None, None, true)]),
    );
    let (pod, own) = (groups.ids(""), groups.ids("c1"));
    let group = groups.container();
    assert_eq!(group.programs().unwrap().len(), 2);
    group.check().expect("it allows SCSI disks");
    let error = allow(&group, DISK, Access::READ).unwrap_err();
    let expected = Unsupported::BpfShared { program: pod[0], cgroup: format!("/{}", groups.name) };
    assert!(matches!(&*error, Error::Unsupported(found) if *found == expected));
    assert_eq!((groups.ids(""), groups.ids("c1")), (pod.clone(), own), "nothing was changed");

    groups.attach("", &constant(0));
    let error = group.check().unwrap_err().message();
    assert!(error.contains(&format!("of cgroup /{} refuses disks", groups.name)), "{error}");
    assert_eq!(groups.ids("")[0], pod[0]);
}

#[test]
fn a_shared_cgroup_is_only_read() {
    let groups = Groups::with("shared", &with_rule((BLOCK, 6, Some(8), None, true)));
    let ids = groups.ids("c1");
    let group = Group::shared(&groups.root, &Path::new(&groups.name).join("c1"));
    let disk = DeviceNumber { major: 8, minor: 0 };
    assert!(allow(&group, disk, Access::READ_WRITE).unwrap().added.is_empty());
    assert!(matches!(
        *allow(&group, DISK, Access::READ).unwrap_err(),
        Error::Unsupported(Unsupported::BpfShared { .. })
    ));
    assert_eq!(groups.ids("c1"), ids);
}

type Prepare = fn(&Groups) -> Option<OwnedFd>;

#[rstest]
#[case::maps("maps", "uses maps", |groups: &Groups| {
    let map = runtimes::map();
    groups.attach("c1", &runtimes::with_map(&map));
    Some(map)
})]
#[case::helper_call("call", "instruction 0 (code 0x85)", |groups: &Groups| {
    groups.attach("c1", &runtimes::with_call());
    None
})]
#[case::link("link", "attached by a bpf_link", |groups: &Groups| {
    Some(runtimes::link(&groups.open("c1"), &runtimes::load(&usual())))
})]
#[case::exclusive("exclusive", "without BPF_F_ALLOW_MULTI", |groups: &Groups| {
    runtimes::attach(&groups.open("c1"), &runtimes::load(&usual()), 0);
    None
})]
#[case::one_of_two("second", "uses maps", |groups: &Groups| {
    groups.attach("c1", &usual());
    let map = runtimes::map();
    groups.attach("c1", &runtimes::with_map(&map));
    Some(map)
})]
fn an_unsafe_change_is_refused_with_its_reason(
    #[case] test: &str,
    #[case] reason: &str,
    #[case] prepare: Prepare,
) {
    let groups = Groups::new(test);
    let _held = prepare(&groups);
    let ids = groups.ids("c1");
    let group = groups.container();
    for refused in [group.check(), allow(&group, DISK, Access::READ).map(drop)] {
        let error = refused.unwrap_err();
        assert!(
            matches!(*error, Error::Unsupported(_)) && error.message().contains(reason),
            "{error}"
        );
    }
    // What a program that cannot be read answers is not known.
    match group.allows(DISK, Access::READ) {
        Ok(allowed) => assert!(!allowed),
        Err(error) => assert!(error.message().contains(reason), "{error}"),
    }
    assert!(group.revoke(DISK).unwrap().is_empty());
    assert_eq!(groups.ids("c1"), ids);
}

#[test]
fn a_program_that_is_also_attached_to_an_ancestor_is_refused() {
    let groups = Groups::new("twice");
    let loaded = runtimes::load(&usual());
    runtimes::attach(&groups.open(""), &loaded, ALLOW_MULTI);
    runtimes::attach(&groups.open("c1"), &loaded, ALLOW_MULTI);
    let ids = groups.ids("c1");
    let error = allow(&groups.container(), DISK, Access::READ).unwrap_err();
    assert!(matches!(*error, Error::Unsupported(Unsupported::BpfShared { .. })), "{error}");
    assert_eq!(groups.ids("c1"), ids);
}

/// The body of the next test, run by a process without capabilities.
#[test]
fn without_capabilities() {
    let Some(name) = std::env::var_os("ECR_TEST_GROUP") else { return };
    let root = Hierarchies::mounted().unwrap().unified.unwrap();
    let group = Group::new(&root, Path::new(&name));
    for refused in [group.check(), allow(&group, DISK, Access::READ).map(drop)] {
        let error = refused.unwrap_err();
        assert!(matches!(*error, Error::Unsupported(Unsupported::BpfDenied { .. })), "{error}");
    }
}

#[test]
fn a_missing_capability_to_read_programs_is_the_reason() {
    let groups = Groups::with("rights", &usual());
    let ids = groups.ids("c1");
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-sys_admin,-bpf,-perfmon,-net_admin"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "refusals::without_capabilities"])
        .env("ECR_TEST_GROUP", format!("{}/c1", groups.name))
        .output()
        .expect("setpriv of util-linux");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("1 passed"), "{text}{output:?}");
    assert_eq!(groups.ids("c1"), ids);
}
