//! Who has a block device or file in use on this host: mounts
//! ([`/proc/PID/mountinfo`](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html)),
//! swap, devices on top of it
//! ([`holders`](https://www.kernel.org/doc/Documentation/ABI/stable/sysfs-block) in sysfs), loop
//! devices, processes. Whether a volume may be taken is decided by its exclusive open, for a file
//! by a lease, and by `in_the_way`; this names who it is.

use std::{
    collections::HashSet,
    fmt, fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use nix::sys::stat::{major, minor};

mod loop_device;
mod opener;

use crate::block_sysfs::{self, names};
use opener::{Opener, openers};

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
    /// It is in use, and nothing tells by whom.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Held {
    /// A block device, by its number.
    Block(u64),
    /// A regular file, by its file system's device number and its inode.
    File(u64, u64),
}

impl Held {
    /// What `path` leads to.
    pub(crate) fn at(path: impl AsRef<Path>) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        match metadata.file_type() {
            kind if kind.is_block_device() => Some(Self::Block(metadata.rdev())),
            kind if kind.is_file() => Some(Self::File(metadata.dev(), metadata.ino())),
            _ => None,
        }
    }

    /// It, and what it shares its bytes with: a disk's partitions, a partition's disk.
    fn family(self) -> Vec<Self> {
        match self {
            Self::Block(number) => {
                block_sysfs::family(number).into_iter().map(Self::Block).collect()
            }
            Self::File(..) => vec![self],
        }
    }
}

/// A volume that this process has open, for [`in_the_way`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) held: Held,
    pub(crate) read_only: bool,
}

/// Those who use the volumes in `taken` and were no obstacle to the open that took them; in their
/// order. Loop devices never are, and neither is a process that asked for no claim. Of those only a
/// VM's counts where the volume is a device (whatever looks at new devices opens them for a
/// moment), and anybody where it is a file. Who only reads is not in the way of another reader.
pub(crate) fn in_the_way(taken: &[Taken]) -> Vec<Option<Holder>> {
    if taken.is_empty() {
        return Vec::new();
    }
    let families: Vec<_> = taken.iter().map(|taken| taken.held.family()).collect();
    let all = families.concat();
    let (loops, openers) = (loop_device::over(&all), openers(&all));
    let one = |(taken, family): (&Taken, &Vec<Held>)| {
        let over = loops.iter().find(|(_, backing)| family.contains(backing));
        let is_wrong = |opener: &&Opener| {
            let counts = || matches!(opener.held, Held::File(..)) || runs_a_vm(opener.pid);
            (opener.writes || !taken.read_only) && counts()
        };
        let opener = openers.iter().filter(|opener| family.contains(&opener.held)).find(is_wrong);
        over.map(|(name, _)| Holder::Loop(name.clone()))
            .or_else(|| opener.map(|opener| process(opener.pid)))
    };
    taken.iter().zip(&families).map(one).collect()
}

/// Who holds `held`: the first that is found, in the order of [`Holder`].
pub fn holder(held: Held) -> Holder {
    let family = held.family();
    mount(&family)
        .or_else(|| swap(&family))
        .or_else(|| family.iter().find_map(|&held| device_above(held)))
        .or_else(|| loop_device::over(&family).pop().map(|(name, _)| Holder::Loop(name)))
        .or_else(|| openers(&family).first().map(|opener| process(opener.pid)))
        .or_else(|| mount_elsewhere(&family))
        .unwrap_or(Holder::Unknown)
}

fn mount(family: &[Held]) -> Option<Holder> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mount_point(&mounts, family).map(Holder::Mount)
}

/// The same in the mount namespaces of other processes.
fn mount_elsewhere(family: &[Held]) -> Option<Holder> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let mut seen: HashSet<_> = namespace("self").into_iter().collect();
    let processes = names(Path::new("/proc")).filter(|name| name.parse::<i32>().is_ok());
    processes.filter(|pid| namespace(pid).is_some_and(|namespace| seen.insert(namespace))).find_map(
        |pid| {
            let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).ok()?;
            let point = mount_point(&mounts, family)?;
            Some(Holder::Mount(format!(
                "{point} in the mount namespace of {}",
                process(pid.parse().ok()?)
            )))
        },
    )
}

/// Where one of `family` is mounted. The file system tells its device's number, except those that
/// have several devices: these name one of them as their source.
fn mount_point(mounts: &str, family: &[Held]) -> Option<String> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (number, point) = (fields.nth(2)?, fields.nth(1)?);
        let source = line.split_once(" - ")?.1.split(' ').nth(1)?;
        let is_number = |held: &Held| match held {
            Held::Block(wanted) => number == format!("{}:{}", major(*wanted), minor(*wanted)),
            Held::File(..) => false,
        };
        let is_source = || {
            source.starts_with("/dev/")
                && Held::at(source).is_some_and(|source| family.contains(&source))
        };
        (family.iter().any(is_number) || is_source()).then(|| point.to_owned())
    })
}

