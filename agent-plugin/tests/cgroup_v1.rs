//! The device filter in real cgroups of cgroup v1. Needs root and the devices controller below
//! /sys/fs/cgroup/devices (hybrid or v1).

mod container;
mod runtimes;

use std::{fs, io, path::PathBuf, process::Command, sync::Arc};

use agent_plugin::{
    DeviceRule, Result,
    block::DeviceNumber,
    cgroup::{Access, Filter, Grant, Mode, hierarchy::Hierarchies},
};
use container::{Fixture, needs_root, start_in};

const HIERARCHY: &str = "/sys/fs/cgroup/devices";
const DISK: DeviceNumber = DeviceNumber { major: 7, minor: 0 };

/// A pod's cgroup that denies everything, with containers' cgroups in it, as kata-agent makes
/// them.
struct Groups {
    pod: PathBuf,
    name: String,
}

impl Groups {
    fn new(test: &str) -> Groups {
        needs_root();
        let name = format!("ecr-test-{}-{test}", std::process::id());
        let groups = Groups { pod: PathBuf::from(HIERARCHY).join(&name), name };
        fs::create_dir(&groups.pod)
            .unwrap_or_else(|error| panic!("cgroup v1 devices at {HIERARCHY}: {error}"));
        fs::write(groups.pod.join("devices.deny"), "a").unwrap();
        fs::write(groups.pod.join("devices.allow"), "b *:* m").unwrap();
        for child in ["c1", "sibling", "c1/nested", "c1/nested/deeper"] {
            fs::create_dir(groups.pod.join(child)).unwrap();
        }
        groups
    }

    fn list(&self, group: &str) -> Vec<String> {
        let text = fs::read_to_string(self.pod.join(group).join("devices.list")).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    fn write(&self, file: &str, rule: &str) {
        fs::write(self.pod.join(file), rule).unwrap();
    }

    fn container(&self, rules: Vec<DeviceRule>) -> Fixture {
        start_in("", &PathBuf::from(format!("/{}/c1", self.name)), rules)
    }

    /// Whether a process in the cgroup can open the disk. Asserts that a failure comes from the
    /// filter.
    fn opens(&self, group: &str) -> bool {
        let script = format!(
            "echo $$ >{}/{group}/cgroup.procs; exec dd if=/dev/loop0 count=0",
            self.pod.display()
        );
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() || error.contains("Operation not permitted"), "{error}");
        output.status.success()
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for child in ["c1/nested/deeper", "c1/nested", "c1", "sibling", ""] {
            match fs::remove_dir(self.pod.join(child)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    eprintln!("cannot remove {child:?}: {error}")
                }
                _ => {}
            }
        }
    }
}

fn allow(filter: &Filter<'_>, rights: Access) -> Result<Grant> {
    let mut grant = Grant::default();
    filter.allow(DISK, rights, &mut grant).map(|()| grant)
}

const WITHOUT: [&str; 1] = ["b *:* m"];
const READ_WRITE: [&str; 2] = ["b *:* m", "b 7:0 rw"];

#[test]
fn allow_goes_from_the_pod_down_and_revoke_from_the_container_up() {
    let groups = Groups::new("down");
    let container = groups.container(Vec::new());
    let filter = Filter::of(&container.target).unwrap();
    assert_eq!(filter.mode(), Mode::V1);
    filter.check().unwrap();
    assert!(!filter.allows(DISK, Access::READ).unwrap() && !groups.opens("c1"));

    let grant = allow(&filter, Access::READ_WRITE).unwrap();
    assert!(!grant.allowed_before);
    for group in ["", "c1", "c1/nested", "c1/nested/deeper"] {
        assert_eq!(groups.list(group), READ_WRITE, "{group:?}");
    }
    assert_eq!(groups.list("sibling"), WITHOUT);
    assert!(groups.opens("c1") && groups.opens("c1/nested/deeper") && !groups.opens("sibling"));

    assert!(!filter.revoke(DISK).unwrap().is_empty());
    for group in ["c1", "c1/nested", "c1/nested/deeper"] {
        assert_eq!(groups.list(group), WITHOUT, "{group:?}");
    }
    assert!(!groups.opens("c1"));
    assert_eq!(groups.list(""), WITHOUT, "no other container of the pod has it");
    assert!(filter.revoke(DISK).unwrap().is_empty(), "a second revoke changes nothing");
}

