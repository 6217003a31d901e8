//! [`/proc/PID/cgroup` and `/proc/cgroups`](https://man7.org/linux/man-pages/man7/cgroups.7.html).

use std::path::Path;

/// The group of a process on v2, from its `/proc/PID/cgroup`.
pub fn unified_group(text: &str) -> Option<&Path> {
    text.lines().find_map(|line| line.strip_prefix("0::")).map(Path::new)
}

/// The group of a process in the hierarchy that filters devices, from its `/proc/PID/cgroup`: that
/// of the v1 controller, or the one on v2.
pub fn device_group(text: &str) -> Option<&str> {
    let group = |wanted: fn(&str) -> bool| {
        text.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            wanted(controllers).then_some(path)
        })
    };
    let devices =
        group(|controllers| controllers.split(',').any(|controller| controller == "devices"));
    devices.or_else(|| group(str::is_empty))
}

/// Whether `/proc/cgroups` shows the devices controller outside of every v1 hierarchy.
pub fn is_devices_unattached(controllers: &str) -> bool {
    let words = |line: &str| line.split_whitespace().take(2).eq(["devices", "0"]);
    controllers.lines().any(words)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn the_group_on_v2_is_the_line_without_controllers() {
        let text = "9:name=systemd:/a\n5:devices:/pod/c1\n0::/system.slice/x\n";
        assert_eq!(unified_group(text), Some(Path::new("/system.slice/x")));
        assert_eq!(unified_group("5:devices:/pod/c1\n"), None);
    }

    #[rstest]
    #[case("0::/pod/c1\n", Some("/pod/c1"))]
    #[case("5:cpu,devices:/pod/c2\n0::/other\n", Some("/pod/c2"))]
    #[case("4:cpuset:/a\n0::/a:b\n", Some("/a:b"))]
    #[case("", None)]
    fn the_cgroup_is_that_of_the_device_filter(#[case] text: &str, #[case] expected: Option<&str>) {
        assert_eq!(device_group(text), expected);
    }

    #[rstest]
    #[case::v2_alone(
        "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t0\t1\t1\ndevices\t0\t61\t1\n",
        true
    )]
    #[case::v1("devices\t3\t61\t1\n", false)]
    #[case::without_the_controller("cpu\t0\t1\t1\n", false)]
    #[case::another_of_a_similar_name("xdevices\t0\t1\t1\ndevicesx\t0\t1\t1\n", false)]
    fn a_controller_outside_of_v1_is_recognized(#[case] controllers: &str, #[case] expected: bool) {
        assert_eq!(is_devices_unattached(controllers), expected);
    }
}
