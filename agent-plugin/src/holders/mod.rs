//! Who has a disk in use in the guest, by name and place: processes, mounts, swap, devices made of
//! it, loop devices over it.
//!
//! This only names. Whether a disk is claimed is decided by an exclusive open
//! ([`BlockDevice::claim`]), which fails for mounts, device mapper, md and swap alike, in whatever
//! namespace they are; it does not see a process or a loop device that merely has the disk open,
//! and these are found here. What nothing tells: a mapping whose descriptor was closed, and a
//! descriptor that is on its way in a socket.

mod block;
pub(crate) mod mount;
mod process;
mod swap;
mod watch;

use std::{fmt, fs::File, path::PathBuf, rc::Rc};

use crate::{
    block::{BlockDevice, DeviceNumber},
    error::Result,
    namespace::Target,
};

pub use watch::{Waited, Watch};

/// In what way a disk is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A process has it open.
    Process,
    /// A file system on it is mounted.
    Mount,
    /// Device mapper.
    Dm,
    /// Software RAID.
    Md,
    /// A loop device is over it.
    Loop,
    /// The kernel swaps to it.
    Swap,
    /// Another device is made of it.
    Device,
    /// It is claimed, and nothing tells by whom: a mount that was detached lazily, or one that is
    /// being undone.
    Unknown,
}

impl Kind {
    /// As the contract has it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Process => "process",
            Kind::Mount => "mount",
            Kind::Dm => "dm",
            Kind::Md => "md",
            Kind::Loop => "loop",
            Kind::Swap => "swap",
            Kind::Device => "device",
            Kind::Unknown => "unknown",
        }
    }

    /// Whether it keeps others from claiming the disk.
    fn claims(self) -> bool {
        !matches!(self, Kind::Process | Kind::Loop | Kind::Unknown)
    }
}

/// One of those who hold a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The disk's serial.
    pub serial: String,
    /// In what way.
    pub kind: Kind,
    /// The process, or for a mount one that sees it; 0 where there is none.
    pub pid: u32,
    /// Its name, at most 15 bytes.
    pub command: String,
    /// The container that it is in; empty outside of all that are known or can be told.
    pub container_id: String,
    /// The path, the mount point, or the device's name.
    pub detail: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = self.detail.escape_debug();
        match self.kind {
            Kind::Process => {
                write!(f, "process {} ({}) with {detail}", self.pid, self.command.escape_debug())?
            }
            Kind::Mount => write!(f, "mount {detail}")?,
            Kind::Unknown => write!(f, "{detail}")?,
            other => write!(f, "{} {detail}", other.name())?,
        }
        if !self.container_id.is_empty() {
            write!(f, " in container {}", self.container_id)?;
        }
        Ok(())
    }
}

/// A disk that is asked about.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The volume's id.
    pub serial: String,
    /// The path that its container knows it by.
    pub path: String,
    /// The kernel's name and number, of the disk first, and of its partitions.
    devices: Vec<(String, DeviceNumber)>,
}

impl Disk {
    /// # Errors
    /// sysfs cannot be read.
    pub fn new(serial: &str, path: &str, disk: &BlockDevice) -> Result<Disk> {
        let mut devices = vec![(disk.name.clone(), disk.number)];
        devices.extend(block::partitions(&disk.name)?);
        Ok(Disk { serial: serial.to_owned(), path: path.to_owned(), devices })
    }

    fn has(&self, number: DeviceNumber) -> bool {
        self.devices.iter().any(|(_, own)| *own == number)
    }
}

/// How far to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Only for those who hold a disk that we have claimed: they do not claim it.
    Opened,
    /// For all.
    All,
}

/// A holder that was found, and what tells when it lets go.
#[derive(Debug, Clone)]
pub struct Found {
    /// Who.
    pub holder: Holder,
    trace: Trace,
}

