//! The group of a volume's files, as Kubernetes calls it
//! ([`fsGroup`](https://kubernetes.io/docs/tasks/configure-pod-container/security-context/)).

use std::fmt;

use block_volume_api::block_volume::{self as api, FsGroupChange as ApiChange};
use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// When the guest changes the group of the files that are there.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, ValueEnum,
)]
pub enum FsGroupChange {
    /// Unless the root directory of the file system has the group and its permissions already
    #[value(name = "OnRootMismatch")]
    OnRootMismatch,
    /// At each mount
    #[default]
    #[value(name = "Always")]
    Always,
}

/// The group, and when it is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsGroup {
    /// Its ID, in the container's user namespace if it has one.
    pub gid: u32,
    /// When it is changed.
    pub change: FsGroupChange,
}

impl FsGroup {
    /// The message to the guest.
    pub(crate) fn to_request(self) -> api::FsGroup {
        let change = match self.change {
            FsGroupChange::OnRootMismatch => ApiChange::FS_GROUP_CHANGE_ON_ROOT_MISMATCH,
            FsGroupChange::Always => ApiChange::FS_GROUP_CHANGE_ALWAYS,
        };
        api::FsGroup { gid: self.gid, change: change.into(), ..Default::default() }
    }
}

impl fmt::Display for FsGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {} ({:?})", self.gid, self.change)
    }
}
