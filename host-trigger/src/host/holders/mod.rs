//! The holders of a block device or file on this host: mounts, swap, devices on top of it
//! ([`holders`](https://www.kernel.org/doc/Documentation/ABI/stable/sysfs-block) in sysfs), loop
//! devices, processes. Whether a source may be used is decided by its exclusive open (for a file,
//! by a lease) and by `conflicting_holders`; this module identifies the holder.

use std::{
    collections::HashSet,
    fmt, fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

mod loop_device;
mod opener;

use opener::{Opener, openers};

use super::{
    mountinfo::{self, Mount},
    process,
    sysfs::{self, names},
};

/// One holder of a block device or file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A mount of it or of one of its partitions.
    Mount(String),
    /// The kernel uses it for swap.
    Swap,
    /// A device that is built on it: device mapper, md.
    Device(String),
    /// A loop device that it backs.
    Loop(String),
    /// A process that has it open.
    Process(i32, String),
    /// It is in use, and the holder cannot be determined.
    Unknown,
}

impl Holder {
    /// The process `pid`.
    pub(crate) fn process(pid: i32) -> Self {
        Self::Process(pid, process::describe(pid))
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount(path) => write!(f, "a mount on {path}"),
            Self::Swap => f.write_str("the kernel's swap"),
            Self::Device(name) => write!(f, "the device {name}"),
            Self::Loop(name) => write!(f, "the loop device {name}"),
            Self::Process(pid, command) => write!(f, "process {pid} ({command})"),
            Self::Unknown => f.write_str("a holder that cannot be seen from here"),
        }
    }
}

/// The identity of a block device or regular file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileId {
    /// A block device, by its device number.
    Block(u64),
    /// A regular file, by the device number of its file system and its inode number.
    File(u64, u64),
}

impl FileId {
    /// Returns what `path` leads to; `None` if that is neither a block device nor a regular file.
    pub(crate) fn at(path: impl AsRef<Path>) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        match metadata.file_type() {
            kind if kind.is_block_device() => Some(Self::Block(metadata.rdev())),
            kind if kind.is_file() => Some(Self::File(metadata.dev(), metadata.ino())),
            _ => None,
        }
    }

    /// Returns it and everything that it shares its bytes with: a disk's partitions, a partition's
    /// disk.
    fn family(self) -> Vec<Self> {
        match self {
            Self::Block(number) => sysfs::family(number).into_iter().map(Self::Block).collect(),
            Self::File(..) => vec![self],
        }
    }
}

/// A source that this process has open, for [`conflicting_holders`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenSource {
    pub(crate) file_id: FileId,
    pub(crate) read_only: bool,
}

/// Returns, for each of `sources` in their order, a holder that conflicts with this use and did not
/// make the open fail. A loop device never makes it fail, and neither does a process that opened
/// the source without a claim. Of such processes, for a block device only those that run a VM
/// conflict (programs that inspect new devices open them for a moment), for a file all of them. A
/// reader does not conflict with another reader.
pub(crate) fn conflicting_holders(sources: &[OpenSource]) -> Vec<Option<Holder>> {
    if sources.is_empty() {
        return Vec::new();
    }
    let families: Vec<_> = sources.iter().map(|source| source.file_id.family()).collect();
    let all = families.concat();
    let (loops, openers) = (loop_device::backed_by(&all), openers(&all));
    let one = |(source, family): (&OpenSource, &Vec<FileId>)| {
        let loop_device = loops.iter().find(|(_, backing)| family.contains(backing));
        let conflicts = |opener: &&Opener| {
            let is_relevant =
                || matches!(opener.file_id, FileId::File(..)) || process::runs_a_vm(opener.pid);
            (opener.writes || !source.read_only) && is_relevant()
        };
        let opener =
            openers.iter().filter(|opener| family.contains(&opener.file_id)).find(conflicts);
        loop_device
            .map(|(name, _)| Holder::Loop(name.clone()))
            .or_else(|| opener.map(|opener| Holder::process(opener.pid)))
    };
    sources.iter().zip(&families).map(one).collect()
}

/// Returns the holder of `file_id`: the first that is found, in the order of [`Holder`].
pub fn holder(file_id: FileId) -> Holder {
    let family = file_id.family();
    mount(&family)
        .or_else(|| swap(&family))
        .or_else(|| family.iter().find_map(|&member| device_above(member)))
        .or_else(|| loop_device::backed_by(&family).pop().map(|(name, _)| Holder::Loop(name)))
        .or_else(|| openers(&family).first().map(|opener| Holder::process(opener.pid)))
        .or_else(|| mount_elsewhere(&family))
        .unwrap_or(Holder::Unknown)
}

fn mount(family: &[FileId]) -> Option<Holder> {
    mount_point("self", family).map(Holder::Mount)
}

/// Finds a mount of one of `family` in the mount namespaces of other processes.
fn mount_elsewhere(family: &[FileId]) -> Option<Holder> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let mut seen: HashSet<_> = namespace("self").into_iter().collect();
    let processes = names(Path::new("/proc")).filter(|name| name.parse::<i32>().is_ok());
    processes.filter(|pid| namespace(pid).is_some_and(|namespace| seen.insert(namespace))).find_map(
        |pid| {
            let point = mount_point(&pid, family)?;
            Some(Holder::Mount(format!(
                "{point} in the mount namespace of {}",
                Holder::process(pid.parse().ok()?)
            )))
        },
    )
}

/// Returns where one of `family` is mounted in the mount namespace of the process `pid`.
fn mount_point(pid: &str, family: &[FileId]) -> Option<String> {
    let is_on = |mount: &Mount| {
        family.iter().any(|&member| matches!(member, FileId::Block(number) if mount.is_on(number)))
    };
    mountinfo::of(pid).ok()?.into_iter().find(is_on).map(|mount| mount.point)
}

fn swap(family: &[FileId]) -> Option<Holder> {
    let swaps = fs::read_to_string("/proc/swaps").ok()?;
    let mut paths = swaps.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().next());
    let is_member = |path: &str| FileId::at(path).is_some_and(|used| family.contains(&used));
    paths.any(is_member).then_some(Holder::Swap)
}

fn device_above(file_id: FileId) -> Option<Holder> {
    let FileId::Block(number) = file_id else { return None };
    let name = names(&sysfs::directory(number).join("holders")).next()?;
    let mapped = fs::read_to_string(format!("/sys/block/{name}/dm/name")).ok();
    Some(Holder::Device(match mapped {
        Some(mapped) => format!("{name} ({})", mapped.trim_end()),
        None => name,
    }))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_that_has_the_file_open_is_identified() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let file_id = FileId::at(file.path()).unwrap();
        let mut child =
            Command::new("sleep").arg("60").stdin(file.reopen().unwrap()).spawn().unwrap();
        let holder = holder(file_id);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(holder, Holder::Process(i32::try_from(child.id()).unwrap(), "sleep".into()));
    }

    #[test]
    fn a_reader_conflicts_with_a_writer_and_a_writer_with_everyone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let file_id = FileId::at(file.path()).unwrap();
        let found_with = |stdin: fs::File| {
            let mut child = Command::new("sleep").arg("60").stdin(stdin).spawn().unwrap();
            let sources = [true, false].map(|read_only| OpenSource { file_id, read_only });
            let found = conflicting_holders(&sources);
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
