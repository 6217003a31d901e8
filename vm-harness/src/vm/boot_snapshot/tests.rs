//! Tests of the directory of saved guests.

use super::*;
use crate::{Cgroup, Environment, Protocol, SharedDirectory};

/// A directory with an image and a QEMU, neither of which is ever started.
struct Fixture {
    directory: tempfile::TempDir,
    environment: Environment,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["vmlinux", "initramfs.cpio", "qemu"] {
            fs::write(directory.path().join(name), name).unwrap();
        }
        let mut environment = Environment::from_variables();
        environment.qemu = directory.path().join("qemu");
        environment.restore = true;
        Self { directory, environment }
    }

    fn boot<'a>(&'a self, machine: &'a Machine) -> BootOptions<'a> {
        let (environment, image) = (&self.environment, self.directory.path());
        BootOptions { environment, image, machine, accelerator: Accelerator::Tcg }
    }

    fn snapshots(&self) -> BootSnapshots {
        BootSnapshots::new(self.directory.path())
    }
}

#[test]
fn one_process_makes_a_file_and_others_find_it_when_it_is_complete() {
    let (fixture, machine) = (Fixture::new(), Machine::default());
    let (snapshots, boot) = (fixture.snapshots(), fixture.boot(&machine));
    let Lookup::Absent(writer) = snapshots.find(boot) else { panic!("the first process makes it") };
    fs::write(writer.part(), "half").unwrap();
    let other = snapshots.find(boot);
    assert!(
        matches!(&other, Lookup::Unsuitable(reason) if reason.contains("another process")),
        "{other:?}"
    );
    let file = writer.finish().unwrap();
    assert!(matches!(snapshots.find(boot), Lookup::Found(found) if found == file));
}

#[test]
fn incomplete_file_of_a_killed_process_is_not_used() {
    let (fixture, machine) = (Fixture::new(), Machine::default());
    let (snapshots, boot) = (fixture.snapshots(), fixture.boot(&machine));
    let Lookup::Absent(writer) = snapshots.find(boot) else { panic!("the first process makes it") };
    fs::write(writer.part(), "half").unwrap();
    drop(writer);
    assert!(matches!(snapshots.find(boot), Lookup::Absent(_)), "the next process makes it");
}

#[test]
fn every_change_of_an_input_gives_the_file_another_name() {
    let (fixture, machine) = (Fixture::new(), Machine::default());
    let mut names = vec![key(fixture.boot(&machine)).unwrap()];
    assert_eq!(key(fixture.boot(&machine)).unwrap(), names[0]);
    let v1 = Machine { cgroup: Cgroup::V1, ..Machine::default() };
    names.push(key(fixture.boot(&v1)).unwrap());
    for name in ["vmlinux", "initramfs.cpio", "qemu"] {
        fs::write(fixture.directory.path().join(name), "changed").unwrap();
        names.push(key(fixture.boot(&machine)).unwrap());
    }
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count, "{names:?}");
}

#[test]
fn guest_that_cannot_be_saved_is_booted_until_its_note_is_removed() {
    let (fixture, machine) = (Fixture::new(), Machine::default());
    let (snapshots, boot) = (fixture.snapshots(), fixture.boot(&machine));
    drop(snapshots.find(boot));
    snapshots.give_up(boot, "no hot-plug\nand the console's last lines");
    let found = snapshots.find(boot);
    let Lookup::Unsuitable(reason) = found else { panic!("{found:?}") };
    assert!(reason.starts_with("no hot-plug; remove "), "{reason}");
    let note = reason.split_whitespace().find(|word| word.ends_with(".given-up")).unwrap();
    fs::remove_file(note).unwrap();
    assert!(matches!(snapshots.find(boot), Lookup::Absent(_)));
}

#[test]
fn only_the_newest_files_are_kept() {
    let fixture = Fixture::new();
    let snapshots = fixture.snapshots();
    let path = |name: &str| snapshots.directory.join(name);
    fs::create_dir_all(&snapshots.directory).unwrap();
    for number in 0..KEPT + 3 {
        let file = File::create(path(&format!("{number:02}.state"))).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(number as u64)).unwrap();
    }
    fs::write(path("other.lock"), "").unwrap();
    snapshots.remove_oldest().unwrap();
    let left = fs::read_dir(&snapshots.directory).unwrap().count();
    assert_eq!(left, KEPT - 1 + 1, "one file less than may be kept, and the lock");
    assert!(!path("03.state").exists() && path("04.state").exists());
}

#[test]
fn unusual_guests_and_guests_under_kvm_are_booted() {
    let (mut fixture, machine) = (Fixture::new(), Machine::default());
    assert_eq!(unsuitable(fixture.boot(&machine)), None);
    let kvm = BootOptions { accelerator: Accelerator::Kvm, ..fixture.boot(&machine) };
    assert!(unsuitable(kvm).is_some());
    let kernel_parameters = vec!["quiet".to_owned()];
    let share = SharedDirectory { path: "/srv".into(), protocol: Protocol::NineP };
    for unusual in [
        Machine { memory: 768, ..Machine::default() },
        Machine { kernel_parameters, ..Machine::default() },
        Machine { share: Some(share), ..Machine::default() },
    ] {
        assert!(unsuitable(fixture.boot(&unusual)).is_some(), "{unusual:?}");
    }
    fixture.environment.restore = false;
    assert!(unsuitable(fixture.boot(&machine)).is_some());
}
