//! The layers of sources in a sysfs of files, and conflicts over real files.

use std::{os::fd::AsFd, process::Command};

use nix::sys::stat::makedev;

use super::{
    super::{block_device::tests::FakeSysfs, holders::loop_device::Backing},
    *,
};

const MIB: u64 = 1 << 20;

fn search() -> Search {
    Search::until(crate::Deadline::after(std::time::Duration::from_secs(30)))
}

fn loop_over(minor: u64, file_id: FileId, range: Range<u64>) -> LoopDevice {
    let (name, number) = (format!("loop{minor}"), makedev(7, minor));
    let backing = Some(Backing { file_id, range, is_certain: true });
    LoopDevice { name, number, path: "/images/a".into(), backing }
}

/// Returns what each layer is, which bytes of it the source has, and how it is reached.
fn found(
    sysfs: &FakeSysfs,
    loops: &[LoopDevice],
    source: u64,
) -> Vec<(FileId, Range<u64>, String)> {
    let system = System::new(sysfs.path(), loops.to_vec());
    let layers = layers(&system, FileId::Block(source)).unwrap();
    layers.into_iter().map(|layer| (layer.file_id, layer.range, layer.chain.to_string())).collect()
}

#[test]
fn a_loop_device_over_a_loop_device_is_followed_to_the_image() {
    let sysfs = FakeSysfs::new();
    let lower = sysfs.disk("loop0", (7, 0));
    let upper = sysfs.disk("loop1", (7, 1));
    let image = FileId::File(1, 2);
    let loops =
        [loop_over(0, image, MIB..u64::MAX), loop_over(1, FileId::Block(lower), 2 * MIB..3 * MIB)];
    assert_eq!(
        found(&sysfs, &loops, upper),
        [
            (FileId::Block(upper), 0..u64::MAX, String::new()),
            (FileId::Block(lower), 2 * MIB..3 * MIB, " is over /dev/loop0, which".into()),
            (image, 3 * MIB..4 * MIB, " is over /dev/loop0, over /images/a, which".into()),
        ]
    );
}

#[test]
fn a_partition_has_its_own_part_of_the_image_only() {
    let sysfs = FakeSysfs::new();
    sysfs.disk("loop0", (7, 0));
    let part = sysfs.partition("loop0", "loop0p1", (259, 0), 2048);
    let image = FileId::File(1, 2);
    let layers = found(&sysfs, &[loop_over(0, image, 0..u64::MAX)], part);
    assert_eq!(layers[1], (image, MIB..2 * MIB, " is over /images/a, which".into()));
}

#[test]
fn mappings_are_followed_through_all_levels_once() {
    let sysfs = FakeSysfs::new();
    let upper = sysfs.disk("dm-1", (253, 1));
    let [left, right] = ["dm-0", "md0"].map(|name| {
        let number = sysfs.disk(name, (if name == "md0" { 9 } else { 253 }, 0));
        sysfs.build("dm-1", name);
        number
    });
    let disk = sysfs.disk("sda", (8, 0));
    let part = sysfs.partition("sda", "sda1", (8, 1), 2048);
    sysfs.build("dm-0", "sda/sda1");
    sysfs.build("md0", "sda/sda1");
    let mut numbers: Vec<_> =
        found(&sysfs, &[], upper).into_iter().map(|(file_id, ..)| file_id).collect();
    numbers[1..].sort_by_key(|file_id| match file_id {
        FileId::Block(number) | FileId::File(number, _) => *number,
    });
    let mut expected = [left, right, part];
    expected.sort_unstable();
    assert_eq!(numbers[1..], expected.map(FileId::Block));
    assert!(!numbers.contains(&FileId::Block(disk)), "its partition stands for it");
}

#[test]
fn the_paths_below_a_multipath_device_are_not_looked_at_as_other_paths() {
    let sysfs = FakeSysfs::new();
    let upper = sysfs.disk("dm-0", (253, 0));
    for (name, minor) in [("sda", 0), ("sdb", 16), ("sdc", 32)] {
        sysfs.disk(name, (8, minor));
        sysfs.write(&format!("{name}/device/wwid"), "naa.600a098038303053\n");
    }
    sysfs.build("dm-0", "sda");
    sysfs.build("dm-0", "sdb");
    let layers = layers(&System::new(sysfs.path(), vec![]), FileId::Block(upper)).unwrap();
    let reached = |minor| {
        let number = FileId::Block(makedev(8, minor));
        layers
            .iter()
            .filter(|layer| layer.file_id == number)
            .map(|layer| layer.reached)
            .collect::<Vec<_>>()
    };
    assert_eq!(reached(0), [Reached::BelowClaim]);
    assert_eq!(reached(16), [Reached::BelowClaim]);
    assert_eq!(reached(32), [Reached::OtherPath], "a path without multipath");
}

