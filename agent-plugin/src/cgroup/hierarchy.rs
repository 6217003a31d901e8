//! Where the cgroup hierarchies that decide about devices are mounted
//! ([cgroups(7)](https://man7.org/linux/man-pages/man7/cgroups.7.html),
//! [proc_pid_mountinfo(5)](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html)).
//!
//! The devices controller is a part of v1 alone; programs are attached to v2. On a hybrid system
//! both are mounted, and both decide.

use std::{
    ffi::OsString,
    fs,
    os::unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use crate::{
    error::{Error, Result},
    kernel_file,
    procfs::{cgroup::is_devices_unattached, mountinfo::MountLine},
};

/// Where v2 is mounted, on a system with v2 alone.
const USUAL: &str = "/sys/fs/cgroup";

/// The mount points.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hierarchies {
    /// v1, with the devices controller.
    pub devices: Option<PathBuf>,
    /// v2.
    pub unified: Option<PathBuf>,
}

impl Hierarchies {
    /// Finds the hierarchies that this process sees.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn mounted() -> Result<Hierarchies> {
        const MOUNTS: &str = "/proc/self/mountinfo";
        if is_unified(Path::new(USUAL)) && !devices_in_v1() {
            return Ok(Hierarchies { devices: None, unified: Some(USUAL.into()) });
        }
        let text = kernel_file::read(MOUNTS).map_err(Error::system("read", &MOUNTS))?;
        Ok(Hierarchies::parse(&text))
    }

    /// Finds them in the contents of a mountinfo. A later mount hides an earlier one.
    pub fn parse(text: &[u8]) -> Hierarchies {
        let mut found = Hierarchies::default();
        // Only a mount that shows the hierarchy's root shows all groups.
        for mount in MountLine::all(text).filter(|mount| mount.root == b"/") {
            let point = || Some(OsString::from_vec(mount.point()).into());
            match mount.file_system {
                b"cgroup2" => found.unified = point(),
                b"cgroup" if has_devices(mount.options) => {
                    found.devices = point();
                }
                _ => {}
            }
        }
        found
    }
}

/// Whether the options of a v1 hierarchy name the devices controller.
fn has_devices(options: &[u8]) -> bool {
    options.split(|&byte| byte == b',').any(|option| option == b"devices")
}

/// Whether v2 is mounted at `path` with its root. This and [`devices_in_v1`] decide for most
/// systems in a tenth of the time that reading every mount takes, and run for each volume. The root
/// of a hierarchy has the first inode.
fn is_unified(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC)
        && fs::metadata(path).is_ok_and(|found| found.ino() == 1)
}

/// Whether the devices controller may be a part of a v1 hierarchy. Where the kernel does not show
/// it, it may.
fn devices_in_v1() -> bool {
    kernel_file::read("/proc/cgroups").map_or(true, |text| !is_devices_unattached(&text))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const V1: &str =
        "33 28 0:29 / /sys/fs/cgroup/devices rw,relatime shared:9 - cgroup cgroup rw,devices";
    const JOINED: &str = "33 28 0:29 / /sys/fs/cgroup/a,b rw - cgroup cgroup rw,cpu,devices";
    const MEMORY: &str = "32 28 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory";
    const V2: &str = "40 28 0:31 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
    const UNIFIED: &str =
        "41 28 0:31 / /sys/fs/cgroup/unified rw,nosuid shared:4 master:1 - cgroup2 none rw";

    #[rstest]
    #[case::v1(&[MEMORY, V1], Some("/sys/fs/cgroup/devices"), None)]
    #[case::controllers_that_share_a_hierarchy(&[JOINED], Some("/sys/fs/cgroup/a,b"), None)]
    #[case::v2(&[V2], None, Some("/sys/fs/cgroup"))]
    #[case::hybrid(&[UNIFIED, MEMORY, V1], Some("/sys/fs/cgroup/devices"), Some("/sys/fs/cgroup/unified"))]
    #[case::hybrid_with_devices_in_v2(&[UNIFIED, MEMORY], None, Some("/sys/fs/cgroup/unified"))]
    #[case::neither(&[MEMORY, "22 1 8:1 / / rw - ext4 /dev/devices rw,devices"], None, None)]
    #[case::a_part_bound_elsewhere(&[V2, "50 28 0:31 /pod /mnt rw - cgroup2 c rw"], None, Some("/sys/fs/cgroup"))]
    #[case::a_blank_in_the_path(&[r"40 28 0:31 / /a\040b\134 rw - cgroup2 c rw"], None, Some(r"/a b\"))]
    #[case::nonsense(&["", "1 2 3", "a - cgroup2", r"40 28 0:31 / /a\9 rw - cgroup2 c"], None, None)]
    fn the_hierarchies_that_decide_are_found(
        #[case] lines: &[&str],
        #[case] devices: Option<&str>,
        #[case] unified: Option<&str>,
    ) {
        let expected = Hierarchies {
            devices: devices.map(PathBuf::from),
            unified: unified.map(PathBuf::from),
        };
        assert_eq!(Hierarchies::parse(lines.join("\n").as_bytes()), expected);
    }

    #[test]
    fn a_part_of_v2_is_not_all_of_it() {
        let mounts = fs::read("/proc/self/mountinfo").unwrap();
        let Some(whole) = Hierarchies::parse(&mounts).unified else { return };
        let parts = fs::read_dir(&whole).unwrap().map(|entry| entry.unwrap().path());
        let shown: Vec<_> = parts.filter(|path| path.is_dir() && is_unified(path)).collect();
        assert_eq!((is_unified(&whole), shown), (true, Vec::new()));
    }
}
