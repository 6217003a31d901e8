//! A volume whose file system is mounted in the container, in place of a device there.

use block_volume_api::FILE_SYSTEMS;
use host_trigger::fs_group::FsGroupChange;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the file system of a volume is mounted. It is there already: nothing is ever formatted. The
/// mount is always nodev and nosuid, and the container gets no device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// The path in the container. A directory is made if there is none.
    #[schemars(
        length(min = 2, max = 1024),
        regex(pattern = r"^(/([^/.]|\.[^/.]|\.\.[^/])[^/]*)+$")
    )]
    pub path: String,
    /// The type of the file system; by default the one that is found on the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", extend("enum" = FILE_SYSTEMS))]
    pub fs_type: Option<String>,
    /// Mount options, such as noatime. Options that reach beyond the volume, such as dev and suid,
    /// are refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 255), regex(pattern = r"^[^,\s]+$")))]
    pub options: Vec<String>,
    /// The group that all files are given to, which may then read and write what their owners may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64", range(min = 0, max = 4_294_967_294_i64))]
    pub fs_group: Option<i64>,
    /// When the group of the files is changed: OnRootMismatch, unless the root directory has the
    /// group and its permissions already, or Always, which is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", extend("enum" = ["OnRootMismatch", "Always"]))]
    pub fs_group_change_policy: Option<FsGroupChange>,
}
