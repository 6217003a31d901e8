//! Grows the file system of a disk that was resized. It is reached by its disk: its containers are
//! not involved, and may be gone.

use std::time::Instant;

use super::{attachment::Attachment, disk_removal::within, mount::identity};
use crate::{
    block::BlockDevice,
    error::{Error, Result},
    file_system::{Kind, Superblock},
};

/// What became of a file system.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Grown {
    /// Its bytes before and after; 0 where it could not be asked.
    pub(crate) before: u64,
    pub(crate) size: u64,
    /// Why it was not grown.
    pub(crate) not_grown: Option<String>,
}

impl Grown {
    pub(super) fn is_changed(&self) -> bool {
        self.before != self.size
    }
}

/// Grows the file system of an attachment that is a mount to the `size` of its disk. What cannot be
/// grown is no error: the disk has its size.
pub(super) fn grow(
    attachment: &Attachment,
    disk: &BlockDevice,
    size: u64,
    deadline: Instant,
) -> Grown {
    let identity = identity(attachment, &attachment.container_id, Some(disk));
    let source = identity.source(&disk.name, disk.number);
    let (kind, disk) = (attachment.mount.as_ref().and_then(|mount| mount.kind), disk.clone());
    let work = move || -> Result<Grown> {
        // To reach it would mount it.
        match disk.claim() {
            Ok(_) => return Ok(not_grown("it is not mounted")),
            Err(error) if matches!(*error, Error::Busy { .. }) => {}
            Err(error) => return Err(error),
        }
        let kind = kind.map_or_else(|| Kind::of(&disk.name, disk.number), Ok)?;
        let superblock = Superblock::reach(&source, kind)?;
        let before = superblock.space()?.bytes;
        let not_grown = superblock.grow(size).err();
        Ok(Grown { before, size: superblock.space()?.bytes, not_grown })
    };
    let patience = deadline.saturating_duration_since(Instant::now());
    within(patience, "the file system to grow", work)
        .unwrap_or_else(|error| not_grown(&error.message()))
}

fn not_grown(reason: &str) -> Grown {
    Grown { not_grown: Some(reason.to_owned()), ..Grown::default() }
}
