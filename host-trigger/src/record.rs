//! What QEMU keeps for us beside a volume's descriptor: the free text (`opaque`) of
//! [`add-fd`](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html#command-QMP-misc.add-fd),
//! which it gives back byte for byte to whoever asks later.
//!
//! The volume's own descriptor carries the [`Intent`], written before anything else happens; a
//! second descriptor in the same set, of `/dev/null`, carries the [`Placement`] once the guest has
//! done its part. A set with an intent alone is half done.
//!
//! The texts are short on purpose: QEMU takes a command in byte by byte, at some four microseconds
//! each.

use block_volume_api::block_volume::{DeviceNumber, FilterMode, NodeWay, Outcome};
use serde::{Deserialize, Serialize};

/// What every text of ours starts with. Others keep sets in the same table.
pub const PREFIX: &str = "ecrblk1:";

/// One text of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Record {
    /// What was asked for.
    Intent(Intent),
    /// What was done.
    Placement(Placement),
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The form's version, 1.
    pub v: u32,
    /// The volume's id.
    pub id: String,
    /// The container.
    pub container: String,
    /// The path there.
    pub path: String,
    /// The real path on the host.
    pub source: String,
    /// The size in bytes.
    pub size: u64,
    /// `rw` or `ro`.
    pub access: Access,
    /// The node's owner.
    #[serde(default, skip_serializing_if = "is_default")]
    pub uid: u32,
    /// The node's group.
    #[serde(default, skip_serializing_if = "is_default")]
    pub gid: u32,
    /// The node's permission bits.
    pub mode: u32,
    /// The version of this program.
    pub tool: String,
    /// Tells this run from every other.
    pub run: String,
}

/// May the container write?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// Yes.
    #[serde(rename = "rw")]
    ReadWrite,
    /// No.
    #[serde(rename = "ro")]
    ReadOnly,
}

/// Who else has a shared volume, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FurtherUse {
    /// The container.
    pub container: String,
    /// The path there.
    pub path: String,
    /// The node's owner.
    pub uid: u32,
    /// The node's group.
    pub gid: u32,
    /// The node's permission bits.
    pub mode: u32,
}

impl FurtherUse {
    /// The place that `intent` asks for.
    pub fn new(intent: &Intent) -> Self {
        let Intent { container, path, uid, gid, mode, .. } = intent.clone();
        Self { container, path, uid, gid, mode }
    }

    /// What was asked for, for this use.
    pub fn of(&self, intent: &Intent) -> Intent {
        let Self { container, path, uid, gid, mode } = self.clone();
        Intent { container, path, uid, gid, mode, ..intent.clone() }
    }
}

/// What was done in the guest, for one use of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The form's version, 1.
    pub v: u32,
    /// Whose it is, where it is not the intent's.
    #[serde(default, skip_serializing_if = "is_default")]
    pub further: Option<FurtherUse>,
    /// The work is complete; a further use is noted before it is begun.
    pub committed: bool,
    /// QEMU's id of the controller.
    pub controller: String,
    /// The disk's address there.
    pub target: u32,
    /// The disk's address there.
    pub lun: u32,
    /// The kernel's name in the guest.
    pub guest_device: String,
    /// Its number there.
    pub major: u32,
    /// Its number there.
    pub minor: u32,
    /// `mknod` or `bind`.
    pub node: String,
    /// `none`, `v1` or `bpf`.
    pub filter: String,
    /// Directories that did not exist before.
    #[serde(default, skip_serializing_if = "is_default")]
    pub parents_made: Vec<String>,
    /// The container had the right before us.
    #[serde(default, skip_serializing_if = "is_default")]
    pub allowed_before: bool,
    /// When the container's first process began, in the guest's clock ticks: tells it from a later
    /// one of the same id.
    #[serde(default, skip_serializing_if = "is_default")]
    pub started: u64,
}

impl Record {
    /// The text that QEMU keeps.
    pub fn to_opaque(&self) -> String {
        // A record has no map with keys that are no strings, the only thing that fails here.
        format!("{PREFIX}{}", serde_json::to_string(self).unwrap_or_default())
    }

    /// Reads a text that QEMU kept. `None` if it is not ours, or of a later version.
    pub fn from_opaque(text: &str) -> Option<Self> {
        let record: Self = serde_json::from_str(text.strip_prefix(PREFIX)?).ok()?;
        (record.version() == 1).then_some(record)
    }

