//! Allow and revoke with different attached programs: those of each runtime, several, none, and one
//! that is replaced meanwhile.

use std::fs;

use agent_plugin::{block::DeviceNumber, cgroup::Access};
use rstest::rstest;

use crate::{
    groups::{DISK, Groups, OTHER, allow, usual, with_rule},
    runtimes::{self, BLOCK, Runtime, USUAL, constant, program},
};

#[rstest]
fn one_container_gets_the_device_and_loses_it(
    #[values(Runtime::Crun, Runtime::Runc, Runtime::OldRunc, Runtime::Systemd)] runtime: Runtime,
) {
    let groups = Groups::with(&format!("one-{runtime:?}"), &program(runtime, &USUAL));
    let before = groups.instructions("c1");
    let group = groups.container();
    group.check().unwrap();
    assert!(
        !group.allows(DISK, Access::READ).unwrap() && !groups.reads("c1") && !groups.writes("c1")
    );

    let grant = allow(&group, DISK, Access::READ_WRITE).unwrap();
    assert!(!grant.allowed_before && grant.added.len() == 1);
    assert!(group.allows(DISK, Access::READ_WRITE).unwrap());
    assert!(
        !group.allows(OTHER, Access::READ).unwrap() && !group.allows(DISK, Access::ALL).unwrap()
            || runtime == Runtime::OldRunc
    );
    assert!(groups.reads("c1") && groups.writes("c1"));
    assert!(!groups.reads("sibling") && !groups.writes("sibling"));
    assert!(!groups.can("c1", "exec dd if=/dev/loop1 count=0"), "another disk");
    assert!(
        groups.can("c1", "exec dd if=/dev/zero of=/dev/null count=1"),
        "what was allowed before"
    );
    assert_eq!(groups.instructions("c1").len(), 1);

    assert_eq!(group.revoke(DISK).unwrap(), Access::READ_WRITE);
    assert!(!groups.reads("c1") && !group.allows(DISK, Access::READ).unwrap());
    assert_eq!(groups.instructions("c1"), before, "the runtime's own program is restored");
    assert!(group.revoke(DISK).unwrap().is_empty(), "a second revoke changes nothing");
}

#[test]
fn a_repeated_allow_changes_nothing() {
    let groups = Groups::with("again", &runtimes::crun_1_8_1());
    allow(&groups.container(), DISK, Access::READ_WRITE).unwrap();
    let ids = groups.ids("c1");
    let again = allow(&groups.container(), DISK, Access::READ_WRITE).unwrap();
    assert!(
        again.added.is_empty() && !again.allowed_before,
        "a rule of our own is not a right from elsewhere"
    );
    assert_eq!(groups.ids("c1"), ids);
    again.roll_back().unwrap();
    assert!(groups.reads("c1"));
    groups.container().revoke(DISK).unwrap();
    assert_eq!(groups.instructions("c1"), [runtimes::crun_1_8_1()]);
}

#[test]
fn a_read_only_right_is_read_only_and_replaces_a_wider_one() {
    let groups = Groups::with("read", &usual());
    let group = groups.container();
    allow(&group, DISK, Access::READ).unwrap();
    assert!(groups.reads("c1") && !groups.writes("c1"));
    assert!(!groups.can("c1", "exec dd if=/dev/loop0 of=/dev/loop0 count=0 conv=notrunc"));
    let first = allow(&group, DISK, Access::READ_WRITE).unwrap();
    assert!(groups.writes("c1"));
    first.roll_back().unwrap();
    assert!(groups.reads("c1") && !groups.writes("c1"), "the rollback restores the earlier right");
    allow(&group, DISK, Access::READ_WRITE).unwrap();
    allow(&group, DISK, Access::READ).unwrap();
    assert!(
        groups.reads("c1") && !groups.writes("c1"),
        "a leftover right for the same number does not widen it"
    );
}

#[test]
fn hundreds_of_changes_leave_one_program_and_never_refuse_an_open() {
    let groups = Groups::with("flips", &usual());
    let before = groups.instructions("c1");
    let group = groups.container();
    let opener = groups.opens_null();
    for flip in 0..300 {
        let number = if flip % 2 == 0 { DISK } else { OTHER };
        allow(&group, number, Access::READ_WRITE).unwrap();
        assert_eq!(groups.ids("c1").len(), 1);
        group.revoke(number).unwrap();
        assert_eq!(groups.ids("c1").len(), 1);
    }
    assert!(opener.stop() > 300, "the loop ran during the changes");
    assert_eq!(groups.instructions("c1"), before);
}

