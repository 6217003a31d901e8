//! Where the cgroup hierarchies are mounted that decide over devices
//! ([cgroups(7)](https://man7.org/linux/man-pages/man7/cgroups.7.html),
//! [proc_pid_mountinfo(5)](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html)).
//!
//! The devices controller is a part of v1 alone; programs are attached to v2. On a hybrid system both are mounted, and the kernel
//! asks both.

use std::{
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

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
        let text = fs::read(MOUNTS).map_err(Error::system("read", MOUNTS))?;
        Ok(Hierarchies::parse(&String::from_utf8_lossy(&text)))
    }

    /// From the contents of a mountinfo. A later mount hides an earlier one.
    fn parse(text: &str) -> Hierarchies {
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

/// Mount point, type and the file system's options, where the mount shows its root.
fn whole_hierarchy(line: &str) -> Option<(PathBuf, &str, &str)> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let (root, point) = (mount.next()?, mount.next()?);
    let mut file_system = file_system.split(' ');
    let (kind, options) = (file_system.next()?, file_system.nth(1)?);
    (root == "/").then(|| (unescaped(point), kind, options))
}

/// Blanks and the like are three octal digits there.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let digits =
            behind.get(..3).filter(|_| first == b'\\').and_then(|digits| str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[3..];
            }
            None => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

/// The group of a process on v2, from its `/proc/PID/cgroup`.
pub fn unified_group(text: &str) -> Option<&Path> {
    text.lines().find_map(|line| line.strip_prefix("0::")).map(Path::new)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const V1: &str = "33 28 0:29 / /sys/fs/cgroup/devices rw,relatime shared:9 - cgroup cgroup rw,devices";
    const JOINED: &str = "33 28 0:29 / /sys/fs/cgroup/a,b rw - cgroup cgroup rw,cpu,devices";
    const MEMORY: &str = "32 28 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory";
    const V2: &str = "40 28 0:31 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
    const UNIFIED: &str = "41 28 0:31 / /sys/fs/cgroup/unified rw,nosuid shared:4 master:1 - cgroup2 none rw";

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
        let expected =
            Hierarchies { devices: devices.map(PathBuf::from), unified: unified.map(PathBuf::from) };
        assert_eq!(Hierarchies::parse(&lines.join("\n")), expected);
    }

    #[test]
    fn the_group_on_v2_is_the_line_without_controllers() {
        let text = "9:name=systemd:/a\n5:devices:/pod/c1\n0::/system.slice/x\n";
        assert_eq!(unified_group(text), Some(Path::new("/system.slice/x")));
        assert_eq!(unified_group("5:devices:/pod/c1\n"), None);
    }
}