#[test]
fn what_cannot_be_seen_is_not_taken_for_nothing() {
    let sysfs = FakeSysfs::new();
    let number = sysfs.disk("loop0", (7, 0));
    let image = FileId::File(1, 2);
    let uncertain = Some(Backing { file_id: image, range: 0..u64::MAX, is_certain: false });
    for backing in [None, uncertain] {
        let unseen = LoopDevice { backing, ..loop_over(0, image, 0..u64::MAX) };
        let conflict =
            layers(&System::new(sysfs.path(), vec![unseen]), FileId::Block(number)).unwrap_err();
        assert!(matches!(conflict.problem, Problem::Unchecked(_)), "{conflict:?}");
    }
    // A device that is not in sysfs.
    let conflict =
        layers(&System::new(sysfs.path(), vec![]), FileId::Block(makedev(8, 0))).unwrap_err();
    assert!(matches!(conflict.problem, Problem::Unchecked(_)), "{conflict:?}");
}

#[test]
fn layers_without_end_are_refused() {
    let sysfs = FakeSysfs::new();
    let number = sysfs.disk("loop0", (7, 0));
    // The kernel refuses such a loop device; each round has other bytes.
    let loops = vec![loop_over(0, FileId::Block(number), 1..u64::MAX)];
    let conflict = layers(&System::new(sysfs.path(), loops), FileId::Block(number)).unwrap_err();
    assert!(matches!(conflict.problem, Problem::Unchecked(_)), "{conflict:?}");
}

#[test]
fn loop_devices_over_other_bytes_of_the_file_do_not_conflict() {
    let image = FileId::File(1, 2);
    let layer = Layer {
        range: MIB..2 * MIB,
        reached: Reached::BelowLoop(makedev(7, 0)),
        ..Layer::source(image)
    };
    let above = |minor, range| layer.loops_above(&[loop_over(minor, image, range)]);
    assert_eq!(above(0, 0..u64::MAX), Ok(vec![]), "the source itself");
    assert_eq!(above(1, 0..MIB), Ok(vec![]));
    assert_eq!(above(1, 2 * MIB..u64::MAX), Ok(vec![]));
    let held = Err(Problem::Held(Holder::Loop("loop1".into())));
    assert_eq!((above(1, 0..MIB + 1), above(1, 0..u64::MAX)), (held.clone(), held));
}

#[test]
fn the_root_is_recognized_below_a_loop_device_and_its_disk_not_below_a_mapping() {
    use std::os::unix::fs::MetadataExt;
    let root = fs::metadata("/").unwrap().dev();
    let check = |number, reached| {
        Layer { reached, ..Layer::source(FileId::Block(number)) }.check(&search())
    };
    let below_loop = Reached::BelowLoop(makedev(7, 0));
    for reached in [below_loop, Reached::OtherPath, Reached::BelowClaim] {
        assert_eq!(check(root, reached), Err(Problem::Root), "{reached:?}");
    }
    let disk = BlockDevice::find(Path::new(SYSFS), root).unwrap().disk().unwrap().number;
    assert_eq!(check(disk, below_loop), Err(Problem::Root));
    // Other volumes of its volume group may be used.
    assert_eq!(check(makedev(4095, 7), Reached::BelowClaim), Ok(()));
}

#[test]
fn a_reader_conflicts_with_a_writer_and_a_writer_with_everyone() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let file_id = FileId::at(file.path()).unwrap();
    let found_with = |stdin: fs::File| {
        let mut child = Command::new("sleep").arg("60").stdin(stdin).spawn().unwrap();
        let sources = [true, false].map(|read_only| OpenSource {
            file_id,
            read_only,
            file: file.as_file().as_fd(),
            path: Some(file.path()),
        });
        let found = examine(&sources, &search());
        child.kill().unwrap();
        child.wait().unwrap();
        let child = Holder::Process(i32::try_from(child.id()).unwrap(), "sleep".into());
        found
            .into_iter()
            .map(|examined| {
                let child = Conflict::of_source(child.clone());
                examined.map_err(|conflict| assert_eq!(conflict, child)).is_err()
            })
            .collect()
    };
    let found: Vec<bool> = found_with(fs::File::open(file.path()).unwrap());
    assert_eq!(found, [false, true]);
    let found: Vec<bool> = found_with(file.reopen().unwrap());
    assert_eq!(found, [true, true]);
}