#[test]
fn the_pod_keeps_what_another_container_has() {
    let groups = Groups::new("sibling");
    let container = groups.container(Vec::new());
    let filter = Filter::of(&container.target).unwrap();
    allow(&filter, Access::READ_WRITE).unwrap();
    groups.write("sibling/devices.allow", "b 7:0 r");
    assert_eq!(filter.revoke(DISK).unwrap(), Access::READ_WRITE);
    assert_eq!(groups.list("c1"), WITHOUT);
    for group in ["", "sibling"] {
        assert_eq!(groups.list(group), ["b *:* m", "b 7:0 r"], "{group:?}");
    }
    assert!(groups.opens("sibling") && !groups.opens("c1"));
    groups.write("sibling/devices.deny", "b 7:0 r");
    filter.revoke(DISK).unwrap();
    assert_eq!(groups.list(""), WITHOUT, "the last one has lost it");
}

#[test]
fn the_survivors_of_a_stopped_container_lose_the_access() {
    let groups = Groups::new("survivors");
    let container = groups.container(Vec::new());
    let cgroup = container.target.container.cgroup.clone();
    allow(&Filter::of(&container.target).unwrap(), Access::READ_WRITE).unwrap();
    drop(container);
    assert!(groups.opens("c1"));
    let filter = Filter::of_group(&cgroup, &[]).unwrap().expect("its group is still there");
    assert_eq!(filter.revoke(DISK).unwrap(), Access::READ_WRITE);
    assert!(!groups.opens("c1"));
    for group in ["", "c1"] {
        assert_eq!(groups.list(group), WITHOUT, "{group:?}");
    }
    assert!(Filter::of_group(&cgroup.join("gone"), &[]).unwrap().is_none());
}

#[test]
fn the_pod_of_a_group_that_is_gone_loses_the_access() {
    let groups = Groups::new("pod");
    let container = groups.container(Vec::new());
    let filter = Filter::of(&container.target).unwrap();
    allow(&filter, Access::READ).unwrap();
    for child in ["c1/nested/deeper", "c1/nested", "c1"] {
        fs::remove_dir(groups.pod.join(child)).unwrap();
    }
    assert!(filter.revoke(DISK).unwrap().is_empty());
    assert_eq!(groups.list(""), WITHOUT);
}

#[test]
fn the_rollback_removes_only_what_was_added() {
    let groups = Groups::new("rollback");
    let container = groups.container(Vec::new());
    let filter = Filter::of(&container.target).unwrap();
    let first = allow(&filter, Access::READ_WRITE).unwrap();
    let repeated = allow(&filter, Access::READ_WRITE).unwrap();
    assert!(
        repeated.added.is_empty() && !repeated.allowed_before,
        "a rule of our own is not a right from elsewhere"
    );
    repeated.roll_back().unwrap();
    assert_eq!(groups.list("c1"), READ_WRITE);
    first.roll_back().unwrap();
    assert_eq!(groups.list("c1"), WITHOUT);
    assert_eq!(groups.list(""), WITHOUT, "after a failed attempt the pod keeps nothing either");
}

#[test]
fn changes_before_a_failure_are_known_and_rolled_back() {
    let groups = Groups::new("incomplete");
    let mut container = groups.container(Vec::new());
    let cgroup = &mut Arc::get_mut(&mut container.target.container).unwrap().cgroup;
    cgroup.push("gone");
    let filter = Filter::of(&container.target).unwrap();
    let mut grant = Grant::default();
    filter.allow(DISK, Access::READ_WRITE, &mut grant).unwrap_err();
    assert_eq!(groups.list("c1"), READ_WRITE, "the failure came after the first group");
    grant.roll_back().unwrap();
    assert_eq!(groups.list("c1"), WITHOUT);
    assert_eq!(groups.list(""), WITHOUT);
}

#[test]
fn read_only_is_not_widened_by_a_leftover_rule_for_the_same_number() {
    let groups = Groups::new("stale");
    groups.write("devices.allow", "b 7:0 rw");
    groups.write("c1/devices.allow", "b 7:0 rw");
    let container = groups.container(Vec::new());
    allow(&Filter::of(&container.target).unwrap(), Access::READ).unwrap();
    assert_eq!(groups.list("c1"), ["b *:* m", "b 7:0 r"]);
}

