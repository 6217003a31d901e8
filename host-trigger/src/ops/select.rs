//! Selects attached volumes, by ID or by device path. The record in QEMU is decisive: a volume
//! whose container is gone is found, and so is one that an interrupted run left incomplete.

use crate::{
    Error,
    kata::sandbox::Sandbox,
    qemu::{inventory::Inventory, record::IntentRecord, volume_state::KnownVolume},
    volume_id::VolumeId,
};

/// Which volume is meant.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Selection<'a> {
    /// The one of this ID.
    Id(&'a VolumeId),
    /// The one at this path in a container.
    DevicePath(&'a str),
}

/// Finds the selected volume; if `container` is given, only one of that container. Of a shared
/// volume it finds one attachment.
///
/// # Errors
/// It does not exist, belongs to another container, or there are several.
pub(crate) fn one(
    selection: Selection<'_>,
    container: Option<&str>,
    sandbox: &Sandbox,
    inventory: &Inventory,
) -> Result<KnownVolume, Error> {
    let known = inventory.attachments();
    let container = complete(container, sandbox, &known)?;
    match selection {
        Selection::Id(id) => by_id(id, container, sandbox, known),
        Selection::DevicePath(path) => by_path(path, container, sandbox, known),
    }
}

fn by_id(
    id: &VolumeId,
    container: Option<String>,
    sandbox: &Sandbox,
    known: Vec<KnownVolume>,
) -> Result<KnownVolume, Error> {
    let mut found: Vec<_> = known.into_iter().filter(|known| known.id == *id).collect();
    if found.is_empty() {
        return Err(Error::VolumeNotFound { asked: id.to_string(), sandbox: sandbox.id.clone() });
    }
    if let Some(asked) = container {
        let is_elsewhere = |known: &KnownVolume| {
            known.attachment.as_ref().is_some_and(|known| known.intent.container != asked)
        };
        if found.iter().all(is_elsewhere)
            && let Some(other) = &found[0].attachment
        {
            let (volume, container) = (id.to_string(), other.intent.container.clone());
            return Err(Error::OtherContainer { volume, container, asked });
        }
        found.retain(|known| !is_elsewhere(known));
    }
    only(found, |found| Error::VolumeAmbiguous { volume: id.to_string(), found })
}

fn by_path(
    path: &str,
    container: Option<String>,
    sandbox: &Sandbox,
    known: Vec<KnownVolume>,
) -> Result<KnownVolume, Error> {
    let is_here = |known: &KnownVolume| {
        known.attachment.as_ref().is_some_and(|known| {
            let IntentRecord { container: holder, path: at, .. } = &known.intent;
            at == path && container.as_deref().is_none_or(|container| container == holder)
        })
    };
    let mut found: Vec<KnownVolume> = known.into_iter().filter(is_here).collect();
    // An attached volume takes precedence over what an interrupted run left at its path.
    if found.iter().filter(|known| known.is_attached()).count() == 1 {
        found.retain(KnownVolume::is_attached);
    }
    if found.is_empty() {
        let asked = match container {
            Some(container) => format!("at {path} in container {container}"),
            None => format!("at {path}"),
        };
        return Err(Error::VolumeNotFound { asked, sandbox: sandbox.id.clone() });
    }
    only(found, |found| Error::PathAmbiguous { path: path.to_owned(), found })
}

/// Returns the only one of `found`, or the error that names them all.
fn only(
    mut found: Vec<KnownVolume>,
    several: impl FnOnce(Vec<String>) -> Error,
) -> Result<KnownVolume, Error> {
    match (found.len(), found.pop()) {
        (1, Some(only)) => Ok(only),
        (_, last) => {
            found.extend(last);
            let name = |known: &KnownVolume| match &known.attachment {
                Some(attachment) => format!("{} {}", known.id, place(&attachment.intent)),
                None => known.id.to_string(),
            };
            Err(several(found.iter().map(name).collect()))
        }
    }
}

/// Where an attachment is, for people.
pub(crate) fn place(IntentRecord { container, path, .. }: &IntentRecord) -> String {
    format!("at {path} in container {container}")
}

/// Returns all volumes, or those of `container`, by container and device path.
///
/// # Errors
/// There is no such container.
pub(crate) fn all(
    container: Option<&str>,
    sandbox: &Sandbox,
    inventory: &Inventory,
) -> Result<Vec<KnownVolume>, Error> {
    let mut known = inventory.attachments();
    let container = complete(container, sandbox, &known)?;
    let key = |known: &KnownVolume| {
        let intent = &known.attachment.as_ref()?.intent;
        Some((intent.container.clone(), intent.path.clone()))
    };
    known.retain(|known| match &container {
        Some(container) => key(known).is_some_and(|(holder, _)| holder == *container),
        None => true,
    });
    known.sort_by_cached_key(key);
    Ok(known)
}

/// Completes a prefix of a container's ID, also of a container that only a record names.
fn complete(
    prefix: Option<&str>,
    sandbox: &Sandbox,
    known: &[KnownVolume],
) -> Result<Option<String>, Error> {
    let recorded: Vec<_> = known
        .iter()
        .filter_map(|known| Some(known.attachment.as_ref()?.intent.container.as_str()))
        .collect();
    prefix.map(|prefix| sandbox.container(prefix, &recorded)).transpose()
}
