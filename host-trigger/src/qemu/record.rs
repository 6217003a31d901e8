//! Records: the free text (`opaque`) of
//! [`add-fd`](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html#command-QMP-misc.add-fd),
//! which QEMU keeps beside a descriptor and returns unchanged to any later client.
//!
//! The volume's own descriptor carries the [`IntentRecord`], written before anything else happens.
//! A second descriptor in the same set, of `/dev/null`, carries the [`CommitRecord`] once the guest
//! has done its part. A set that has an intent record alone is incomplete. A set with an
//! [`AbandonedRecord`] is all that QEMU has of a volume that was taken from the guest.
//!
//! The texts are short on purpose: QEMU reads a command byte by byte, at some four microseconds
//! each.

use block_volume_api::block_volume::{DeviceNumber, FilterMode, Mounted, NodeWay, Outcome};
use serde::{Deserialize, Serialize};

use super::mount::{MountRecord, MountedRecord};

/// The prefix of each record. Libvirt and Kata keep descriptor sets in the same table.
pub const PREFIX: &str = "ecrblk1:";

/// The format's version of records about mounts. A program that does not know mounts takes none of
/// them for a record, and so never asks the guest for a device in the place of a mount.
const VERSION_OF_MOUNTS: u32 = 2;

/// A record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Record {
    /// What was requested.
    Intent(IntentRecord),
    /// What was done.
    Commit(CommitRecord),
    /// What was taken from a guest that was not asked.
    Abandoned(AbandonedRecord),
}

/// What was requested.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntentRecord {
    /// The format's version, 1; of a mount, 2.
    pub v: u32,
    /// The volume ID.
    pub id: String,
    /// The container's ID.
    pub container: String,
    /// The path in the container: of the device, or of the mount point.
    pub path: String,
    /// How the file system is mounted; absent: the container gets a device.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mount: Option<MountRecord>,
    /// The real path of the source on the host, in the form of `path_text`.
    pub source: String,
    /// The size in bytes.
    pub size: u64,
    /// `rw` or `ro`.
    pub access: Access,
    /// The owner of the device node.
    #[serde(default, skip_serializing_if = "is_default")]
    pub uid: u32,
    /// The group of the device node.
    #[serde(default, skip_serializing_if = "is_default")]
    pub gid: u32,
    /// The permission bits of the device node; 0 without one.
    pub mode: u32,
    /// The version of this program.
    pub tool: String,
    /// A random name of the run that wrote the record.
    pub run: String,
}

/// A volume that the host freed without the guest. The commit records beside it say what the guest
/// may still have. An older version does not recognise it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbandonedRecord {
    /// The format's version, 1; of a mount, 2.
    pub v: u32,
    /// The intent record that the volume had.
    pub abandoned: IntentRecord,
}

/// Whether the container may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// It may.
    #[serde(rename = "rw")]
    ReadWrite,
    /// It may not.
    #[serde(rename = "ro")]
    ReadOnly,
}

/// A further attachment of a shared volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FurtherAttachment {
    /// The container's ID.
    pub container: String,
    /// The path in the container.
    pub path: String,
    /// How the file system is mounted; absent: the container gets a device.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mount: Option<MountRecord>,
    /// The owner of the device node.
    pub uid: u32,
    /// The group of the device node.
    pub gid: u32,
    /// The permission bits of the device node.
    pub mode: u32,
}

impl FurtherAttachment {
    /// The attachment that `intent` requests.
    pub fn new(intent: &IntentRecord) -> Self {
        let IntentRecord { container, path, mount, uid, gid, mode, .. } = intent.clone();
        Self { container, path, mount, uid, gid, mode }
    }

    /// The intent of this attachment, where `intent` is the volume's first one.
    pub fn intent(&self, intent: &IntentRecord) -> IntentRecord {
        let Self { container, path, mount, uid, gid, mode } = self.clone();
        IntentRecord { container, path, mount, uid, gid, mode, ..intent.clone() }
    }
}

