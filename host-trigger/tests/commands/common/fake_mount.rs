//! How the fake agent mounts file systems.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

use block_volume_api::block_volume::{
    Attachment, FileSystemState, FilterMode, Mounted, NodeWay, Outcome, Resized,
};

/// What a test sets.
pub struct Mounts {
    /// The plugin is of a version before mounts.
    pub are_unknown: AtomicBool,
    /// The type that the guest finds on a volume.
    pub found_type: Mutex<&'static str>,
    /// How many files it gives to a group.
    pub owners_changed: Mutex<u64>,
    /// Why the file system does not grow.
    pub not_grown: Mutex<&'static str>,
}

impl Default for Mounts {
    fn default() -> Self {
        Self {
            are_unknown: AtomicBool::new(false),
            found_type: Mutex::new("ext4"),
            owners_changed: Mutex::default(),
            not_grown: Mutex::default(),
        }
    }
}

impl Mounts {
    pub(super) fn capabilities(&self) -> Vec<String> {
        let mount = (!self.are_unknown.load(Ordering::Relaxed)).then_some("mount");
        ["attach", "plug"].into_iter().chain(mount).map(str::to_owned).collect()
    }

    /// The outcome of an attachment, where that of a device would be `of_device`.
    pub(super) fn outcome(&self, attachment: &Attachment, of_device: Outcome) -> Outcome {
        let Some(mount) = attachment.mount.as_ref() else {
            assert!(attachment.mode <= 0o777, "{attachment:?}");
            return of_device;
        };
        assert!(!self.are_unknown.load(Ordering::Relaxed), "{attachment:?}");
        let Attachment { uid, gid, mode, .. } = attachment;
        assert_eq!((*uid, *gid, *mode), (0, 0, 0o40_000));
        let changed = mount.fs_group.as_ref().map(|_| *self.owners_changed.lock().unwrap());
        let mounted = Mounted {
            file_system: (*self.found_type.lock().unwrap()).to_owned(),
            owners_changed: changed.unwrap_or_default(),
            ..Default::default()
        };
        Outcome {
            node: NodeWay::NODE_WAY_MOUNT.into(),
            filter: FilterMode::FILTER_MODE_UNSPECIFIED.into(),
            parents_made: vec![attachment.path.clone()],
            mounted: Some(mounted).into(),
            ..of_device
        }
    }

    /// The file system of an attachment that is mounted.
    pub(super) fn state(&self, attachment: &Attachment) -> Option<FileSystemState> {
        attachment.mount.as_ref().map(|_| FileSystemState {
            type_: (*self.found_type.lock().unwrap()).to_owned(),
            bytes: 1000,
            bytes_free: 400,
            bytes_available: 300,
            inodes: 10,
            inodes_free: 7,
            ..Default::default()
        })
    }

    /// A file system is as large as its disk was `before`, and grows with it.
    pub(super) fn grown(&self, before: u64, resized: Resized) -> Resized {
        let not_grown = *self.not_grown.lock().unwrap();
        Resized {
            file_system_before: before,
            file_system_size: if not_grown.is_empty() { resized.size } else { before },
            not_grown: not_grown.to_owned(),
            ..resized
        }
    }
}
