//! Which of the volumes that are plugged is meant: by its id, or by where it is. A volume whose container is gone is found as well
//! as one that a killed run left half done: what counts is the record in QEMU.

use crate::{
    Error,
    cli::Which,
    registry::{Presence, Registry},
    sandbox::Place,
    volume::{VolumeId, check_device_path},
};

/// One volume of which something is there.
pub(crate) type Known = (VolumeId, Presence);

/// What can be said of `which` by itself.
pub(crate) fn check(which: &Which) -> Result<(), Error> {
    match &which.device_path {
        Some(path) => check_device_path(path).map_err(|why| Error::DevicePath { path: path.clone(), why }),
        None => Ok(()),
    }
}

/// The volume that `which` names; with `container`, only one for that container.
///
/// # Errors
/// It is not there, or is another container's, or there are several at that path.
pub(crate) fn find(
    which: &Which,
    container: Option<&str>,
    place: &Place,
    registry: &Registry,
) -> Result<Known, Error> {
    let known = registry.known();
    let container = container.map(|prefix| place.container(prefix, &containers(&known))).transpose()?;
    let not_found = |asked: String| Error::VolumeNotFound { asked, sandbox: place.sandbox.clone() };
    if let Some(id) = &which.volume {
        let found = known.into_iter().find(|(known, _)| known == id);
        let found = found.ok_or_else(|| not_found(id.to_string()))?;
        return match (found.1.destination(), container) {
            (Some((holder, _)), Some(asked)) if holder != asked => {
                let (volume, container) = (id.to_string(), holder.to_owned());
                Err(Error::OtherContainer { volume, container, asked })
            }
            _ => Ok(found),
        };
    }
    let path = which.device_path.as_deref().unwrap_or_default();
    let is_here = |(_, presence): &Known| {
        presence.destination().is_some_and(|(holder, at)| {
            at == path && container.as_deref().is_none_or(|container| container == holder)
        })
    };
    let mut found: Vec<Known> = known.into_iter().filter(is_here).collect();
    // What a killed run left is behind the one that took its place.
    if found.len() > 1 && found.iter().filter(|(_, presence)| presence.committed().is_some()).count() == 1 {
        found.retain(|(_, presence)| presence.committed().is_some());
    }
    match (found.pop(), found.len()) {
        (Some(only), 0) => Ok(only),
        (Some(last), _) => {
            let name = |(id, presence): &Known| {
                let (container, _) = presence.destination().unwrap_or_default();
                format!("{id} in container {container}")
            };
            found.push(last);
            Err(Error::PathAmbiguous { path: path.to_owned(), found: found.iter().map(name).collect() })
        }
        (None, _) => Err(not_found(match container {
            Some(container) => format!("at {path} in container {container}"),
            None => format!("at {path}"),
        })),
    }
}

/// All volumes, or those of `container`, by container and path.
///
/// # Errors
/// There is no such container.
pub(crate) fn all(container: Option<&str>, place: &Place, registry: &Registry) -> Result<Vec<Known>, Error> {
    let mut known = registry.known();
    let container = container.map(|prefix| place.container(prefix, &containers(&known))).transpose()?;
    known.retain(|(_, presence)| match (&container, presence.destination()) {
        (Some(container), holder) => holder.is_some_and(|(holder, _)| holder == container),
        (None, _) => true,
    });
    known.sort_by(|(_, a), (_, b)| a.destination().cmp(&b.destination()));
    Ok(known)
}

/// The containers that volumes are recorded for.
fn containers(known: &[Known]) -> Vec<&str> {
    known.iter().filter_map(|(_, presence)| Some(presence.destination()?.0)).collect()
}