fn swap(family: &[Held]) -> Option<Holder> {
    let swaps = fs::read_to_string("/proc/swaps").ok()?;
    let mut paths = swaps.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().next());
    let is_ours = |path: &str| Held::at(path).is_some_and(|held| family.contains(&held));
    paths.any(is_ours).then_some(Holder::Swap)
}

fn device_above(held: Held) -> Option<Holder> {
    let Held::Block(number) = held else { return None };
    let name = names(&block_sysfs::directory(number).join("holders")).next()?;
    let mapped = fs::read_to_string(format!("/sys/block/{name}/dm/name")).ok();
    Some(Holder::Device(match mapped {
        Some(mapped) => format!("{name} ({})", mapped.trim_end()),
        None => name,
    }))
}

/// The process `pid`, with the name of its machine where it is a QEMU.
pub(crate) fn process(pid: i32) -> Holder {
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let machine = machine(&arguments(pid)).map(|name| format!(", {name}")).unwrap_or_default();
    Holder::Process(pid, format!("{}{machine}", command.trim_end()))
}

fn arguments(pid: i32) -> Vec<u8> {
    fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

/// By its name, or by a descriptor of KVM's, whatever its name.
fn runs_a_vm(pid: i32) -> bool {
    let descriptors = PathBuf::from(format!("/proc/{pid}/fd"));
    let is_vm = |name| {
        fs::read_link(descriptors.join(name))
            .is_ok_and(|link| link == Path::new("anon_inode:kvm-vm"))
    };
    is_qemu(pid) || names(&descriptors).any(is_vm)
}

/// By its name.
pub(crate) fn is_qemu(pid: i32) -> bool {
    is_qemus(&arguments(pid))
}

fn is_qemus(arguments: &[u8]) -> bool {
    let program =
        String::from_utf8_lossy(arguments.split(|&byte| byte == 0).next().unwrap_or_default());
    PathBuf::from(program.into_owned())
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with("qemu-"))
}

/// The name of QEMU's machine, which is `sandbox-<id>` with Kata
/// (`-name sandbox-x,debug-threads=on`) and `guest=x` with libvirt.
fn machine(arguments: &[u8]) -> Option<String> {
    let mut after = is_qemus(arguments)
        .then(|| arguments.split(|&byte| byte == 0).skip_while(|argument| *argument != b"-name"))?;
    let name = String::from_utf8_lossy(after.nth(1)?).into_owned();
    let name = name.split(',').next()?;
    Some(name.strip_prefix("guest=").unwrap_or(name).to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sys::stat::makedev;

    use super::*;

    #[test]
    fn a_process_that_has_the_file_open_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let held = Held::at(file.path()).unwrap();
        let mut child =
            Command::new("sleep").arg("60").stdin(file.reopen().unwrap()).spawn().unwrap();
        let holder = holder(held);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(holder, Holder::Process(i32::try_from(child.id()).unwrap(), "sleep".into()));
    }

    #[test]
    fn the_machine_of_a_qemu_is_named() {
        let kata = b"/usr/bin/qemu-system-x86_64\0-name\0sandbox-x1,debug-threads=on\0-uuid\0";
        assert_eq!(machine(kata).as_deref(), Some("sandbox-x1"));
        let libvirt = b"/usr/libexec/qemu-kvm\0-name\0guest=db,debug-threads=on\0";
        assert_eq!(machine(libvirt).as_deref(), Some("db"));
        assert_eq!(machine(b"sleep\0-name\0x\0"), None);
        assert_eq!(machine(b"qemu-system-x86_64\0-name"), None);
    }

    #[test]
    fn mounts_are_found_by_number() {
        let mounts = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n\
                      37 35 98:17 / /mnt\\0403 rw - xfs /dev/x rw\n";
        let at = |number| mount_point(mounts, &[Held::Block(number), Held::Block(makedev(1, 99))]);
        assert_eq!(at(makedev(98, 17)).as_deref(), Some("/mnt\\0403"));
        assert_eq!(at(makedev(98, 1)), None);
    }

    #[test]
    fn a_reader_is_in_the_way_of_a_writer_and_a_writer_of_all() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let held = Held::at(file.path()).unwrap();
        let found_with = |stdin: fs::File| {
            let mut child = Command::new("sleep").arg("60").stdin(stdin).spawn().unwrap();
            let taken = [true, false].map(|read_only| Taken { held, read_only });
            let found = in_the_way(&taken);
            child.kill().unwrap();
            child.wait().unwrap();
            let child = Holder::Process(i32::try_from(child.id()).unwrap(), "sleep".into());
            found
                .into_iter()
                .map(|holder| holder.map(|holder| assert_eq!(holder, child)).is_some())
                .collect()
        };
        let found: Vec<bool> = found_with(fs::File::open(file.path()).unwrap());
        assert_eq!(found, [false, true]);
        let found: Vec<bool> = found_with(file.reopen().unwrap());
        assert_eq!(found, [true, true]);
    }
}
