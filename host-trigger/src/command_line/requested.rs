//! What a command line asks for, for the audit record of its beginning.

use super::{Verb, in_process::ChangingVerb as _};
use crate::{
    cli::{
        selector::VolumeSelector,
        target::Target,
        volumes::{ContainerPath, VolumeArgs},
    },
    output::audit::{Requested, RequestedVolume},
    path_text,
};

impl Verb {
    /// What is requested of a command that may change something; `None` if it changes nothing.
    pub(super) fn requested(&self) -> Option<Requested<'_>> {
        match self {
            Self::List(_) | Self::Inspect(_) | Self::Stats(_) => None,
            _ if self.dry_run() => None,
            Self::HotPlug(verb) => Some(verb.requested()),
            Self::HotUnplug(verb) => Some(verb.requested()),
            Self::Resize(verb) => Some(verb.requested()),
            Self::Throttle(verb) => Some(verb.requested()),
            Self::Repair(verb) => Some(of(&verb.target, None, Vec::new())),
        }
    }
}

/// What is requested of the sandbox of `target`.
pub(super) fn of<'a>(
    target: &'a Target,
    container: Option<&'a str>,
    volumes: Vec<RequestedVolume>,
) -> Requested<'a> {
    let pod = target.pod.as_ref().map(ToString::to_string);
    Requested { sandbox: target.sandbox.as_deref(), container, pod, volumes }
}

/// The volumes of a hot-plug. Which one Kata's mount info names is not known yet.
pub(super) fn plugged(volumes: &VolumeArgs) -> Vec<RequestedVolume> {
    let sources = volumes.block_volume.iter().map(|source| Some(path_text::encode(source)));
    let pairs = sources.chain(std::iter::repeat(None)).zip(&volumes.paths);
    let requested = |(source, path): (Option<String>, &ContainerPath)| {
        let ContainerPath { path, is_mount } = path.clone();
        let (device_path, mount_path) =
            if is_mount { (None, Some(path)) } else { (Some(path), None) };
        RequestedVolume { id: None, source, device_path, mount_path }
    };
    pairs.map(requested).collect()
}

pub(super) fn selected(selector: &VolumeSelector) -> RequestedVolume {
    let VolumeSelector { volume, device_path, mount_path } = selector.clone();
    let id = volume.map(|id| id.as_str().to_owned());
    RequestedVolume { id, source: None, device_path, mount_path }
}
