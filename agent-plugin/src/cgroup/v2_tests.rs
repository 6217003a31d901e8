//! Another process changes the program between our read and our change. Needs root and cgroup2.

#[path = "../../tests/runtimes/mod.rs"]
mod runtimes;

use std::{fs, path::PathBuf};

use super::*;
use crate::cgroup::hierarchy::Hierarchies;
use runtimes::{ALLOW_MULTI, Runtime, USUAL, load, program, replace};

const DISK: DeviceNumber = DeviceNumber { major: 8, minor: 16 };

struct Fixture {
    group: Group,
    path: PathBuf,
}

impl Fixture {
    fn new(test: &str) -> Fixture {
        let root = Hierarchies::mounted().unwrap().unified.expect("cgroup2 is mounted");
        let name = PathBuf::from(format!("ecr-test-{}-{test}", std::process::id()));
        let path = root.join(&name);
        fs::create_dir(&path).unwrap();
        let fixture = Fixture { group: Group::new(&root, &name), path };
        runtimes::attach(&fixture.group.open().unwrap(), &load(&usual()), ALLOW_MULTI);
        fixture
    }

    fn ids(&self) -> Vec<u32> {
        self.group.programs().unwrap()
    }

    /// Replaces the program, as a runtime does for new rules.
    fn reload(&self) {
        replace(&self.group.open().unwrap(), &load(&usual()), self.ids()[0]);
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            eprintln!("{} is not removed: {error}", self.path.display());
        }
    }
}

fn usual() -> Vec<Instruction> {
    program(Runtime::Crun, &USUAL)
}

#[test]
fn a_program_that_changes_between_read_and_change_is_read_again() {
    let fixture = Fixture::new("underneath");
    let mut needs = Vec::new();
    fixture
        .group
        .change(DISK, Access::READ, &mut |_, needed| {
            needs.push(needed);
            if needs.len() == 1 {
                fixture.reload();
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(needs, [true, true, false], "failed, done, read back");
    assert!(fixture.group.allows(DISK, Access::READ).unwrap());
}

#[test]
fn a_program_that_changes_every_time_is_an_error() {
    let fixture = Fixture::new("always");
    let error = fixture
        .group
        .change(DISK, Access::READ, &mut |_, _| {
            fixture.reload();
            Ok(())
        })
        .unwrap_err();
    let expected = format!("the device filter of cgroup /{}", fixture.group.path.display());
    assert!(error.message().starts_with(&expected), "{}", error.message());
    assert!(!fixture.group.allows(DISK, Access::READ).unwrap(), "the runtime's program decides");
    assert_eq!(fixture.ids().len(), 1);
}
