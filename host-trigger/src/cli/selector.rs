//! Which of the attached volumes a command works on.

use clap::Args;

use crate::{Error, device_path::check_device_path, ops::select::Selection, volume_id::VolumeId};

/// Which volume.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub struct VolumeSelector {
    /// Path of the device in the container
    #[arg(long, value_name = "PATH")]
    pub device_path: Option<String>,

    /// Path in the container that the volume is mounted at
    #[arg(long, value_name = "PATH")]
    pub mount_path: Option<String>,

    /// Volume ID, as hot-plug and list print it
    #[arg(long, value_name = "ID", value_parser = parse_volume)]
    pub volume: Option<VolumeId>,
}

impl VolumeSelector {
    /// Checks the path, if one is given.
    ///
    /// # Errors
    /// The path is invalid.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let Self { device_path, mount_path, .. } = self;
        if let Some(path) = device_path {
            check_device_path(path).map_err(|why| Error::DevicePath { path: path.clone(), why })?;
        }
        if let Some(path) = mount_path {
            check_device_path(path).map_err(|why| Error::MountPath { path: path.clone(), why })?;
        }
        Ok(())
    }

    /// The selection that the flags make; clap requires one of them.
    pub(crate) fn selection(&self) -> Selection<'_> {
        let Self { device_path, mount_path, volume } = self;
        match (volume, mount_path) {
            (Some(id), _) => Selection::Id(id),
            (None, Some(path)) => Selection::MountPath(path),
            (None, None) => Selection::DevicePath(device_path.as_deref().unwrap_or_default()),
        }
    }
}

pub(crate) fn parse_volume(text: &str) -> Result<VolumeId, String> {
    VolumeId::parse(text)
        .ok_or_else(|| "expected sixteen hexadecimal digits in lower case".to_owned())
}
