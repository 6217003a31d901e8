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
    block_device::{BlockDevice, SYSFS},
    kernel_text,
    mountinfo::{self, Mount},
    process,
    search::Search,
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

    /// Returns the number of a block device.
    pub(crate) fn block(self) -> Option<u64> {
        match self {
            Self::Block(number) => Some(number),
            Self::File(..) => None,
        }
    }

    /// Returns it and everything that it shares its bytes with: a disk's partitions, a partition's
    /// disk.
    pub(crate) fn family(self) -> io::Result<Vec<Self>> {
        let Self::Block(number) = self else { return Ok(vec![self]) };
        let family = BlockDevice::find(Path::new(SYSFS), number)?.family()?.into_iter();
        Ok(family.map(|device| Self::Block(device.number)).collect())
    }
}

/// Returns the holder of `file_id`, which is in use and may be at `path`: the first that is found,
/// in the order of [`Holder`]. What cannot be seen is not named.
pub(crate) fn holder(file_id: FileId, path: Option<&Path>, search: &Search) -> Holder {
    holder_besides(file_id, path, None, search)
}

/// Returns the holder of `file_id` as [`holder`] does, but never the loop device `except`.
pub(crate) fn holder_besides(
    file_id: FileId,
    path: Option<&Path>,
    except: Option<u64>,
    search: &Search,
) -> Holder {
    // The name of the holder is not worth the rest of the time.
    let search = &search.within(search.remaining() / 2);
    let family = file_id.family().unwrap_or_else(|_| vec![file_id]);
    let is_above = |known: &LoopDevice| {
        let backing = known.backing.as_ref();
        Some(known.number) != except
            && backing.is_some_and(|backing| family.contains(&backing.file_id))
    };
    let loop_above = || loop_device::all().unwrap_or_default().into_iter().rfind(is_above);
    mount(&family)
        .or_else(|| swap(&family))
        .or_else(|| family.iter().find_map(|&member| device_above(member)))
        .or_else(|| loop_above().map(|known| Holder::Loop(known.name)))
        // Before the processes: programs that inspect devices open them for a moment.
        .or_else(|| mount_elsewhere(&family, search))
        .or_else(|| opener(&family, path, search))
        .unwrap_or(Holder::Unknown)
}

fn mount(family: &[FileId]) -> Option<Holder> {
    mount_point("self", family).map(Holder::Mount)
}

/// Finds a mount of one of `family` in the mount namespaces of other processes.
fn mount_elsewhere(family: &[FileId], search: &Search) -> Option<Holder> {
    search.step(|| "the search of the mounts of all processes".to_owned());
    let search = search.within(search.remaining() / 2);
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let mut seen: HashSet<_> = namespace("self").into_iter().collect();
    for pid in process::all().ok()? {
        search.check().ok()?;
        let text = pid.to_string();
        if !namespace(&text).is_some_and(|namespace| seen.insert(namespace)) {
            continue;
        }
        if let Some(point) = mount_point(&text, family) {
            let process = Holder::process(pid);
            return Some(Holder::Mount(format!("{point} in the mount namespace of {process}")));
        }
    }
    None
}

/// Finds a process that has one of `family` open; one that runs a VM before any other.
fn opener(family: &[FileId], path: Option<&Path>, search: &Search) -> Option<Holder> {
    let paths: Vec<_> = family.iter().filter_map(|&member| node(member)).collect();
    let paths = [paths, path.map(Path::to_owned).into_iter().collect()].concat();
    let found = openers(family, &paths, search).unwrap_or_default();
    let vm = found.iter().find(|opener| process::runs_a_vm(opener.pid, search) == Ok(true));
    vm.or(found.first()).map(|opener| Holder::process(opener.pid))
}

/// Returns the path of the device node of a block device.
pub(crate) fn node(file_id: FileId) -> Option<PathBuf> {
    BlockDevice::find(Path::new(SYSFS), file_id.block()?).ok()?.node().ok()
}

/// Returns where one of `family` is mounted in the mount namespace of the process `pid`.
fn mount_point(pid: &str, family: &[FileId]) -> Option<String> {
    let numbers: Vec<_> = family.iter().filter_map(|member| member.block()).collect();
    let is_on = |mount: &Mount| numbers.iter().any(|&number| mount.is_on(number));
    let mounts = mountinfo::of(pid).ok()?;
    mounts.into_iter().find(is_on).map(|mount| mount.point.display().to_string())
}

fn swap(family: &[FileId]) -> Option<Holder> {
    let swaps = swaps().ok()?;
    let mut used = swaps.iter().filter_map(FileId::at);
    used.any(|used| family.contains(&used)).then_some(Holder::Swap)
}

/// Returns the paths of the devices and files that the kernel uses for swap. One that was removed
/// ends with ` (deleted)`.
pub(crate) fn swaps() -> io::Result<Vec<PathBuf>> {
    let swaps = match kernel_text::read("/proc/swaps") {
        // A kernel without swap.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        swaps => swaps?,
    };
    Ok(parse_swaps(&swaps))
}

pub(crate) fn parse_swaps(swaps: &[u8]) -> Vec<PathBuf> {
    let lines = swaps.split(|&byte| byte == b'\n').skip(1);
    let paths = lines.filter_map(|line| line.split(u8::is_ascii_whitespace).next());
    paths.filter(|path| !path.is_empty()).map(|path| kernel_text::unescape(path).into()).collect()
}

fn device_above(file_id: FileId) -> Option<Holder> {
    let device = BlockDevice::find(Path::new(SYSFS), file_id.block()?).ok()?;
    let name = device.holders().ok()?.into_iter().next()?;
    let mapped = fs::read(Path::new("/sys/block").join(&name).join("dm/name")).ok();
    let name = name.to_string_lossy();
    Some(Holder::Device(match mapped {
        Some(mapped) => {
            format!("{name} ({})", String::from_utf8_lossy(mapped.trim_ascii_end()))
        }
        None => name.into_owned(),
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
        let search = Search::until(crate::Deadline::after(std::time::Duration::from_secs(30)));
        let holder = holder(file_id, Some(file.path()), &search);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(holder, Holder::Process(i32::try_from(child.id()).unwrap(), "sleep".into()));
    }

    #[test]
    fn a_process_whose_name_is_not_utf8_is_identified() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join(std::ffi::OsStr::from_bytes(b"a\xff"));
        fs::copy("/bin/sleep", &program).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut child =
            Command::new(&program).arg("60").stdin(file.reopen().unwrap()).spawn().unwrap();
        let search = Search::until(crate::Deadline::after(std::time::Duration::from_secs(30)));
        let holder = holder(FileId::at(file.path()).unwrap(), Some(file.path()), &search);
        child.kill().unwrap();
        child.wait().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert_eq!(holder, Holder::Process(pid, "a\u{fffd}".into()));
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