/// What was done in the guest for one attachment of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitRecord {
    /// The format's version, 1; of a mount, 2.
    pub v: u32,
    /// Which attachment, unless it is that of the intent record.
    #[serde(default, skip_serializing_if = "is_default")]
    pub further: Option<FurtherAttachment>,
    /// The work is complete. (A further attachment is recorded before it is begun.)
    pub committed: bool,
    /// QEMU's ID of the controller.
    pub controller: String,
    /// The disk's SCSI target.
    pub target: u32,
    /// The disk's logical unit.
    pub lun: u32,
    /// The guest kernel's name of the disk.
    pub guest_device: String,
    /// The disk's major number in the guest.
    pub major: u32,
    /// The disk's minor number in the guest.
    pub minor: u32,
    /// The kind of device node: `mknod` or `bind`; `mount` if there is none.
    pub node: String,
    /// The device filter: `none`, `v1` or `bpf`; empty of a mount.
    #[serde(default, skip_serializing_if = "is_default")]
    pub filter: String,
    /// What is mounted, if it is.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mounted: Option<MountedRecord>,
    /// Directories of the path that the guest created; the mount point may be one.
    #[serde(default, skip_serializing_if = "is_default")]
    pub parents_made: Vec<String>,
    /// The container was allowed to use the device before.
    #[serde(default, skip_serializing_if = "is_default")]
    pub allowed_before: bool,
    /// When the container's first process was started, in the guest's clock ticks. It
    /// distinguishes the container from a later one of the same ID.
    #[serde(default, skip_serializing_if = "is_default")]
    pub started: u64,
    /// SCSI commands of the disk that had failed before, in the guest: errors are counted from
    /// there.
    #[serde(default, skip_serializing_if = "is_default")]
    pub errors: u64,
    /// The size in bytes after a resize; 0: that of the intent record.
    #[serde(default, skip_serializing_if = "is_default")]
    pub size: u64,
}

impl Record {
    /// The text that QEMU keeps.
    pub fn to_opaque(&self) -> String {
        // Serialization fails only for maps whose keys are no strings; a record has none.
        format!("{PREFIX}{}", serde_json::to_string(self).unwrap_or_default())
    }

    /// Parses a text that QEMU kept. `None` if it is not a record, or one of a later version.
    pub fn from_opaque(text: &str) -> Option<Self> {
        let json = text.strip_prefix(PREFIX)?;
        // There are two of these for each volume. An untagged enum would read each of them into
        // memory first, member by member, before it tries the forms.
        let record = serde_json::from_str(json).map(Self::Intent);
        let record = record.or_else(|_| serde_json::from_str(json).map(Self::Commit));
        let record = record.or_else(|_| serde_json::from_str(json).map(Self::Abandoned)).ok()?;
        (1..=VERSION_OF_MOUNTS).contains(&record.version()).then_some(record)
    }

    fn version(&self) -> u32 {
        match self {
            Self::Intent(intent) => intent.v,
            Self::Commit(commit) => commit.v,
            Self::Abandoned(record) => record.v,
        }
    }
}

pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The format's version of a record about a mount, or about a device.
pub(crate) fn version(is_mount: bool) -> u32 {
    if is_mount { VERSION_OF_MOUNTS } else { 1 }
}

/// The name of the way in which a container has a volume, in records and in output.
pub fn node_kind_name(kind: NodeWay) -> &'static str {
    match kind {
        NodeWay::NODE_WAY_UNSPECIFIED => "",
        NodeWay::NODE_WAY_MKNOD => "mknod",
        NodeWay::NODE_WAY_BIND => "bind",
        NodeWay::NODE_WAY_MOUNT => "mount",
    }
}

/// The name of a device filter, in records and in output.
pub fn filter_name(mode: FilterMode) -> &'static str {
    match mode {
        FilterMode::FILTER_MODE_UNSPECIFIED => "",
        FilterMode::FILTER_MODE_NONE => "none",
        FilterMode::FILTER_MODE_V1 => "v1",
        FilterMode::FILTER_MODE_BPF => "bpf",
    }
}

impl CommitRecord {
    /// Keeps what stays true of an attachment that is made again: which one it is, and the
    /// directories that were created the first time, from where its errors are counted, and its
    /// size.
    pub fn carry_over(&mut self, before: &Self) {
        self.further.clone_from(&before.further);
        self.parents_made.extend(before.parents_made.iter().cloned());
        // All are prefixes of the same path.
        self.parents_made.sort_by_key(String::len);
        self.parents_made.dedup();
        // The disk is the same one, unless its counter has started again.
        self.errors = self.errors.min(before.errors);
        self.size = before.size;
    }

    /// The guest's outcome, to be returned to the guest.
    pub fn outcome(&self) -> Outcome {
        let kinds = [NodeWay::NODE_WAY_MKNOD, NodeWay::NODE_WAY_BIND, NodeWay::NODE_WAY_MOUNT];
        let modes =
            [FilterMode::FILTER_MODE_NONE, FilterMode::FILTER_MODE_V1, FilterMode::FILTER_MODE_BPF];
        let kind = kinds.into_iter().find(|kind| node_kind_name(*kind) == self.node);
        let mode = modes.into_iter().find(|mode| filter_name(*mode) == self.filter);
        Outcome {
            device: Some(DeviceNumber {
                major: self.major,
                minor: self.minor,
                ..Default::default()
            })
            .into(),
            node: kind.unwrap_or_default().into(),
            filter: mode.unwrap_or_default().into(),
            parents_made: self.parents_made.clone(),
            allowed_before: self.allowed_before,
            container_started: self.started,
            errors_before: self.errors,
            mounted: self.mounted.as_ref().map(Mounted::from).into(),
            ..Default::default()
        }
    }
}

