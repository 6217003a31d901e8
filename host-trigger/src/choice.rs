//! Which of the volumes that are plugged is meant: by its id, or by where it is. A volume whose
//! container is gone is found as well as one that a killed run left half done: what counts is the
//! record in QEMU.

use crate::{
    Error, cli::Which, presence::Known, record::Intent, registry::Registry, sandbox::Place,
    volume::check_device_path,
};

/// What can be said of `which` by itself.
pub(crate) fn check(which: &Which) -> Result<(), Error> {
    match &which.device_path {
        Some(path) => {
            check_device_path(path).map_err(|why| Error::DevicePath { path: path.clone(), why })
        }
        None => Ok(()),
    }
}

/// The volume that `which` names; with `container`, only one for that container. Of a shared
/// volume, one use.
///
/// # Errors
/// It is not there, or is another container's, or there are several.
pub(crate) fn find(
    which: &Which,
    container: Option<&str>,
    place: &Place,
    registry: &Registry,
) -> Result<Known, Error> {
    let known = registry.uses();
    let container =
        container.map(|prefix| place.container(prefix, &containers(&known))).transpose()?;
    let not_found = |asked: String| Error::VolumeNotFound { asked, sandbox: place.sandbox.clone() };
    if let Some(id) = &which.volume {
        let mut found: Vec<_> = known.into_iter().filter(|known| known.id == *id).collect();
        if found.is_empty() {
            return Err(not_found(id.to_string()));
        }
        if let Some(asked) = container {
            let is_elsewhere = |known: &Known| {
                known.used.as_ref().is_some_and(|used| used.intent.container != asked)
            };
            if let Some(Some(other)) =
                found.iter().all(is_elsewhere).then(|| found[0].used.as_ref())
            {
                let (volume, container) = (id.to_string(), other.intent.container.clone());
                return Err(Error::OtherContainer { volume, container, asked });
            }
            found.retain(|known| !is_elsewhere(known));
        }
        return only(found, |found| Error::VolumeAmbiguous { volume: id.to_string(), found });
    }
    let path = which.device_path.as_deref().unwrap_or_default();
    let is_here = |known: &Known| {
        known.used.as_ref().is_some_and(|used| {
            let Intent { container: holder, path: at, .. } = &used.intent;
            at == path && container.as_deref().is_none_or(|container| container == holder)
        })
    };
    let mut found: Vec<Known> = known.into_iter().filter(is_here).collect();
    // What a killed run left is behind the one that took its place.
    if found.iter().filter(|known| known.is_plugged()).count() == 1 {
        found.retain(Known::is_plugged);
    }
    if found.is_empty() {
        return Err(not_found(match container {
            Some(container) => format!("at {path} in container {container}"),
            None => format!("at {path}"),
        }));
    }
    only(found, |found| Error::PathAmbiguous { path: path.to_owned(), found })
}

/// The only one of `found`, or the error that names them all.
fn only(mut found: Vec<Known>, several: impl FnOnce(Vec<String>) -> Error) -> Result<Known, Error> {
    match (found.len(), found.pop()) {
        (1, Some(only)) => Ok(only),
        (_, last) => {
            found.extend(last);
            let name = |known: &Known| {
                let place =
                    known.used.as_ref().map(|used| (&used.intent.path, &used.intent.container));
                place.map_or(known.id.to_string(), |(path, container)| {
                    format!("{} at {path} in container {container}", known.id)
                })
            };
            Err(several(found.iter().map(name).collect()))
        }
    }
}

/// All volumes, or those of `container`, by container and path.
///
/// # Errors
/// There is no such container.
pub(crate) fn all(
    container: Option<&str>,
    place: &Place,
    registry: &Registry,
) -> Result<Vec<Known>, Error> {
    let mut known = registry.uses();
    let container =
        container.map(|prefix| place.container(prefix, &containers(&known))).transpose()?;
    let of = |known: &Known| {
        let used = known.used.as_ref()?;
        Some((used.intent.container.clone(), used.intent.path.clone()))
    };
    known.retain(|known| match &container {
        Some(container) => of(known).is_some_and(|(holder, _)| holder == *container),
        None => true,
    });
    known.sort_by_cached_key(of);
    Ok(known)
}

/// The containers that volumes are recorded for.
fn containers(known: &[Known]) -> Vec<&str> {
    known.iter().filter_map(|known| Some(known.used.as_ref()?.intent.container.as_str())).collect()
}