/// What the kernel offers to notice that a holder has gone.
#[derive(Debug, Clone)]
enum Trace {
    /// A descriptor in `/proc`, on whose inode closing can be watched.
    Descriptor(PathBuf),
    /// A file of `/proc` that was opened before it was read, and that tells of changes; and a
    /// process that keeps alive what it is about, as our descriptor would do after that one's end.
    Changes(Rc<File>, Option<u32>),
    /// The kernel sends uevents.
    Uevent,
    /// Nothing: it has to be looked at again.
    Nothing,
}

impl Found {
    /// A claim of nobody who can be named.
    pub fn unknown(disk: &Disk) -> Found {
        let detail = format!("something that claims {} and is not to be seen", disk.devices[0].0);
        Found::new(disk, Kind::Unknown, detail, Trace::Nothing)
    }

    fn new(disk: &Disk, kind: Kind, detail: String, trace: Trace) -> Found {
        let serial = disk.serial.clone();
        let (command, container_id) = (String::new(), String::new());
        Found {
            holder: Holder {
                serial,
                kind,
                pid: 0,
                command,
                container_id,
                detail: shortened(detail),
            },
            trace,
        }
    }

    fn by(mut self, pid: u32, known: &[&Target]) -> Found {
        self.holder.pid = pid;
        self.holder.command = process::command(pid);
        self.holder.container_id = process::container(pid, known);
        self
    }
}

/// Looks for those who hold `disks`. The containers in `known` are told from others by their
/// namespaces and cgroups.
///
/// # Errors
/// `/proc` or sysfs cannot be read. Whatever goes away meanwhile holds nothing.
pub fn look(disks: &[Disk], known: &[&Target], scope: Scope) -> Result<Vec<Found>> {
    if disks.is_empty() {
        return Ok(Vec::new());
    }
    let pids = process::pids()?;
    let mut found = process::openers(&pids, disks, known);
    if scope == Scope::All {
        found.extend(mount::mounts(&pids, disks, known));
        found.extend(block::above(disks)?);
        found.extend(swap::swaps(disks)?);
    }
    found.extend(block::loops(disks)?);
    Ok(found)
}

/// Adds who is not to be seen: each of `claimed`, where the kernel says that somebody claims it,
/// has one that does.
pub fn add_unknown<'a>(found: &mut Vec<Found>, claimed: impl Iterator<Item = &'a Disk>) {
    for disk in claimed {
        let is_claim =
            |found: &Found| found.holder.serial == disk.serial && found.holder.kind.claims();
        if !found.iter().any(is_claim) {
            found.push(Found::unknown(disk));
        }
    }
}

/// Names come from containers: they are bounded here, and escaped where they are shown.
fn shortened(mut text: String) -> String {
    const LONGEST: usize = 200;
    if text.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Disk {
        let number = DeviceNumber { major: 8, minor: 0 };
        Disk { serial: "s".into(), path: "/dev/xvda".into(), devices: vec![("sda".into(), number)] }
    }

    #[test]
    fn a_claim_that_nobody_explains_is_told_as_such() {
        let disk = disk();
        let mut found = vec![Found::new(&disk, Kind::Process, "/dev/xvda".into(), Trace::Nothing)];
        add_unknown(&mut found, [&disk].into_iter());
        assert_eq!(found.len(), 2, "a process does not claim");
        let mut found = vec![Found::new(&disk, Kind::Mount, "/mnt".into(), Trace::Nothing)];
        add_unknown(&mut found, [&disk].into_iter());
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn a_hostile_name_is_bounded_and_escaped() {
        let mut found = Found::new(&disk(), Kind::Process, "é".repeat(4096), Trace::Nothing);
        assert!(found.holder.detail.len() < 210);
        found.holder.command = "a\u{1b}[2J\n".into();
        found.holder.detail = "\u{202e}/dev".into();
        assert_eq!(found.holder.to_string(), "process 0 (a\\u{1b}[2J\\n) with \\u{202e}/dev");
    }
}
