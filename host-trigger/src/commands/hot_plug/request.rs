//! What a command line requests: each volume, and its place in the container.

use std::path::PathBuf;

use super::HotPlug;
use crate::{
    Deadline, Error, cli::volumes::ContainerPath, kata::mount_info::MountInfo,
    qemu::mount::MountRecord,
};

/// The maximum number of volumes in one call.
const MAX_VOLUMES: usize = 256;
/// The permission bits of a device node, unless others are requested.
const DEFAULT_MODE: u32 = 0o660;

/// What is requested.
#[derive(Debug)]
pub(super) struct PlugRequest {
    /// The paths of the volumes on the host.
    pub(super) sources: Vec<PathBuf>,
    /// The place of each.
    pub(super) places: Vec<RequestedPlace>,
    /// The container can only read.
    pub(super) read_only: bool,
}

/// One place in the container.
#[derive(Debug, Clone)]
pub(super) struct RequestedPlace {
    pub(super) path: String,
    /// How the file system is mounted; `None`: the container gets a device.
    pub(super) mount: Option<MountRecord>,
    /// Of the device; 0 of a mount.
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u32,
}

impl PlugRequest {
    /// Checks the command line alone, and Kata's mount info if it names that.
    ///
    /// # Errors
    /// Says what is wrong.
    pub(super) fn new(verb: &HotPlug, deadline: Deadline) -> Result<Self, Error> {
        verb.limits.change()?.alone()?;
        let info = verb.mount.mount_info.as_ref();
        let info = info.map(|path| MountInfo::read(path, deadline)).transpose()?;
        let pairs = verb.volumes.pairs(info.as_ref().map(|info| info.device.clone()))?;
        if pairs.len() > MAX_VOLUMES {
            return Err(Error::TooMany { count: pairs.len() });
        }
        let mut read_only = verb.read_only;
        let mut mount = None;
        if pairs.iter().any(|(_, path)| path.is_mount) {
            if verb.shared {
                let text = "what is mounted belongs to one container: leave out --shared, or plug \
                            it as a device (--device-path)";
                return Err(Error::Usage { text: text.to_owned() });
            }
            let requested = verb.mount.requested(info.as_ref(), verb.read_only)?;
            (mount, read_only) = (Some(requested.mount), requested.read_only);
        }
        check_device_options(verb, pairs.iter().any(|(_, path)| !path.is_mount))?;
        let place = |ContainerPath { path, is_mount }| match (is_mount, &mount) {
            (true, Some(mount)) => {
                RequestedPlace { path, mount: Some(mount.clone()), uid: 0, gid: 0, mode: 0 }
            }
            _ => RequestedPlace {
                path,
                mount: None,
                uid: verb.uid.unwrap_or(0),
                gid: verb.gid.unwrap_or(0),
                mode: verb.mode.unwrap_or(DEFAULT_MODE),
            },
        };
        let (sources, paths): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        Ok(Self { sources, places: paths.into_iter().map(place).collect(), read_only })
    }

    /// The paths of the devices, or of the mounts.
    pub(super) fn paths(&self, of_mounts: bool) -> Vec<String> {
        let places = self.places.iter().filter(|place| place.mount.is_some() == of_mounts);
        places.map(|place| place.path.clone()).collect()
    }
}

/// Checks that nothing is requested of a device node if there is none.
fn check_device_options(verb: &HotPlug, has_devices: bool) -> Result<(), Error> {
    let given = [("--uid", verb.uid), ("--gid", verb.gid), ("--mode", verb.mode)];
    let given = given.into_iter().find_map(|(option, value)| value.map(|_| option));
    match given.filter(|_| !has_devices) {
        None => Ok(()),
        Some(option) => Err(Error::Usage {
            text: format!(
                "{option} is about a device node, and what is mounted has none: leave it out, or \
                 use --fs-group for the group of the files"
            ),
        }),
    }
}
