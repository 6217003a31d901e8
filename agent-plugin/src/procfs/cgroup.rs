//! [`/proc/PID/cgroup` and `/proc/cgroups`](https://man7.org/linux/man-pages/man7/cgroups.7.html).

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::Path};

use crate::text::{lines, split_once, words};

/// The group of a process on v2, from its `/proc/PID/cgroup`.
pub fn unified_group(text: &[u8]) -> Option<&Path> {
    lines(text).find_map(|line| line.strip_prefix(b"0::")).map(path)
}

/// The group of a process in the hierarchy that filters devices, from its `/proc/PID/cgroup`: that
/// of the v1 controller, or the one on v2.
pub fn device_group(text: &[u8]) -> Option<&Path> {
    let group = |wanted: fn(&[u8]) -> bool| {
        lines(text).find_map(|line| {
            let (_, rest) = split_once(line, b":")?;
            let (controllers, group) = split_once(rest, b":")?;
            wanted(controllers).then_some(group)
        })
    };
    let devices = group(|controllers| {
        controllers.split(|&byte| byte == b',').any(|controller| controller == b"devices")
    });
    devices.or_else(|| group(<[u8]>::is_empty)).map(path)
}

/// A name of a group is bytes, but for newlines, which the kernel refuses.
fn path(group: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(group))
}

/// Whether `/proc/cgroups` shows the devices controller outside of every v1 hierarchy.
pub fn is_devices_unattached(controllers: &[u8]) -> bool {
    let unattached = |line| words(line).take(2).eq([&b"devices"[..], b"0"]);
    lines(controllers).any(unattached)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn the_group_on_v2_is_the_line_without_controllers() {
        let text = b"9:name=systemd:/a\n5:devices:/pod/c1\n0::/system.slice/x\n";
        assert_eq!(unified_group(text), Some(Path::new("/system.slice/x")));
        assert_eq!(unified_group(b"5:devices:/pod/c1\n"), None);
    }

    #[rstest]
    #[case(b"0::/pod/c1\n", Some("/pod/c1"))]
    #[case(b"5:cpu,devices:/pod/c2\n0::/other\n", Some("/pod/c2"))]
    #[case(b"4:cpuset:/a\n0::/a:b\n", Some("/a:b"))]
    #[case(b"5:devices:/pod/c1\n4:a:/\xff\n", Some("/pod/c1"))]
    #[case(b"", None)]
    fn the_cgroup_is_that_of_the_device_filter(
        #[case] text: &[u8],
        #[case] expected: Option<&str>,
    ) {
        assert_eq!(device_group(text), expected.map(Path::new));
    }

    #[rstest]
    #[case::v2_alone(
        b"#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t0\t1\t1\ndevices\t0\t61\t1\n",
        true
    )]
    #[case::v1(b"devices\t3\t61\t1\n", false)]
    #[case::without_the_controller(b"cpu\t0\t1\t1\n", false)]
    #[case::another_of_a_similar_name(b"xdevices\t0\t1\t1\ndevicesx\t0\t1\t1\n", false)]
    fn a_controller_outside_of_v1_is_recognized(
        #[case] controllers: &[u8],
        #[case] expected: bool,
    ) {
        assert_eq!(is_devices_unattached(controllers), expected);
    }
}