/// The text of records, for tests.
#[cfg(test)]
pub(crate) mod samples {
    /// An intent record.
    pub(crate) const INTENT: &str = concat!(
        r#"ecrblk1:{"v":1,"id":"0123456789abcdef","container":"c1","path":"/dev/xvda","source":"/dev/loop0","#,
        r#""size":512,"access":"ro","uid":1,"gid":2,"mode":432,"tool":"0.1.0","run":"r"}"#
    );

    /// Its commit record.
    pub(crate) const COMMIT: &str = concat!(
        r#"ecrblk1:{"v":1,"committed":true,"controller":"scsi0","target":255,"lun":3,"guest_device":"sda","#,
        r#""major":8,"minor":0,"node":"mknod","filter":"none"}"#
    );
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{
        samples::{COMMIT, INTENT},
        *,
    };

    #[test]
    fn the_text_is_stable_and_read_back() {
        let record = Record::from_opaque(INTENT).unwrap();
        assert_eq!(record.to_opaque(), INTENT);
        assert!(matches!(record, Record::Intent(intent) if intent.mode == 0o660));
        let record = Record::from_opaque(COMMIT).unwrap();
        assert_eq!(record.to_opaque(), COMMIT);
        assert!(matches!(record, Record::Commit(commit) if commit.committed && commit.lun == 3));
    }

    #[test]
    fn an_abandoned_record_is_no_intent() {
        let text = format!(
            r#"ecrblk1:{{"v":1,"abandoned":{}}}"#,
            INTENT.strip_prefix(PREFIX).unwrap_or_default()
        );
        let record = Record::from_opaque(&text).unwrap();
        assert_eq!(record.to_opaque(), text);
        assert!(
            matches!(record, Record::Abandoned(record) if record.abandoned.path == "/dev/xvda")
        );
    }

    #[test]
    fn a_commit_record_names_a_further_attachment() {
        let further =
            r#"{"v":1,"further":{"container":"c2","path":"/dev/b","uid":0,"gid":0,"mode":384},"#;
        let text = COMMIT.replace("{\"v\":1,", further);
        let record = Record::from_opaque(&text).unwrap();
        assert_eq!(record.to_opaque(), text);
        assert!(
            matches!(record, Record::Commit(commit) if commit.further.as_ref().unwrap().container == "c2")
        );
    }

    #[rstest]
    fn foreign_texts_are_no_records(
        #[values("", "serial0-source", "kata-block:{}", "ecrblk1:", "ecrblk1:{}", "ecrblk10:{}")]
        text: &str,
    ) {
        assert_eq!(Record::from_opaque(text), None);
    }

    #[test]
    fn a_later_version_is_no_record() {
        assert_eq!(Record::from_opaque(&INTENT.replace("\"v\":1", "\"v\":3")), None);
    }

    #[test]
    fn a_mount_is_recorded_and_is_none_to_an_earlier_version() {
        let mount = r#""/data","mount":{"fs_type":"ext4","options":["noatime"]},"#;
        let text = INTENT.replace(r#""v":1"#, r#""v":2"#).replace(r#""/dev/xvda","#, mount);
        let Some(Record::Intent(intent)) = Record::from_opaque(&text) else { panic!("{text}") };
        assert_eq!(Record::Intent(intent.clone()).to_opaque(), text);
        assert_eq!(intent.mount.as_ref().unwrap().options, ["noatime"]);
        assert_eq!((version(true), version(false)), (2, 1));

        let mounted = r#""node":"mount","mounted":{"fs_type":"ext4"}}"#;
        let text = COMMIT.replace(r#""v":1"#, r#""v":2"#);
        let text = text.replace(r#""node":"mknod","filter":"none"}"#, mounted);
        let Some(Record::Commit(commit)) = Record::from_opaque(&text) else { panic!("{text}") };
        assert_eq!(Record::Commit(commit.clone()).to_opaque(), text);
        let outcome = commit.outcome();
        assert_eq!(outcome.node, NodeWay::NODE_WAY_MOUNT.into());
        assert_eq!(outcome.filter, FilterMode::FILTER_MODE_UNSPECIFIED.into());
        assert_eq!(outcome.mounted.file_system, "ext4");
    }
}
