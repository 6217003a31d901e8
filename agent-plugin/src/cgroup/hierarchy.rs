//! Where the cgroup hierarchies are mounted that decide over devices
//! ([cgroups(7)](https://man7.org/linux/man-pages/man7/cgroups.7.html),
//! [proc_pid_mountinfo(5)](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html)).
//!
//! The devices controller is a part of v1 alone; programs are attached to v2. On a hybrid system
//! both are mounted, and the kernel asks both.

use std::{
    ffi::OsString,
    fs,
    os::unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use crate::{
    error::{Error, Result},
    mountinfo::unescaped,
};

/// Where v2 alone is mounted.
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
    /// As this process sees them.
    ///
    /// # Errors
    /// `/proc` does not answer.
    pub fn mounted() -> Result<Hierarchies> {
        const MOUNTS: &str = "/proc/self/mountinfo";
        if is_unified(Path::new(USUAL)) && !devices_in_v1() {
            return Ok(Hierarchies { devices: None, unified: Some(USUAL.into()) });
        }
        let text = fs::read(MOUNTS).map_err(Error::system("read", MOUNTS))?;
        Ok(Hierarchies::parse(&String::from_utf8_lossy(&text)))
    }

    /// From the contents of a mountinfo. A later mount hides an earlier one.
    pub fn parse(text: &str) -> Hierarchies {
        let mut found = Hierarchies::default();
        for (point, kind, options) in text.lines().filter_map(whole_hierarchy) {
            match kind {
                "cgroup2" => found.unified = Some(point),
                "cgroup" if options.split(',').any(|option| option == "devices") => {
                    found.devices = Some(point);
                }
                _ => {}
            }
        }
        found
    }
}

/// Does the usual place show all of v2? This and [`devices_in_v1`] tell most systems apart for a
/// tenth of what reading every mount takes, and are asked with each volume. The root of a hierarchy
/// has the first inode.
fn is_unified(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC)
        && fs::metadata(path).is_ok_and(|found| found.ino() == 1)
}

/// May the devices controller be a part of a v1 hierarchy? Where the kernel does not say, it may.
fn devices_in_v1() -> bool {
    fs::read_to_string("/proc/cgroups").map_or(true, |text| !unattached(&text))
}

/// Does `/proc/cgroups` have the devices controller outside of every v1 hierarchy?
pub fn unattached(controllers: &str) -> bool {
    let words = |line: &str| line.split_whitespace().take(2).eq(["devices", "0"]);
    controllers.lines().any(words)
}

/// Mount point, type and the file system's options, where the mount shows its root.
fn whole_hierarchy(line: &str) -> Option<(PathBuf, &str, &str)> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let (root, point) = (mount.next()?, mount.next()?);
    let mut file_system = file_system.split(' ');
    let (kind, options) = (file_system.next()?, file_system.nth(1)?);
    (root == "/").then(|| (OsString::from_vec(unescaped(point)).into(), kind, options))
}

/// The group of a process on v2, from its `/proc/PID/cgroup`.
pub fn unified_group(text: &str) -> Option<&Path> {
    text.lines().find_map(|line| line.strip_prefix("0::")).map(Path::new)
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
    fn the_hierarchies_that_count_are_found(
        #[case] lines: &[&str],
        #[case] devices: Option<&str>,
        #[case] unified: Option<&str>,
    ) {
        let expected = Hierarchies {
            devices: devices.map(PathBuf::from),
            unified: unified.map(PathBuf::from),
        };
        assert_eq!(Hierarchies::parse(&lines.join("\n")), expected);
    }

    #[rstest]
    #[case::v2_alone(
        "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t0\t1\t1\ndevices\t0\t61\t1\n",
        true
    )]
    #[case::v1("devices\t3\t61\t1\n", false)]
    #[case::without_the_controller("cpu\t0\t1\t1\n", false)]
    #[case::another_of_a_like_name("xdevices\t0\t1\t1\ndevicesx\t0\t1\t1\n", false)]
    fn a_controller_outside_of_v1_is_told(#[case] controllers: &str, #[case] expected: bool) {
        assert_eq!(unattached(controllers), expected);
    }

    #[test]
    fn a_part_of_v2_is_not_all_of_it() {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let Some(whole) = Hierarchies::parse(&mounts).unified else { return };
        let parts = fs::read_dir(&whole).unwrap().map(|entry| entry.unwrap().path());
        let shown: Vec<_> = parts.filter(|path| path.is_dir() && is_unified(path)).collect();
        assert_eq!((is_unified(&whole), shown), (true, Vec::new()));
    }

    #[test]
    fn the_group_on_v2_is_the_line_without_controllers() {
        let text = "9:name=systemd:/a\n5:devices:/pod/c1\n0::/system.slice/x\n";
        assert_eq!(unified_group(text), Some(Path::new("/system.slice/x")));
        assert_eq!(unified_group("5:devices:/pod/c1\n"), None);
    }
}
