//! A holder that was found, and how its release can be noticed.

use std::{fs::File, path::PathBuf, rc::Rc};

use super::{disk::Disk, scan::Cost};
use crate::{
    holder::{Holder, HolderKind},
    inode::Inode,
    text::truncated,
};

/// Names come from containers: they are bounded here, and escaped where they are shown.
pub(super) const LONGEST_NAME: usize = 200;

/// A holder that was found, and how its release can be noticed.
#[derive(Debug, Clone)]
pub struct Found {
    /// The holder.
    pub holder: Holder,
    pub(super) trace: Trace,
}

/// What the kernel offers to notice that a holder has released the disk.
#[derive(Debug, Clone)]
pub(super) enum Trace {
    /// A descriptor in `/proc`, and what it leads to: a close of its inode can be watched.
    Descriptor(PathBuf, Inode),
    /// A file of `/proc` that was opened before it was read, and on which the kernel reports
    /// changes; and the process that it is about. Our descriptor would keep the mounts alive after
    /// the end of that process.
    Changes(Rc<File>, Option<u32>),
    /// The kernel sends uevents.
    Uevent,
    /// Nothing: the holders have to be found again.
    Nothing,
}

impl Found {
    /// A holder that claims the disk and is not visible.
    pub fn unknown(disk: &Disk) -> Found {
        let detail = format!("an unknown holder that claims {}", disk.devices[0].0);
        Found::new(disk, HolderKind::Unknown, detail, Trace::Nothing)
    }

    /// Stands for the holders that a scan may have missed.
    pub(super) fn not_searched(disk: &Disk, cost: &Cost) -> Found {
        let detail = format!("perhaps others: the search did not end in time{cost}");
        Found::new(disk, HolderKind::Unknown, detail, Trace::Nothing)
    }

    pub(super) fn new(disk: &Disk, kind: HolderKind, detail: String, trace: Trace) -> Found {
        let holder = Holder {
            serial: disk.serial.clone(),
            kind,
            pid: 0,
            command: String::new(),
            container_id: String::new(),
            detail: truncated(detail, LONGEST_NAME),
        };
        Found { holder, trace }
    }
}
