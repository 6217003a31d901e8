//! Who keeps a disk in use in the guest: the words for it, in errors and in replies. The module
//! `holders` finds them.

use std::fmt;

/// How a disk is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HolderKind {
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
    /// It is claimed, and the kernel does not show by whom: a mount that was detached lazily, or
    /// one that is being removed.
    Unknown,
}

impl HolderKind {
    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            HolderKind::Process => "process",
            HolderKind::Mount => "mount",
            HolderKind::Dm => "dm",
            HolderKind::Md => "md",
            HolderKind::Loop => "loop",
            HolderKind::Swap => "swap",
            HolderKind::Device => "device",
            HolderKind::Unknown => "unknown",
        }
    }

    /// Whether such a holder prevents others from claiming the disk.
    pub(crate) fn claims(self) -> bool {
        !matches!(self, HolderKind::Process | HolderKind::Loop | HolderKind::Unknown)
    }
}

/// One holder of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The disk's serial.
    pub serial: String,
    /// How it holds the disk.
    pub kind: HolderKind,
    /// The process, or for a mount one that sees it; 0 where there is none.
    pub pid: u32,
    /// Its name, at most 15 bytes.
    pub command: String,
    /// The container that it is in; empty outside of containers, and where that is not known.
    pub container_id: String,
    /// The path, the mount point, or the device's name.
    pub detail: String,
}

impl Holder {
    /// Whether it may release the disk by itself in a moment, as the programs do that the guest
    /// runs for every disk that appears or changes (udev, blkid, those of multipath and LVM). They
    /// are outside of all containers; one that claims the disk may be gone before it is looked for.
    pub(crate) fn may_be_short_lived(&self) -> bool {
        match self.kind {
            HolderKind::Process => self.container_id.is_empty(),
            kind => kind == HolderKind::Unknown,
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = self.detail.escape_debug();
        match self.kind {
            HolderKind::Process => {
                write!(f, "process {} ({}) with {detail}", self.pid, self.command.escape_debug())?
            }
            HolderKind::Mount => write!(f, "mount {detail}")?,
            HolderKind::Unknown => write!(f, "{detail}")?,
            other => write!(f, "{} {detail}", other.name())?,
        }
        if !self.container_id.is_empty() {
            write!(f, " in container {}", self.container_id)?;
        }
        Ok(())
    }
}
