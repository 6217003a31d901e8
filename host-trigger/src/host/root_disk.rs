//! The disks of this host's root file system, by device number. A guest that can write one of them
//! controls the host (CVE-2026-24054: a runtime passed one to a VM).
//!
//! The root may be an overlay: then each of its directories is on a file system of its own, which
//! may be an overlay again, or on a loop device over an image on yet another one. All of them are
//! the root's. What cannot be followed is an error, and no device is accepted then.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::{fstat, major},
};

use super::{
    block_device::{BlockDevice, SYSFS},
    btrfs,
    holders::{FileId, loop_device},
    kernel_text,
    mountinfo::{self, Mount},
    overlay::Directories,
};

/// The most directories and devices that a root is followed through.
const MOST: usize = 4096;

/// Whether the device `number` belongs to the root file system: it is its device, one of the
/// devices that it consists of, a disk that it is on, or any partition of such a disk.
pub(crate) fn is_root(number: u64) -> io::Result<bool> {
    let root = Root::find()?;
    let device = BlockDevice::find_any(Path::new(SYSFS), number)?;
    let whole = device.map(|device| device.disk()).transpose()?;
    Ok(root.file_systems.contains(&number)
        || whole.is_some_and(|whole| root.disks.contains(&whole.number)))
}

/// Whether the device `number` itself has the root file system, and not only its disk.
pub(crate) fn has_root(number: u64) -> io::Result<bool> {
    Ok(Root::find()?.file_systems.contains(&number))
}

/// What the root file system is on.
#[derive(Debug, Default, PartialEq, Eq)]
struct Root {
    /// The devices with a file system of it.
    file_systems: Vec<u64>,
    /// The disks below them, through all levels.
    disks: Vec<u64>,
}

impl Root {
    /// Finds the devices of the root file system, as this process and as the host's first process
    /// see it.
    fn find() -> io::Result<Self> {
        let mut search = RootSearch::new()?;
        let own = File::open("/").map_err(kernel_text::of("/"))?;
        search.directory(&own.into(), Path::new("/"))?;
        search.first_process()?;
        Ok(search.found)
    }
}

/// The search for all that the root is on.
struct RootSearch {
    found: Root,
    /// The mounts of this process and of the host's first one.
    mounts: Vec<Mount>,
    /// How many of them are this process's.
    own: usize,
    /// How many steps it took.
    steps: usize,
}

impl RootSearch {
    fn new() -> io::Result<Self> {
        let mut mounts = mountinfo::of("self")?;
        let own = mounts.len();
        mounts.extend(mountinfo::of("1")?);
        Ok(Self { found: Root::default(), mounts, own, steps: 0 })
    }

    /// Follows the root of the host's first process. Its mount table says what that is; its
    /// directory may be closed even to root.
    fn first_process(&mut self) -> io::Result<()> {
        // The last mount is on top.
        let top = self.mounts[self.own..].iter().rfind(|mount| mount.point == Path::new("/"));
        match top.cloned() {
            Some(root) => self.mount(&root),
            None => {
                let path = Path::new(FIRST_ROOT);
                self.directory(&File::open(path).map_err(kernel_text::of(path))?.into(), path)
            }
        }
    }

    fn count(&mut self, path: &Path) -> io::Result<()> {
        self.steps += 1;
        if self.steps > MOST {
            return Err(failed(path, &format!("the root consists of more than {MOST} parts")));
        }
        Ok(())
    }

    /// Follows an open directory to the devices that its file system is on.
    fn directory(&mut self, directory: &OwnedFd, path: &Path) -> io::Result<()> {
        self.count(path)?;
        let number = fstat(directory).map_err(|errno| kernel_text::of(path)(errno.into()))?.st_dev;
        match self.mount_of(directory)? {
            Some(mount) => self.mount(&mount)?,
            // The mount is above the root directory of both processes.
            None if major(number) != 0 => {}
            None => return Err(failed(path, "no mount table has the mount that it is on")),
        }
        if major(number) != 0 { self.device(number) } else { Ok(()) }
    }

    /// Returns the mount that an open directory is on.
    fn mount_of(&self, directory: &OwnedFd) -> io::Result<Option<Mount>> {
        let id = mountinfo::id_of(directory)?;
        Ok(self.mounts.iter().find(|mount| mount.id == id).cloned())
    }

