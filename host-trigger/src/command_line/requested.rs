//! What a command line asks for, for the audit record of its beginning.

use super::Verb;
use crate::{
    cli::selector::VolumeSelector,
    output::audit::{Requested, RequestedVolume},
    path_text,
};

impl Verb {
    /// What is requested of a command that may change something; `None` if it changes nothing.
    pub(super) fn requested(&self) -> Option<Requested<'_>> {
        let (container, volumes) = match self {
            Self::List(_) | Self::Inspect(_) | Self::Stats(_) => return None,
            _ if self.dry_run() => return None,
            Self::HotPlug(verb) => {
                let sources = verb.block_volume.iter().map(path_text::encode);
                let pairs = sources.zip(&verb.device_path).map(|(source, device_path)| {
                    let (source, device_path) = (Some(source), Some(device_path.clone()));
                    RequestedVolume { source, device_path, ..RequestedVolume::default() }
                });
                (verb.container.as_ref(), pairs.collect())
            }
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

fn selected(selector: &VolumeSelector) -> RequestedVolume {
    let VolumeSelector { volume, device_path } = selector;
    let id = volume.as_ref().map(|id| id.as_str().to_owned());
    RequestedVolume { id, device_path: device_path.clone(), source: None }
}
