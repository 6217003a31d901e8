//! The file system of a mounted volume, as the guest tells of it
//! ([statfs(2)](https://man7.org/linux/man-pages/man2/statfs.2.html)). The host never reads it: the
//! container may have written it.

use block_volume_api::block_volume::{FileSystemState, Resized};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{sanitize::sanitize, size::human_size};

/// What a file system has, and how much of it is in use.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSystemUse {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// All bytes.
    pub capacity_bytes: u64,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Bytes that users other than root can still use.
    pub available_bytes: u64,
    /// All inodes; 0 if the file system does not count them.
    pub inodes: u64,
    /// Inodes in use.
    pub inodes_used: u64,
    /// Inodes that are free.
    pub inodes_free: u64,
    /// Whether it refuses writes, also if the guest's kernel has made it so after an error.
    pub read_only: bool,
}

impl From<&FileSystemState> for FileSystemUse {
    fn from(state: &FileSystemState) -> Self {
        Self {
            kind: sanitize(&state.type_),
            capacity_bytes: state.bytes,
            used_bytes: state.bytes.saturating_sub(state.bytes_free),
            available_bytes: state.bytes_available,
            inodes: state.inodes,
            inodes_used: state.inodes.saturating_sub(state.inodes_free),
            inodes_free: state.inodes_free,
            read_only: state.read_only,
        }
    }
}

impl FileSystemUse {
    /// For people.
    pub(crate) fn text(&self) -> String {
        let inodes = match self.inodes {
            0 => String::new(),
            all => format!(", {} of {all} inodes", self.inodes_used),
        };
        let access = if self.read_only { ", read-only" } else { "" };
        format!(
            "{}: {} of {} used, {} available{inodes}{access}",
            self.kind,
            human_size(self.used_bytes),
            human_size(self.capacity_bytes),
            human_size(self.available_bytes),
        )
    }
}

/// What a resize did to a file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GrownFileSystem {
    /// Its bytes before.
    pub before_bytes: u64,
    /// Its bytes now.
    pub capacity_bytes: u64,
    /// Why it was not grown; absent if it was, or had that size.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub not_grown: String,
}

impl From<&Resized> for GrownFileSystem {
    fn from(reply: &Resized) -> Self {
        Self {
            before_bytes: reply.file_system_before,
            capacity_bytes: reply.file_system_size,
            not_grown: sanitize(&reply.not_grown),
        }
    }
}

impl GrownFileSystem {
    /// For people.
    pub(crate) fn text(&self) -> String {
        let (before, now) = (human_size(self.before_bytes), human_size(self.capacity_bytes));
        match self.not_grown.as_str() {
            "" if self.before_bytes == self.capacity_bytes => format!("{now}, as before"),
            "" => format!("{before}, now {now}"),
            why => format!("{now}, not grown: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn state(bytes: u64, bytes_free: u64) -> FileSystemState {
        FileSystemState {
            type_: "ext4".into(),
            bytes,
            bytes_free,
            bytes_available: 1 << 20,
            inodes: 10,
            inodes_free: 4,
            ..Default::default()
        }
    }

    #[test]
    fn what_is_not_free_is_in_use() {
        let used = FileSystemUse::from(&state(4 << 20, 1 << 20));
        assert_eq!((used.used_bytes, used.inodes_used), (3 << 20, 6));
        assert_eq!(used.text(), "ext4: 3 MiB of 4 MiB used, 1 MiB available, 6 of 10 inodes");
        // A guest that lies.
        assert_eq!(FileSystemUse::from(&state(1, 2)).used_bytes, 0);
        let uncounted = FileSystemState { inodes: 0, read_only: true, ..state(0, 0) };
        let text = FileSystemUse::from(&uncounted).text();
        assert!(text.ends_with("available, read-only"), "{text}");
    }

    #[rstest]
    #[case(1 << 20, 2 << 20, "", "1 MiB, now 2 MiB")]
    #[case(1 << 20, 1 << 20, "", "1 MiB, as before")]
    #[case(1 << 20, 1 << 20, "squashfs\n", "1 MiB, not grown: squashfs\\n")]
    fn a_resize_tells_both_sizes(
        #[case] before: u64,
        #[case] now: u64,
        #[case] not_grown: &str,
        #[case] text: &str,
    ) {
        let reply = Resized {
            file_system_before: before,
            file_system_size: now,
            not_grown: not_grown.into(),
            ..Default::default()
        };
        assert_eq!(GrownFileSystem::from(&reply).text(), text);
    }
}