    /// Follows a mount to the devices that its file system is on.
    fn mount(&mut self, mount: &Mount) -> io::Result<()> {
        self.count(&mount.point)?;
        if mount.kind == "overlay" {
            return self.overlay(mount);
        }
        let mut numbers = mount.source_numbers();
        if major(mount.device) != 0 {
            numbers.push(mount.device);
        } else if numbers.is_empty() && mount.source_paths().next().is_some() {
            let source = mount.source.display();
            return Err(failed(&mount.point, &format!("its device {source} cannot be found")));
        }
        if mount.kind == "btrfs" {
            for number in numbers.clone() {
                numbers.extend(btrfs::devices_with(number)?);
            }
        }
        numbers.into_iter().try_for_each(|number| self.device(number))
    }

    /// Follows all directories of an overlay.
    fn overlay(&mut self, mount: &Mount) -> io::Result<()> {
        let Directories { lower, upper } =
            Directories::of(&mount.options).map_err(kernel_text::of(&mount.point))?;
        // Whoever mounts many directories names the lower ones from a directory above the upper
        // one, because the options are limited to a page.
        let bases = upper.first().map(PathBuf::as_path).unwrap_or(Path::new("/")).ancestors();
        let bases: Vec<_> = bases.filter(|base| base.is_absolute()).map(Path::to_owned).collect();
        for path in lower.iter().chain(&upper) {
            let mut found = Vec::new();
            for root in ["/", FIRST_ROOT] {
                found.extend(self.overlay_directory(root, &bases, path, mount)?);
            }
            if found.is_empty() {
                let what = format!("its directory {} cannot be found", path.display());
                return Err(failed(&mount.point, &format!("it is an overlay, and {what}")));
            }
            found.iter().try_for_each(|directory| self.directory(directory, path))?;
        }
        Ok(())
    }

    /// Opens the directory `path` of an overlay, as a process whose root directory is `root` finds
    /// it. It may have been at that path only before another root was mounted over it.
    fn overlay_directory(
        &self,
        root: &str,
        bases: &[PathBuf],
        path: &Path,
        overlay: &Mount,
    ) -> io::Result<Option<OwnedFd>> {
        let found = bases.iter().find_map(|base| open_below(root, &base.join(path)).ok());
        let Some(directory) = found else { return Ok(None) };
        // No overlay consists of itself.
        let is_itself =
            self.mount_of(&directory)?.is_some_and(|mount| mount.device == overlay.device);
        Ok(Some(directory).filter(|_| !is_itself))
    }

    /// Adds a device with a file system, and the disks below it.
    fn device(&mut self, number: u64) -> io::Result<()> {
        if self.found.file_systems.contains(&number) {
            return Ok(());
        }
        self.found.file_systems.push(number);
        let mut next = vec![number];
        while let Some(number) = next.pop() {
            // MTD has numbers without block devices.
            let Some(device) = BlockDevice::find_any(Path::new(SYSFS), number)? else { continue };
            let disk = device.disk()?;
            if self.found.disks.contains(&disk.number) {
                continue;
            }
            self.found.disks.push(disk.number);
            next.extend(device.slaves()?.into_iter().map(|slave| slave.number));
            if major(disk.number) == loop_device::MAJOR {
                self.below_loop(&disk)?;
            }
        }
        Ok(())
    }

    /// Follows a loop device to what it is over: a device, or the file system of an image.
    fn below_loop(&mut self, device: &BlockDevice) -> io::Result<()> {
        let Some(known) = loop_device::find(device)? else { return Ok(()) };
        let path = &known.path;
        self.count(path)?;
        let unknown = || failed(path, "what is below a loop device of the root cannot be seen");
        let backing = known.backing.as_ref().filter(|backing| backing.is_certain);
        match backing.ok_or_else(unknown)?.file_id {
            FileId::Block(number) => self.device(number),
            FileId::File(number, _) if major(number) != 0 => self.device(number),
            // The file system has no device number of its own.
            file_id @ FileId::File(..) => {
                let parent = path.parent().filter(|_| FileId::at(path) == Some(file_id));
                let parent = parent.ok_or_else(unknown)?;
                self.directory(&open_below("/", parent)?, parent)
            }
        }
    }
}

/// The root directory of the host's first process.
const FIRST_ROOT: &str = "/proc/1/root";

fn failed(path: &Path, why: &str) -> io::Error {
    let path = path.display();
    io::Error::other(format!("the disks of the root file system are not known: {path}: {why}"))
}

/// Opens the directory `path` as a process whose root directory is `root` would find it.
fn open_below(root: &str, path: &Path) -> io::Result<OwnedFd> {
    let root = File::open(root)?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(openat2(root, path, how)?)
}

#[cfg(test)]
#[path = "root_disk_tests.rs"]
mod tests;
