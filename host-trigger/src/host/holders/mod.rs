//! The holders of a block device or file on this host: mounts, swap, devices on top of it
//! ([`holders`](https://www.kernel.org/doc/Documentation/ABI/stable/sysfs-block) in sysfs), loop
//! devices, processes. Whether a source may be used is decided by its exclusive open (for a file,
//! by a lease) and by `backing`; this module identifies the holder.

use std::{
    collections::HashSet,
    fmt, fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

pub(crate) mod loop_device;
pub(crate) mod opener;

use loop_device::LoopDevice;
use opener::openers;

use super::{
    block_device::unescape,
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
        Self::of(&fs::metadata(path).ok()?)
    }

    /// Returns what has this metadata; `None` if that is neither a block device nor a regular file.
    pub(crate) fn of(metadata: &fs::Metadata) -> Option<Self> {
        match metadata.file_type() {
            kind if kind.is_block_device() => Some(Self::Block(metadata.rdev())),
            kind if kind.is_file() => Some(Self::File(metadata.dev(), metadata.ino())),
            _ => None,
        }
    }

    /// Returns it and everything that it shares its bytes with: a disk's partitions, a partition's
    /// disk.
    pub(crate) fn family(self) -> Vec<Self> {
        match self {
            Self::Block(number) => sysfs::family(number).into_iter().map(Self::Block).collect(),
            Self::File(..) => vec![self],
        }
    }
}

/// Returns the holder of `file_id`: the first that is found, in the order of [`Holder`].
pub fn holder(file_id: FileId) -> Holder {
    holder_besides(file_id, None)
}

/// Returns the holder of `file_id` as [`holder`] does, but never the loop device `except`.
pub(crate) fn holder_besides(file_id: FileId, except: Option<u64>) -> Holder {
    let family = file_id.family();
    let is_above = |known: &LoopDevice| {
        let backing = known.backing.as_ref();
        Some(known.number) != except
            && backing.is_some_and(|backing| family.contains(&backing.file_id))
    };
    let loop_above = || loop_device::all().into_iter().rfind(is_above);
    mount(&family)
        .or_else(|| swap(&family))
        .or_else(|| family.iter().find_map(|&member| device_above(member)))
        .or_else(|| loop_above().map(|known| Holder::Loop(known.name)))
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
    let swaps = swaps().ok()?;
    let mut used = swaps.iter().filter_map(FileId::at);
    used.any(|used| family.contains(&used)).then_some(Holder::Swap)
}

/// Returns the paths of the devices and files that the kernel uses for swap. One that was removed
/// ends with ` (deleted)`.
pub(crate) fn swaps() -> io::Result<Vec<PathBuf>> {
    let swaps = match fs::read("/proc/swaps") {
        // A kernel without swap.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        swaps => swaps?,
    };
    Ok(parse_swaps(&swaps))
}

fn parse_swaps(swaps: &[u8]) -> Vec<PathBuf> {
    let lines = swaps.split(|&byte| byte == b'\n').skip(1);
    let paths = lines.filter_map(|line| line.split(u8::is_ascii_whitespace).next());
    paths.filter(|path| !path.is_empty()).map(|path| unescape(path).into()).collect()
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
    use std::{os::unix::ffi::OsStrExt, process::Command};

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
    fn paths_of_swap_are_bytes() {
        let swaps = b"Filename\t\t\t\tType\t\tSize\n/dev/sda2                 partition\t8\n\
                      /a\\040b\\377\\040(deleted) file\t8\n";
        let deleted = std::ffi::OsStr::from_bytes(b"/a b\xff (deleted)");
        assert_eq!(parse_swaps(swaps), [Path::new("/dev/sda2"), Path::new(deleted)]);
        assert_eq!(parse_swaps(b""), [] as [PathBuf; 0]);
    }
}