    fn version(&self) -> u32 {
        match self {
            Self::Intent(intent) => intent.v,
            Self::Placement(placement) => placement.v,
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// How `node` is noted and shown.
pub fn node_way_name(way: NodeWay) -> &'static str {
    match way {
        NodeWay::NODE_WAY_UNSPECIFIED => "",
        NodeWay::NODE_WAY_MKNOD => "mknod",
        NodeWay::NODE_WAY_BIND => "bind",
    }
}

/// How `filter` is noted and shown.
pub fn filter_name(mode: FilterMode) -> &'static str {
    match mode {
        FilterMode::FILTER_MODE_UNSPECIFIED => "",
        FilterMode::FILTER_MODE_NONE => "none",
        FilterMode::FILTER_MODE_V1 => "v1",
        FilterMode::FILTER_MODE_BPF => "bpf",
    }
}

impl Placement {
    /// What stays noted of a use that is done anew: whose it is, and the directories that were made
    /// the first time.
    pub fn carry_over(&mut self, before: &Self) {
        self.further.clone_from(&before.further);
        self.parents_made.extend(before.parents_made.iter().cloned());
        // All are beginnings of one path.
        self.parents_made.sort_by_key(String::len);
        self.parents_made.dedup();
    }

    /// As the guest told it, to be handed back.
    pub fn outcome(&self) -> Outcome {
        let ways = [NodeWay::NODE_WAY_MKNOD, NodeWay::NODE_WAY_BIND];
        let modes =
            [FilterMode::FILTER_MODE_NONE, FilterMode::FILTER_MODE_V1, FilterMode::FILTER_MODE_BPF];
        let way = ways.into_iter().find(|way| node_way_name(*way) == self.node);
        let mode = modes.into_iter().find(|mode| filter_name(*mode) == self.filter);
        Outcome {
            device: Some(DeviceNumber {
                major: self.major,
                minor: self.minor,
                ..Default::default()
            })
            .into(),
            node: way.unwrap_or_default().into(),
            filter: mode.unwrap_or_default().into(),
            parents_made: self.parents_made.clone(),
            allowed_before: self.allowed_before,
            container_started: self.started,
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const INTENT: &str = concat!(
        r#"ecrblk1:{"v":1,"id":"0123456789abcdef","container":"c1","path":"/dev/xvda","source":"/dev/loop0","#,
        r#""size":512,"access":"ro","uid":1,"gid":2,"mode":432,"tool":"0.1.0","run":"r"}"#
    );

    const PLACEMENT: &str = concat!(
        r#"ecrblk1:{"v":1,"committed":true,"controller":"scsi0","target":255,"lun":3,"guest_device":"sda","#,
        r#""major":8,"minor":0,"node":"mknod","filter":"none"}"#
    );

    #[test]
    fn the_text_is_stable_and_read_back() {
        let record = Record::from_opaque(INTENT).unwrap();
        assert_eq!(record.to_opaque(), INTENT);
        assert!(matches!(record, Record::Intent(intent) if intent.mode == 0o660));
        let record = Record::from_opaque(PLACEMENT).unwrap();
        assert_eq!(record.to_opaque(), PLACEMENT);
        assert!(
            matches!(record, Record::Placement(placement) if placement.committed && placement.lun == 3)
        );
    }

    #[test]
    fn a_further_use_has_its_place_in_the_outcome() {
        let further =
            r#"{"v":1,"further":{"container":"c2","path":"/dev/b","uid":0,"gid":0,"mode":384},"#;
        let text = PLACEMENT.replace("{\"v\":1,", further);
        let record = Record::from_opaque(&text).unwrap();
        assert_eq!(record.to_opaque(), text);
        assert!(
            matches!(record, Record::Placement(placement) if placement.further.as_ref().unwrap().container == "c2")
        );
    }

    #[rstest]
    fn foreign_texts_are_left_alone(
        #[values("", "serial0-source", "kata-block:{}", "ecrblk1:", "ecrblk1:{}", "ecrblk10:{}")]
        text: &str,
    ) {
        assert_eq!(Record::from_opaque(text), None);
    }

    #[test]
    fn a_later_version_is_left_alone() {
        assert_eq!(Record::from_opaque(&INTENT.replace("\"v\":1", "\"v\":2")), None);
    }
}