#[test]
fn several_volumes_share_one_prologue() {
    let groups = Groups::with("stack", &usual());
    let group = groups.container();
    let length = || groups.instructions("c1")[0].len();
    let alone = length();
    for minor in 0..32 {
        allow(&group, DeviceNumber { major: 8, minor }, Access::READ_WRITE).unwrap();
    }
    assert_eq!(length(), alone + 4 + 32 * 7);
    for minor in (0..32).rev().step_by(2).chain((0..32).step_by(2)) {
        let number = DeviceNumber { major: 8, minor };
        assert_eq!(group.revoke(number).unwrap(), Access::READ_WRITE);
        assert!(!group.allows(number, Access::READ).unwrap());
    }
    assert_eq!(length(), alone);
}

#[test]
fn without_a_program_none_is_attached() {
    let groups = Groups::new("none");
    let group = groups.container();
    assert!(group.programs().unwrap().is_empty());
    group.check().unwrap();
    let grant = allow(&group, DISK, Access::READ_WRITE).unwrap();
    assert!(grant.allowed_before && grant.added.is_empty() && groups.reads("c1"));
    assert!(group.revoke(DISK).unwrap().is_empty());
    assert!(group.programs().unwrap().is_empty());
}

#[test]
fn a_right_that_the_program_grants_is_kept() {
    let groups = Groups::with("own", &with_rule((BLOCK, 2, Some(7), None, true)));
    let group = groups.container();
    let ids = groups.ids("c1");
    let grant = allow(&group, DISK, Access::READ).unwrap();
    assert!(grant.allowed_before && grant.added.is_empty());
    assert_eq!(groups.ids("c1"), ids);
    let more = allow(&group, DISK, Access::READ_WRITE).unwrap();
    assert!(!more.allowed_before && groups.writes("c1"));
    group.revoke(DISK).unwrap();
    assert!(groups.reads("c1") && !groups.writes("c1"));
}

#[test]
fn every_program_of_the_cgroup_is_changed_as_needed() {
    let groups = Groups::with("two", &usual());
    groups.attach("c1", &program(Runtime::Systemd, &USUAL));
    groups.attach("c1", &constant(1));
    let (before, ids) = (groups.instructions("c1"), groups.ids("c1"));
    let grant = allow(&groups.container(), DISK, Access::READ_WRITE).unwrap();
    assert!(groups.reads("c1") && !grant.allowed_before);
    assert_eq!(
        (groups.ids("c1").len(), groups.ids("c1")[2]),
        (3, ids[2]),
        "the third program already allows it"
    );
    grant.roll_back().unwrap();
    assert_eq!(groups.instructions("c1"), before);
}

#[test]
fn a_reload_removes_the_right_and_the_next_attach_restores_it() {
    let groups = Groups::with("reload", &usual());
    let group = groups.container();
    allow(&group, DISK, Access::READ_WRITE).unwrap();
    groups.replace(&usual());
    assert!(!group.allows(DISK, Access::READ_WRITE).unwrap() && !groups.reads("c1"));
    assert!(!allow(&group, DISK, Access::READ_WRITE).unwrap().added.is_empty());
    assert!(groups.reads("c1"));
    assert_eq!(groups.ids("c1").len(), 1);
}

#[test]
fn concurrent_allows_are_all_kept() {
    let groups = Groups::with("both", &usual());
    std::thread::scope(|scope| {
        for minor in 0..8 {
            let group = groups.container();
            scope.spawn(move || {
                allow(&group, DeviceNumber { major: 8, minor }, Access::READ).unwrap()
            });
        }
    });
    let group = groups.container();
    assert!(
        (0..8).all(|minor| group.allows(DeviceNumber { major: 8, minor }, Access::READ).unwrap())
    );
}

#[test]
fn a_removed_cgroup_needs_no_rollback_and_no_revoke() {
    let groups = Groups::with("gone", &usual());
    let group = groups.container();
    let grant = allow(&group, DISK, Access::READ).unwrap();
    fs::remove_dir(groups.path("c1")).unwrap();
    grant.roll_back().unwrap();
    assert!(group.revoke(DISK).unwrap().is_empty());
    assert!(allow(&group, DISK, Access::READ).is_err());
}
