//! Block devices in a sysfs of files, and the root's in the real one.

use std::os::unix::fs::symlink;

use nix::sys::stat::makedev;

use super::*;

/// A sysfs of files. Its directories are arranged as the kernel arranges them.
pub(crate) struct FakeSysfs(tempfile::TempDir);

impl FakeSysfs {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["dev/block", "block", "devices"] {
            fs::create_dir_all(directory.path().join(name)).unwrap();
        }
        Self(directory)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn write(&self, file: &str, text: impl AsRef<[u8]>) {
        let file = self.path().join("devices").join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    fn add(&self, place: &str, number: (u64, u64)) -> u64 {
        let name = place.rsplit('/').next().unwrap();
        self.write(&format!("{place}/dev"), format!("{}:{}\n", number.0, number.1));
        self.write(&format!("{place}/uevent"), format!("MAJOR=1\nDEVNAME={name}\nDEVTYPE=disk\n"));
        let link = self.path().join(format!("dev/block/{}:{}", number.0, number.1));
        symlink(format!("../../devices/{place}"), link).unwrap();
        makedev(number.0, number.1)
    }

    /// Adds the disk `name`.
    pub(crate) fn disk(&self, name: &str, number: (u64, u64)) -> u64 {
        symlink(format!("../devices/{name}"), self.path().join("block").join(name)).unwrap();
        self.add(name, number)
    }

    /// Adds a partition of `disk`, in sectors.
    pub(crate) fn partition(&self, disk: &str, name: &str, number: (u64, u64), start: u64) -> u64 {
        for (file, value) in [("partition", 1), ("start", start), ("size", 2048)] {
            self.write(&format!("{disk}/{name}/{file}"), format!("{value}\n"));
        }
        self.add(&format!("{disk}/{name}"), number)
    }

    /// Puts the device `upper` on top of `lower`, which is a disk, or a disk and a partition.
    pub(crate) fn build(&self, upper: &str, lower: &str) {
        let slaves = self.path().join("devices").join(upper).join("slaves");
        fs::create_dir_all(&slaves).unwrap();
        let name = lower.rsplit('/').next().unwrap();
        symlink(format!("../../../devices/{lower}"), slaves.join(name)).unwrap();
    }

    fn find(&self, number: u64) -> BlockDevice {
        BlockDevice::find(self.path(), number).unwrap()
    }
}

fn numbers(devices: io::Result<Vec<BlockDevice>>) -> Vec<u64> {
    let mut numbers: Vec<_> = devices.unwrap().iter().map(|device| device.number).collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn a_partition_has_a_disk_and_a_range_of_its_bytes() {
    let sysfs = FakeSysfs::new();
    let disk = sysfs.disk("sda", (8, 0));
    let part = sysfs.find(sysfs.partition("sda", "sda1", (8, 1), 2048));
    assert_eq!(part.disk().unwrap().number, disk);
    assert_eq!(part.range().unwrap(), 1 << 20..2 << 20);
    assert_eq!(part.node().unwrap(), Path::new("/dev/sda1"));
    let disk = sysfs.find(disk);
    assert_eq!((disk.disk().unwrap(), disk.range().unwrap()), (disk.clone(), 0..u64::MAX));
}

#[test]
fn the_devices_below_a_partition_are_those_below_its_disk() {
    let sysfs = FakeSysfs::new();
    let lower = [sysfs.disk("sda", (8, 0)), sysfs.disk("sdb", (8, 16))];
    let md = sysfs.disk("md0", (9, 0));
    let part = sysfs.partition("md0", "md0p1", (259, 0), 8);
    sysfs.build("md0", "sda");
    sysfs.build("md0", "sdb");
    assert_eq!(numbers(sysfs.find(md).slaves()), lower);
    assert_eq!(numbers(sysfs.find(part).slaves()), lower);
    assert_eq!(numbers(sysfs.find(lower[0]).slaves()), [0; 0]);
}

#[test]
fn a_device_below_that_cannot_be_read_is_an_error() {
    let sysfs = FakeSysfs::new();
    let dm = sysfs.disk("dm-0", (253, 0));
    sysfs.build("dm-0", "gone");
    assert!(sysfs.find(dm).slaves().is_err());
    sysfs.write("gone/dev", "no number\n");
    assert!(sysfs.find(dm).slaves().is_err());
    assert!(BlockDevice::find(sysfs.path(), makedev(8, 0)).is_err());
}

#[test]
fn disks_with_one_designator_are_one_disk() {
    let sysfs = FakeSysfs::new();
    let names = [
        ("sda", "naa.600A098038303053\n"),
        ("sdb", "naa.600a098038303053\n"),
        ("sdc", "naa.600a098038303054\n"),
        ("sdd", "t10.ATA     QEMU HARDDISK  1\n"),
        ("sde", "t10.ATA     QEMU HARDDISK  1\n"),
        ("sdf", "naa.0000000000000000\n"),
        ("sdg", "naa.0000000000000000\n"),
        ("sdh", "\n"),
    ];
    let disks: Vec<_> = (0..)
        .zip(names)
        .map(|(index, (name, designator))| {
            sysfs.write(&format!("{name}/device/wwid"), designator);
            sysfs.disk(name, (8, 16 * index))
        })
        .collect();
    let nvme = ["nvme0n1", "nvme1n1"].map(|name| {
        sysfs.write(&format!("{name}/wwid"), "eui.0025385a71b00001\n");
        sysfs.disk(name, (259, if name == "nvme0n1" { 0 } else { 1 }))
    });
    let named = named_disks(sysfs.path()).unwrap();
    let others = |number| numbers(sysfs.find(number).other_paths(|| Ok(&named)));
    assert_eq!((others(disks[0]), others(disks[1])), (vec![disks[1]], vec![disks[0]]));
    for &alone in &disks[2..] {
        assert_eq!(others(alone), [0; 0]);
    }
    assert_eq!(others(nvme[0]), [nvme[1]]);
}

#[test]
fn the_other_path_to_a_partition_is_the_same_partition_or_the_disk() {
    let sysfs = FakeSysfs::new();
    let _disk = sysfs.disk("sda", (8, 0));
    let first = sysfs.partition("sda", "sda1", (8, 1), 2048);
    let second = sysfs.partition("sda", "sda2", (8, 2), 4096);
    let other = sysfs.disk("sdb", (8, 16));
    let same = sysfs.partition("sdb", "sdb1", (8, 17), 2048);
    for name in ["sda", "sdb"] {
        sysfs.write(&format!("{name}/device/wwid"), "naa.600a098038303053\n");
    }
    let named = named_disks(sysfs.path()).unwrap();
    let others = |number| numbers(sysfs.find(number).other_paths(|| Ok(&named)));
    assert_eq!((others(first), others(second)), (vec![same], vec![other]));
}

#[test]
fn the_device_of_the_root_is_found_in_the_real_sysfs() {
    use std::os::unix::fs::MetadataExt;
    let root = BlockDevice::find(Path::new("/sys"), fs::metadata("/").unwrap().dev()).unwrap();
    assert_eq!(fs::metadata(root.node().unwrap()).unwrap().rdev(), root.number);
    assert!(root.disk().unwrap().slaves().is_ok() && named_disks(Path::new("/sys")).is_ok());
}

#[test]
fn a_use_of_a_disk_conflicts_with_one_of_its_partitions_and_not_with_a_sibling() {
    let sysfs = FakeSysfs::new();
    let disk = sysfs.disk("sda", (8, 0));
    let parts = [(1, 2048), (2, 4096)]
        .map(|(minor, start)| sysfs.partition("sda", &format!("sda{minor}"), (8, minor), start));
    assert_eq!(numbers(sysfs.find(disk).family()), [disk, parts[0], parts[1]]);
    assert_eq!(numbers(sysfs.find(parts[1]).family()), [disk, parts[1]]);
    // What cannot be read is not taken for a disk without partitions.
    sysfs.write("sda/sda2/dev", b"\xff");
    assert!(sysfs.find(disk).family().is_err());
}

#[test]
fn a_number_without_a_device_is_told_from_a_sysfs_that_is_not_there() {
    let sysfs = FakeSysfs::new();
    let absent = makedev(4095, 7);
    assert_eq!(BlockDevice::find_any(sysfs.path(), absent).unwrap(), None);
    assert!(BlockDevice::find_any(&sysfs.path().join("absent"), absent).is_err());
}
