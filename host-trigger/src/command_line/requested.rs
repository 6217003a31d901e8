//! What a command line asks for, for the audit record of its beginning.

use super::Verb;
use crate::{
    cli::{
        selector::VolumeSelector,
        volumes::{ContainerPath, VolumeArgs},
    },
    output::audit::{Requested, RequestedVolume},
    path_text,
};

impl Verb {
    /// What is requested of a command that may change something; `None` if it changes nothing.
    pub(super) fn requested(&self) -> Option<Requested<'_>> {
        let (container, volumes) = match self {
            Self::List(_) | Self::Inspect(_) | Self::Stats(_) => return None,
            _ if self.dry_run() => return None,
            Self::HotPlug(verb) => (verb.container.as_ref(), plugged(&verb.volumes)),
            Self::HotUnplug(verb) => (verb.container.as_ref(), vec![selected(&verb.selector)]),
            Self::Resize(verb) => (verb.container.as_ref(), vec![selected(&verb.selector)]),
            Self::Throttle(verb) => (verb.container.as_ref(), vec![selected(&verb.selector)]),
            Self::Repair(_) => (None, Vec::new()),
        };
        let (sandbox, container) =
            (self.target().sandbox.as_deref(), container.map(String::as_str));
        let pod = self.target().pod.as_ref().map(ToString::to_string);
        Some(Requested { sandbox, container, pod, volumes })
    }
}

/// The volumes of a hot-plug. Which one Kata's mount info names is not known yet.
fn plugged(volumes: &VolumeArgs) -> Vec<RequestedVolume> {
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

fn selected(selector: &VolumeSelector) -> RequestedVolume {
    let VolumeSelector { volume, device_path, mount_path } = selector.clone();
    let id = volume.map(|id| id.as_str().to_owned());
    RequestedVolume { id, source: None, device_path, mount_path }
}
