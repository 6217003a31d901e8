//! What the device of a volume has in it, as `query-block` reports it: normally the volume's own
//! block node. A mirror that was completed, or a snapshot, has moved the device to another one.

use std::collections::HashMap;

use block_volume_qmp::{PassedFd, Qmp, QmpError};
use serde_json::{Value, json};

use super::{throttle::Limits, volume_state::VolumeState};
use crate::volume_id::VolumeId;

/// What a device has in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Medium {
    /// The name of the block node.
    pub(crate) node: String,
    /// The file behind it.
    pub(crate) file: String,
    /// Its size in bytes.
    pub(crate) size: u64,
}

/// A device in QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Drive {
    pub(crate) limits: Limits,
    /// `None` only if QEMU does not report it in the documented form.
    pub(crate) medium: Option<Medium>,
}

impl Drive {
    /// Reads the devices of all volumes.
    ///
    /// # Errors
    /// QEMU does not reply, or not in the documented form.
    pub(crate) async fn read(qmp: &mut Qmp) -> Result<HashMap<VolumeId, Self>, QmpError> {
        let drives: Vec<Value> = qmp.query("query-block", json!({})).await?;
        let of = |drive: &Value| {
            let id = VolumeId::of_name(drive["qdev"].as_str()?)?;
            let inserted = &drive["inserted"];
            let drive =
                Self { limits: Limits::from_qemu(inserted), medium: Medium::from_qemu(inserted) };
            Some((id, drive))
        };
        Ok(drives.iter().filter_map(of).collect())
    }

    /// What the device has in it, unless that is the volume's own source.
    pub(crate) fn moved(&self, id: &VolumeId, state: &VolumeState) -> Option<&Medium> {
        self.medium.as_ref().filter(|medium| !medium.is_own(id, state))
    }
}

impl Medium {
    fn from_qemu(inserted: &Value) -> Option<Self> {
        Some(Self {
            node: inserted["node-name"].as_str()?.to_owned(),
            file: inserted["file"].as_str()?.to_owned(),
            size: inserted["image"]["virtual-size"].as_u64()?,
        })
    }

    /// Whether it is the volume's node, or a filter of a job on top of it: that has the same file.
    fn is_own(&self, id: &VolumeId, state: &VolumeState) -> bool {
        let is_file =
            |(carrier, _): &(PassedFd, _)| self.file == format!("/dev/fdset/{}", carrier.set);
        self.node == id.node() || state.intents.iter().any(is_file)
    }
}
