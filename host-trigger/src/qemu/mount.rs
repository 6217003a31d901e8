//! How a volume's file system is mounted: what a record says of the request and of the outcome.

use block_volume_api::block_volume::{Mount, Mounted};
use serde::{Deserialize, Serialize};

use super::record::is_default;
use crate::fs_group::FsGroup;

/// What was requested.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MountRecord {
    /// The type of the file system; empty: whatever the volume has.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fs_type: String,
    /// The options, without the access.
    #[serde(default, skip_serializing_if = "is_default")]
    pub options: Vec<String>,
    /// The group that all files are to belong to.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fs_group: Option<FsGroup>,
}

/// What the guest has mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountedRecord {
    /// The type of the file system.
    pub fs_type: String,
    /// It has the IDs of the container's user namespace.
    #[serde(default, skip_serializing_if = "is_default")]
    pub idmapped: bool,
    /// How many files got another group or other permissions.
    #[serde(default, skip_serializing_if = "is_default")]
    pub owners_changed: u64,
}

impl MountRecord {
    /// The message to the guest.
    pub(crate) fn to_request(&self) -> Mount {
        Mount {
            file_system: self.fs_type.clone(),
            options: self.options.clone(),
            fs_group: self.fs_group.map(FsGroup::to_request).into(),
            ..Default::default()
        }
    }

    /// What of this request is not as in `attached`, whose file system is of the type `found`.
    pub(crate) fn differs(&self, attached: &Self, found: Option<&str>) -> Vec<&'static str> {
        let found = found.unwrap_or(&attached.fs_type);
        let is_type = |asked: &str| asked.is_empty() || found.is_empty() || is_same(asked, found);
        [
            ("file system (--fs-type)", !is_type(&self.fs_type)),
            ("mount options (--mount-options)", self.options != attached.options),
            ("group of its files (--fs-group)", self.fs_group != attached.fs_group),
        ]
        .into_iter()
        .filter_map(|(what, differs)| differs.then_some(what))
        .collect()
    }
}

impl From<&Mounted> for MountedRecord {
    fn from(reply: &Mounted) -> Self {
        let Mounted { file_system, idmapped, owners_changed, .. } = reply.clone();
        Self { fs_type: file_system, idmapped, owners_changed }
    }
}

impl From<&MountedRecord> for Mounted {
    fn from(record: &MountedRecord) -> Self {
        let MountedRecord { fs_type, idmapped, owners_changed } = record.clone();
        Self { file_system: fs_type, idmapped, owners_changed, ..Default::default() }
    }
}

/// Whether a volume with the file system `found` is what `asked` names: the three of the ext family
/// have the same superblock and, in Linux, the same driver.
pub(crate) fn is_same(asked: &str, found: &str) -> bool {
    let is_ext = |name: &str| matches!(name, "ext2" | "ext3" | "ext4");
    asked == found || is_ext(asked) && is_ext(found)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::fs_group::FsGroupChange;

    fn mount(fs_type: &str, options: &[&str], gid: Option<u32>) -> MountRecord {
        let change = FsGroupChange::Always;
        MountRecord {
            fs_type: fs_type.into(),
            options: options.iter().map(|&option| option.into()).collect(),
            fs_group: gid.map(|gid| FsGroup { gid, change }),
        }
    }

    #[rstest]
    #[case::the_same(mount("ext4", &["noatime"], None), &[])]
    #[case::without_the_type(mount("", &["noatime"], None), &[])]
    #[case::of_the_same_family(mount("ext3", &["noatime"], None), &[])]
    #[case::another_type(mount("xfs", &["noatime"], None), &["file system (--fs-type)"])]
    #[case::other_options(mount("ext4", &[], None), &["mount options (--mount-options)"])]
    #[case::another_group(mount("", &["noatime"], Some(0)), &["group of its files (--fs-group)"])]
    fn a_repeat_is_compared(#[case] asked: MountRecord, #[case] differs: &[&str]) {
        let attached = mount("", &["noatime"], None);
        assert_eq!(asked.differs(&attached, Some("ext4")), differs);
    }

    #[test]
    fn a_record_is_short_and_is_read_back() {
        let record = mount("", &[], None);
        assert_eq!(serde_json::to_string(&record).unwrap(), "{}");
        let record = mount("ext4", &["noatime"], Some(5));
        let text =
            r#"{"fs_type":"ext4","options":["noatime"],"fs_group":{"gid":5,"change":"Always"}}"#;
        assert_eq!(serde_json::to_string(&record).unwrap(), text);
        assert_eq!(serde_json::from_str::<MountRecord>(text).unwrap(), record);
    }
}
