//! Where a container has a volume, as it is reported: at a device path, or mounted.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    fs_group::{FsGroup, FsGroupChange},
    qemu::{
        mount::{MountRecord, MountedRecord},
        record::IntentRecord,
    },
};

/// Where a container has a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Place {
    /// It is a device.
    Device {
        /// The device path in the container.
        device_path: String,
    },
    /// Its file system is mounted.
    Mount(MountPlace),
}

/// A file system in a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct MountPlace {
    /// The path in the container that the file system is mounted at.
    pub mount_path: String,
    /// The type of the file system; empty if it is not known yet.
    pub fs_type: String,
    /// The options that were requested, in their order; `nodev` and `nosuid` are always on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mount_options: Vec<String>,
    /// The group that all files belong to, if one was requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs_group: Option<u32>,
    /// When the group of the files is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs_group_change_policy: Option<FsGroupChange>,
    /// How many files got the group or its permissions when it was mounted; absent if none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owners_changed: Option<u64>,
}

impl Default for Place {
    fn default() -> Self {
        Self::Device { device_path: String::new() }
    }
}

impl Place {
    /// The place that a record names.
    pub(crate) fn new(intent: &IntentRecord) -> Self {
        let path = intent.path.clone();
        match &intent.mount {
            None => Self::Device { device_path: path },
            Some(MountRecord { fs_type, options, fs_group }) => Self::Mount(MountPlace {
                mount_path: path,
                fs_type: fs_type.clone(),
                mount_options: options.clone(),
                fs_group: fs_group.map(|group| group.gid),
                fs_group_change_policy: fs_group.map(|group| group.change),
                owners_changed: None,
            }),
        }
    }

    /// With what the guest has mounted.
    pub(crate) fn with_mounted(self, mounted: Option<&MountedRecord>) -> Self {
        match (self, mounted) {
            (Self::Mount(mount), Some(mounted)) => Self::Mount(MountPlace {
                fs_type: mounted.fs_type.clone(),
                owners_changed: Some(mounted.owners_changed).filter(|changed| *changed > 0),
                ..mount
            }),
            (place, _) => place,
        }
    }

    /// The path in the container.
    pub fn path(&self) -> &str {
        match self {
            Self::Device { device_path } => device_path,
            Self::Mount(mount) => &mount.mount_path,
        }
    }

    /// The file system, if it is mounted.
    pub fn mount(&self) -> Option<&MountPlace> {
        match self {
            Self::Device { .. } => None,
            Self::Mount(mount) => Some(mount),
        }
    }

    /// Its label in metrics: the name of the field of the path.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Device { .. } => "device_path",
            Self::Mount(_) => "mount_path",
        }
    }
}

impl MountPlace {
    /// How it is mounted, for people.
    pub(crate) fn text(&self) -> String {
        let group = self.fs_group.map(|gid| {
            let change = self.fs_group_change_policy.unwrap_or_default();
            FsGroup { gid, change }.to_string()
        });
        let parts = std::iter::once(self.fs_type.clone()).chain(self.mount_options.iter().cloned());
        let parts = parts.chain(group).filter(|part| !part.is_empty());
        parts.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount() -> Place {
        Place::Mount(MountPlace {
            mount_path: "/data".into(),
            mount_options: vec!["noatime".into()],
            fs_group: Some(5),
            fs_group_change_policy: Some(FsGroupChange::OnRootMismatch),
            ..MountPlace::default()
        })
    }

    #[test]
    fn the_json_form_is_stable() {
        let device = Place::Device { device_path: "/dev/a".into() };
        for (place, text) in [
            (device, r#"{"device_path":"/dev/a"}"#),
            (
                mount(),
                concat!(
                    r#"{"mount_path":"/data","fs_type":"","mount_options":["noatime"],"fs_group":5,"#,
                    r#""fs_group_change_policy":"OnRootMismatch"}"#
                ),
            ),
        ] {
            assert_eq!(serde_json::to_string(&place).unwrap(), text);
            assert_eq!(serde_json::from_str::<Place>(text).unwrap(), place);
        }
    }

    #[test]
    fn the_guest_tells_the_type_and_how_much_was_changed() {
        let mounted = MountedRecord { fs_type: "xfs".into(), idmapped: false, owners_changed: 7 };
        let place = mount().with_mounted(Some(&mounted));
        let text = place.mount().unwrap().text();
        assert_eq!(text, "xfs, noatime, group 5 (OnRootMismatch)");
        assert_eq!(place.mount().unwrap().owners_changed, Some(7));
    }
}
