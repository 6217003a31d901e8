//! The cgroup hierarchies, which the agent mounts as kata-agent does, and the pod's device list of
//! [cgroup v1](https://docs.kernel.org/admin-guide/cgroup-v1/devices.html).
//!
//! On v1 the pod's cgroup denies every device but the usual ones before the first container is
//! created, so a container below it cannot get more than the pod has. On v2 only crun installs a
//! filter, if the specification has device rules.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use agent_api::agent::LinuxDeviceCgroup;
use agent_plugin::DeviceRule;
use nix::mount::{MsFlags, mount};

use crate::error::{Error, at};

const ROOT: &str = "/sys/fs/cgroup";

/// The devices that kata-agent allows every pod: null, zero, full, tty, random, urandom, mknod of
/// all, console, pts, ptmx, tun.
const DEFAULT_DEVICES: [&str; 12] = [
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 5:0 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c *:* m",
    "b *:* m",
    "c 5:1 rwm",
    "c 136:* rwm",
    "c 5:2 rwm",
    "c 10:200 rwm",
];

/// The mounted cgroup version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cgroups {
    V1,
    V2,
}

impl Cgroups {
    /// Mounts v2 or v1, if this is PID 1. An init system has mounted them itself.
    pub(crate) fn prepare(v2: bool) -> Result<Self, Error> {
        match std::process::id() {
            1 => Self::mount(v2),
            _ if v2 => Ok(Self::V2),
            _ => Ok(Self::V1),
        }
    }

    fn mount(v2: bool) -> Result<Self, Error> {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let mount_at = |kind: &str, target: &Path, flags, options: Option<&str>| {
            mount(Some(kind), target, Some(kind), flags, options).map_err(|errno| {
                at(format!("mounting {kind} at {}", target.display()))(errno.into())
            })
        };
        if v2 {
            mount_at("cgroup2", Path::new(ROOT), flags, None)?;
            return Ok(Self::V2);
        }
        mount_at("tmpfs", Path::new(ROOT), flags, Some("mode=755"))?;
        let controllers = fs::read_to_string("/proc/cgroups").map_err(at("/proc/cgroups"))?;
        for controller in v1_controllers(&controllers) {
            let target = Path::new(ROOT).join(controller);
            fs::create_dir(&target).map_err(at(format!("creating {}", target.display())))?;
            // Newer kernels also list controllers that they only have for v2.
            if let Err(error) = mount_at("cgroup", &target, flags, Some(controller)) {
                tracing::warn!("{error}");
                fs::remove_dir(&target).map_err(at(format!("removing {}", target.display())))?;
            }
        }
        Ok(Self::V1)
    }

    /// Creates the pod's cgroup of the container `cgroup` if necessary, and allows it the devices
    /// of `rules` in addition to the usual ones. Nothing is denied to a pod: that would affect
    /// every container in it.
    pub(crate) fn allow_in_pod(self, cgroup: &Path, rules: &[DeviceRule]) -> Result<(), Error> {
        match (self, cgroup.parent()) {
            (Self::V1, Some(pod)) => allow_below(&Path::new(ROOT).join("devices"), pod, rules),
            _ => Ok(()),
        }
    }

    /// Converts rules for this version. On v1 a list that denies by default does not accept a rule
    /// of type `a`, but one rule each for `b` and `c`.
    pub(crate) fn expand(self, rules: Vec<DeviceRule>) -> Vec<DeviceRule> {
        let split = |rule: DeviceRule| match (self, rule.allow, rule.kind) {
            (Self::V1, true, 'a') => {
                ['b', 'c'].map(|kind| DeviceRule { kind, ..rule.clone() }).to_vec()
            }
            _ => vec![rule],
        };
        rules.into_iter().flat_map(split).collect()
    }
}

