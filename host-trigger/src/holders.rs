//! Who has a block device or file in use on this host: mounts
//! ([`/proc/self/mountinfo`](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html)), swap, devices on top of it
//! ([`holders`](https://www.kernel.org/doc/Documentation/ABI/stable/sysfs-block) in sysfs), loop devices, processes
//! ([`/proc/PID/fd`](https://man7.org/linux/man-pages/man5/proc_pid_fd.5.html)). It names; whether a device is in use at all is
//! decided by its exclusive open, and for a file by a lease.

use std::{
    fmt, fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use nix::sys::stat::{major, minor};

/// One user of a block device or file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A mount, of it or of one of its partitions.
    Mount(String),
    /// The kernel swaps to it.
    Swap,
    /// A device is made of it: device mapper, md.
    Device(String),
    /// A loop device is over it.
    Loop(String),
    /// A process has it open.
    Process(i32, String),
    /// It is in use, and nothing tells by whom; perhaps in another mount namespace.
    Unknown,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount(path) => write!(f, "a mount on {path}"),
            Self::Swap => f.write_str("the kernel's swap"),
            Self::Device(name) => write!(f, "the device {name}"),
            Self::Loop(name) => write!(f, "the loop device {name}"),
            Self::Process(pid, command) => write!(f, "process {pid} ({command})"),
            Self::Unknown => f.write_str("somebody who cannot be seen from here"),
        }
    }
}

/// What is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// A block device, by its number.
    Block(u64),
    /// A regular file, by its file system's device number and its inode.
    File(u64, u64),
}

impl Held {
    /// What `path` leads to.
    fn at(path: impl AsRef<Path>) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        match metadata.file_type() {
            kind if kind.is_block_device() => Some(Self::Block(metadata.rdev())),
            kind if kind.is_file() => Some(Self::File(metadata.dev(), metadata.ino())),
            _ => None,
        }
    }
}

/// Who holds `held`: the first that is found, in the order of [`Holder`].
pub fn holder(held: Held) -> Holder {
    let on_block = |number: u64| {
        let directory = sysfs(number);
        let numbers = partitions(&directory).into_iter().chain([number]);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mounted = numbers.filter_map(|number| mount_point(&mounts, number)).next();
        mounted.map(Holder::Mount).or_else(|| swap(held)).or_else(|| device_above(&directory))
    };
    match held {
        Held::Block(number) => on_block(number),
        Held::File(..) => swap(held),
    }
    .or_else(|| loop_device(held))
    .or_else(|| process(held))
    .unwrap_or(Holder::Unknown)
}

/// The loop device over `held`, which an exclusive open does not see.
pub fn loop_device(held: Held) -> Option<Holder> {
    names(Path::new("/sys/block")).filter(|name| name.starts_with("loop")).find_map(|name| {
        let backing = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
        (Held::at(backing.trim_end())? == held).then_some(Holder::Loop(name))
    })
}

/// Is `number` the device, or the whole disk of the partition, that the root file system of this host is on?
pub fn is_root(number: u64) -> bool {
    let Ok(root) = fs::metadata("/") else { return false };
    root.dev() == number || whole_disk(root.dev()) == Some(number)
}

fn whole_disk(partition: u64) -> Option<u64> {
    let directory = sysfs(partition);
    directory.join("partition").exists().then(|| number(&directory.join("../dev")))?
}

fn sysfs(number: u64) -> PathBuf {
    let link = format!("/sys/dev/block/{}:{}", major(number), minor(number));
    fs::canonicalize(&link).unwrap_or_else(|_| link.into())
}

fn number(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let (major, minor) = text.trim_end().split_once(':')?;
    Some(nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?))
}

fn partitions(directory: &Path) -> Vec<u64> {
    let inside = names(directory).map(|name| directory.join(name));
    inside
        .filter(|entry| entry.join("partition").exists())
        .filter_map(|entry| number(&entry.join("dev")))
        .collect()
}

fn names(directory: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// Where the device `wanted` is mounted. The file system tells its device's number, except those that have several devices:
/// these name one of them as their source.
fn mount_point(mounts: &str, wanted: u64) -> Option<String> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (number, point) = (fields.nth(2)?, fields.nth(1)?);
        let source = line.split_once(" - ")?.1.split(' ').nth(1)?;
        let same = number == format!("{}:{}", major(wanted), minor(wanted))
            || (source.starts_with("/dev/") && Held::at(source) == Some(Held::Block(wanted)));
        same.then(|| point.to_owned())
    })
}

fn swap(held: Held) -> Option<Holder> {
    let swaps = fs::read_to_string("/proc/swaps").ok()?;
    let mut paths = swaps.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().next());
    paths.any(|path| Held::at(path) == Some(held)).then_some(Holder::Swap)
}

fn device_above(directory: &Path) -> Option<Holder> {
    let name = names(&directory.join("holders")).next()?;
    let mapped = fs::read_to_string(format!("/sys/block/{name}/dm/name")).ok();
    Some(Holder::Device(match mapped {
        Some(mapped) => format!("{name} ({})", mapped.trim_end()),
        None => name,
    }))
}

fn process(held: Held) -> Option<Holder> {
    let own = std::process::id().to_string();
    names(Path::new("/proc")).filter(|name| *name != own).find_map(|name| {
        let pid = name.parse().ok()?;
        let descriptors = PathBuf::from(format!("/proc/{pid}/fd"));
        names(&descriptors).find(|fd| Held::at(descriptors.join(fd)) == Some(held))?;
        let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let machine = machine(&arguments).map(|name| format!(", {name}")).unwrap_or_default();
        Some(Holder::Process(pid, format!("{}{machine}", command.trim_end())))
    })
}

/// The name of QEMU's machine, which is `sandbox-<id>` with Kata: `-name sandbox-x,debug-threads=on`.
fn machine(arguments: &[u8]) -> Option<String> {
    let mut arguments = arguments.split(|&byte| byte == 0).skip_while(|argument| *argument != b"-name");
    let name = String::from_utf8_lossy(arguments.nth(1)?).into_owned();
    name.split(',').next().filter(|name| name.starts_with("sandbox-")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_that_has_the_file_open_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let held = Held::at(file.path()).unwrap();
        let mut child = Command::new("sleep").arg("60").stdin(file.reopen().unwrap()).spawn().unwrap();
        let holder = holder(held);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(holder, Holder::Process(i32::try_from(child.id()).unwrap(), "sleep".into()));
    }

    #[test]
    fn the_sandbox_of_a_qemu_is_named() {
        let kata = b"/usr/bin/qemu\0-name\0sandbox-x1,debug-threads=on\0-uuid\0";
        assert_eq!(machine(kata).as_deref(), Some("sandbox-x1"));
        assert_eq!(machine(b"sleep\0-name\0x\0"), None);
        assert_eq!(machine(b"sleep\0-name"), None);
    }

    #[test]
    fn mounts_are_found_by_number() {
        let mounts = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n\
                      37 35 98:17 / /mnt\\0403 rw - xfs /dev/x rw\n";
        assert_eq!(mount_point(mounts, nix::sys::stat::makedev(98, 17)).as_deref(), Some("/mnt\\0403"));
        assert_eq!(mount_point(mounts, nix::sys::stat::makedev(98, 1)), None);
    }

    #[test]
    fn the_root_file_system_is_recognised() {
        assert!(is_root(fs::metadata("/").unwrap().dev()));
        assert!(!is_root(nix::sys::stat::makedev(255, 255)));
    }
}
