//! A volume as it is reported, for unit tests.

use crate::{
    ops::{
        place::Place,
        volume::{Scsi, Volume},
    },
    qemu::throttle::Limits,
};

/// Attached read-only, without limits.
pub(crate) fn volume() -> Volume {
    Volume {
        id: "0123456789abcdef".into(),
        sandbox: "s1".into(),
        container: "c1".into(),
        pod: None,
        place: Place::Device { device_path: "/dev/xvda".into() },
        source: "/dev/disk/by-id/x".into(),
        source_device: "/dev/sdb".into(),
        size: 64 << 20,
        read_only: true,
        shared: false,
        scsi: Scsi { controller: "scsi0".into(), target: 255, lun: 3 },
        guest_device: "sda".into(),
        device_number: "8:0".into(),
        device_filter: "none".into(),
        node: "mknod".into(),
        moved_to: None,
        throttle: Limits::default(),
        left_behind: Vec::new(),
    }
}