fn allow_below(devices: &Path, pod: &Path, rules: &[DeviceRule]) -> Result<(), Error> {
    let directory = devices.join(pod.strip_prefix("/").unwrap_or(pod));
    let write = |file: &str, text: &str| {
        let path = directory.join(file);
        fs::write(&path, text).map_err(at(format!("writing {text:?} to {}", path.display())))
    };
    match fs::create_dir(&directory) {
        Ok(()) => {
            write("devices.deny", "a")?;
            for device in DEFAULT_DEVICES {
                write("devices.allow", device)?;
            }
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(at(format!("creating {}", directory.display()))(error)),
    }
    for rule in rules.iter().filter(|rule| rule.allow) {
        write("devices.allow", &line(rule))?;
    }
    Ok(())
}

/// Formats a rule for `devices.allow`: `b 8:* rw`.
fn line(rule: &DeviceRule) -> String {
    let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
    format!("{} {}:{} {}", rule.kind, number(rule.major), number(rule.minor), rule.access)
}

/// Converts the device rules of a request.
pub(crate) fn device_rules(messages: &[LinuxDeviceCgroup]) -> Result<Vec<DeviceRule>, Error> {
    messages
        .iter()
        .map(|message| {
            let kind = match message.Type.as_str() {
                "" | "a" => 'a',
                "b" => 'b',
                "c" | "u" => 'c',
                other => return Err(Error::DeviceKind(other.to_owned())),
            };
            // A negative number means all numbers.
            let number = |number: i64| u32::try_from(number).ok().filter(|_| kind != 'a');
            Ok(DeviceRule {
                allow: message.Allow,
                kind,
                major: number(message.Major),
                minor: number(message.Minor),
                access: if message.Access.is_empty() {
                    "rwm".to_owned()
                } else {
                    message.Access.clone()
                },
            })
        })
        .collect()
}

/// Validates a `CgroupsPath`, which becomes part of file paths.
pub(crate) fn checked_path(path: &str) -> Result<PathBuf, Error> {
    let wrong = || Error::CgroupPath(path.to_owned());
    let mut components = Path::new(path).components();
    let below_root: Vec<_> = match components.next() {
        Some(Component::RootDir) => components.collect(),
        _ => return Err(wrong()),
    };
    if below_root.len() != 2
        || below_root.iter().any(|component| !matches!(component, Component::Normal(_)))
    {
        return Err(wrong());
    }
    Ok(PathBuf::from(path))
}

/// Returns the enabled controllers of `/proc/cgroups`. Its columns: name, hierarchy, number of
/// cgroups, enabled.
fn v1_controllers(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let mut words = line.split_whitespace();
        let name = words.next()?;
        (words.nth(2) == Some("1")).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(allow: bool, kind: char, major: Option<u32>, minor: Option<u32>) -> DeviceRule {
        DeviceRule { allow, kind, major, minor, access: "rw".into() }
    }

    #[test]
    fn disabled_controllers_are_left_out() {
        let text = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t0\t1\t1\nmemory\t0\t1\t0\ndevices\t4\t1\t1\n";
        assert_eq!(v1_controllers(text).collect::<Vec<_>>(), ["cpu", "devices"]);
    }

    #[test]
    fn a_new_pod_denies_all_then_allows_and_a_second_container_only_adds() {
        let devices = tempfile::tempdir().unwrap();
        let pod = devices.path().join("pod");
        let rules = [rule(false, 'a', None, None), rule(true, 'b', Some(8), None)];
        allow_below(devices.path(), Path::new("/pod"), &rules).unwrap();
        // A plain file keeps only the last write.
        assert_eq!(fs::read_to_string(pod.join("devices.deny")).unwrap(), "a");
        assert_eq!(fs::read_to_string(pod.join("devices.allow")).unwrap(), "b 8:* rw");
        fs::write(pod.join("devices.deny"), "untouched").unwrap();
        allow_below(devices.path(), Path::new("/pod"), &[rule(true, 'c', Some(1), Some(11))])
            .unwrap();
        assert_eq!(fs::read_to_string(pod.join("devices.deny")).unwrap(), "untouched");
        assert_eq!(fs::read_to_string(pod.join("devices.allow")).unwrap(), "c 1:11 rw");
    }

    #[test]
    fn only_v1_splits_a_rule_that_allows_everything() {
        let all = vec![rule(false, 'a', None, None), rule(true, 'a', None, None)];
        assert_eq!(Cgroups::V2.expand(all.clone()), all);
        let split = vec![
            rule(false, 'a', None, None),
            rule(true, 'b', None, None),
            rule(true, 'c', None, None),
        ];
        assert_eq!(Cgroups::V1.expand(all), split);
    }

    #[test]
    fn negative_numbers_and_type_a_mean_all_devices() {
        let message = |kind: &str, major, minor| LinuxDeviceCgroup {
            Type: kind.into(),
            Major: major,
            Minor: minor,
            ..LinuxDeviceCgroup::default()
        };
        let rules =
            device_rules(&[message("b", 8, -1), message("a", 0, 0), message("", -1, -1)]).unwrap();
        assert_eq!((rules[0].kind, rules[0].major, rules[0].minor), ('b', Some(8), None));
        assert_eq!((rules[1].kind, rules[1].major), ('a', None));
        assert_eq!((rules[2].kind, rules[2].access.as_str()), ('a', "rwm"));
        assert!(matches!(device_rules(&[message("x", 0, 0)]), Err(Error::DeviceKind(_))));
    }

    #[test]
    fn a_cgroup_path_is_absolute_with_exactly_one_parent() {
        assert_eq!(checked_path("/pod/c1").unwrap(), Path::new("/pod/c1"));
        for wrong in ["pod/c1", "/c1", "/pod/../c1", "/a/b/c", "", "system.slice:cri:c1"] {
            assert!(matches!(checked_path(wrong), Err(Error::CgroupPath(_))), "{wrong}");
        }
    }
}