#[test]
fn a_right_from_the_specification_is_kept() {
    let groups = Groups::new("specification");
    groups.write("devices.allow", "b 7:0 r");
    groups.write("c1/devices.allow", "b 7:0 r");
    let rule = DeviceRule {
        allow: true,
        kind: 'b',
        major: Some(7),
        minor: Some(0),
        access: "r".to_owned(),
    };
    let container = groups.container(vec![rule]);
    let filter = Filter::of(&container.target).unwrap();
    assert!(allow(&filter, Access::READ).unwrap().allowed_before);
    assert!(!allow(&filter, Access::READ_WRITE).unwrap().allowed_before);
    assert_eq!(groups.list("c1"), READ_WRITE);
    assert!(!filter.revoke(DISK).unwrap().is_empty());
    assert_eq!(groups.list("c1"), ["b *:* m", "b 7:0 r"]);
}

#[test]
fn a_container_that_may_open_everything_is_not_changed() {
    let groups = Groups::new("all");
    groups.write("devices.allow", "b *:* rwm");
    groups.write("c1/devices.allow", "b *:* rwm");
    let container = groups.container(Vec::new());
    let filter = Filter::of(&container.target).unwrap();
    let grant = allow(&filter, Access::READ_WRITE).unwrap();
    assert!(grant.allowed_before && grant.added.is_empty());
    assert!(filter.revoke(DISK).unwrap().is_empty());
    assert_eq!(groups.list("c1"), ["b *:* rwm"]);
}

#[test]
fn a_removed_cgroup_needs_no_rollback_and_no_revoke() {
    let groups = Groups::new("gone");
    let container = groups.container(Vec::new());
    let filter = Filter::of(&container.target).unwrap();
    let grant = allow(&filter, Access::READ_WRITE).unwrap();
    for child in ["c1/nested/deeper", "c1/nested", "c1"] {
        fs::remove_dir(groups.pod.join(child)).unwrap();
    }
    grant.roll_back().unwrap();
    assert!(filter.revoke(DISK).unwrap().is_empty());
    assert!(allow(&filter, Access::READ_WRITE).is_err());
}

#[test]
fn the_root_group_is_never_changed() {
    let container = start_in("", &PathBuf::from("/"), Vec::new());
    let before = fs::read_to_string(format!("{HIERARCHY}/devices.list")).unwrap();
    let filter = Filter::of(&container.target).unwrap();
    let grant = allow(&filter, Access::READ_WRITE).unwrap();
    assert!(grant.allowed_before && grant.added.is_empty(), "the root group allows everything");
    assert!(filter.revoke(DISK).unwrap().is_empty());
    assert_eq!(fs::read_to_string(format!("{HIERARCHY}/devices.list")).unwrap(), before);
}

#[test]
fn on_a_hybrid_system_the_list_is_changed_and_programs_are_checked() {
    let Some(unified) = Hierarchies::mounted().unwrap().unified else {
        eprintln!("not a hybrid system: there are no programs besides the list");
        return;
    };
    let groups = Groups::new("hybrid");
    let container = groups.container(Vec::new());
    let other = unified.join(&groups.name);
    fs::create_dir(&other).unwrap();
    let directory = fs::File::open(&other).unwrap();
    runtimes::attach(&directory, &runtimes::load(&runtimes::constant(1)), runtimes::ALLOW_MULTI);
    fs::write(other.join("cgroup.procs"), container.pid().to_string()).unwrap();
    let filter = Filter::of(&container.target).unwrap();
    assert_eq!((filter.mode(), filter.programs().len()), (Mode::V1, 1));
    filter.check().unwrap();
    let grant = allow(&filter, Access::READ_WRITE).unwrap();
    assert!(!grant.allowed_before && filter.allows(DISK, Access::READ_WRITE).unwrap());
    assert_eq!(groups.list("c1"), READ_WRITE);
    assert!(!filter.revoke(DISK).unwrap().is_empty());

    runtimes::attach(&directory, &runtimes::load(&runtimes::constant(0)), runtimes::ALLOW_MULTI);
    let filter = Filter::of(&container.target).unwrap();
    let refused = filter.check().unwrap_err().message();
    assert!(refused.contains(&format!("of cgroup /{} refuses disks", groups.name)), "{refused}");
    assert!(allow(&filter, Access::READ).is_err());
    assert_eq!(groups.list("c1"), WITHOUT, "the list is not changed either");
    drop(container);
    fs::remove_dir(other).unwrap();
}
