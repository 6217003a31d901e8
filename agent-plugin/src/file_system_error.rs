//! Why the file system of a volume is not mounted: one variant per case, each with its reason of
//! the API.

use std::io;

use crate::{api::block_volume::Reason, text::escaped};

/// Why the file system of a volume is not mounted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileSystemError {
    /// The volume has another file system than requested.
    #[error("{device} has the file system {found}, and {requested} is requested: request {found}")]
    Mismatch {
        /// The kernel's name of the disk.
        device: String,
        /// By its superblock.
        found: &'static str,
        /// By the caller.
        requested: &'static str,
    },
    /// Several superblocks are there, and no type is requested.
    #[error("{device} has the superblocks of {one} and of {other}: request one of them")]
    Ambiguous {
        /// The kernel's name of the disk.
        device: String,
        /// One type.
        one: &'static str,
        /// Another one.
        other: &'static str,
    },
    /// There is nothing to mount.
    #[error(
        "{device} has no file system that can be mounted, but {found}: make one on the host first"
    )]
    None {
        /// The kernel's name of the disk.
        device: String,
        /// "nothing in its first sectors", "a partition table", …
        found: &'static str,
    },
    /// The kernel refuses to mount it.
    #[error(
        "the guest's kernel refuses to mount {device} as {file_system}: {source}{}",
        listed(messages)
    )]
    Refused {
        /// The kernel's name of the disk.
        device: String,
        /// The type that was tried.
        file_system: &'static str,
        /// The kernel's error.
        source: io::Error,
        /// What the kernel said about it, in its order.
        messages: Vec<String>,
    },
    /// The group of the files was not changed in time.
    #[error(
        "the group of {changed} files was changed when the time was over: repeat the request to \
         continue, or give it a longer time-out"
    )]
    Owners {
        /// How many files.
        changed: u64,
    },
}

impl FileSystemError {
    /// The reason on the wire.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Mismatch { .. } | Self::Ambiguous { .. } => Reason::REASON_FILE_SYSTEM_MISMATCH,
            Self::None { .. } => Reason::REASON_NO_FILE_SYSTEM,
            Self::Refused { .. } => Reason::REASON_FILE_SYSTEM_REFUSED,
            Self::Owners { .. } => Reason::REASON_OWNERS_INCOMPLETE,
        }
    }
}

/// What the kernel says may quote names of the image.
fn listed(messages: &[String]) -> String {
    if messages.is_empty() {
        return String::new();
    }
    let escaped: Vec<String> = messages.iter().map(|message| escaped(message, 200)).collect();
    format!(" ({})", escaped.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn what_the_kernel_says_reaches_the_message_in_one_line() {
        let error = FileSystemError::Refused {
            device: "sda".into(),
            file_system: "ext4",
            source: io::Error::from_raw_os_error(libc::EUCLEAN),
            messages: vec!["EXT4-fs (sda): bad \n\u{1b}[2J".into(), "again".into()],
        };
        let error = Error::from(error);
        assert_eq!(error.reason(), Reason::REASON_FILE_SYSTEM_REFUSED);
        // The C libraries have different words for it.
        let errno = io::Error::from_raw_os_error(libc::EUCLEAN);
        let expected = format!(
            "the guest's kernel refuses to mount sda as ext4: {errno} \
             (EXT4-fs (sda): bad \\n\\u{{1b}}[2J; again)"
        );
        assert_eq!(error.message(), expected);
    }
}
