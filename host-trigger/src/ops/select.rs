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
    let containers = complete(container, sandbox, &known)?;
    match selection {
        Selection::Id(id) => by_id(id, &containers, sandbox, known),
        Selection::DevicePath(path) => by_path(path, &containers, sandbox, known),
    }
}

/// Whether [`one`] cannot tell without the block nodes: what has no device may be a block node
/// alone, and of several volumes at one path that which is attached takes precedence.
pub(crate) fn needs_nodes(selection: Selection<'_>, inventory: &Inventory) -> bool {
    let mut found = inventory.attachments();
    let at = |known: &KnownVolume| known.attachment.as_ref().map(|known| known.intent.path.clone());
    let most = match selection {
        Selection::Id(id) => {
            found.retain(|known| known.id == *id);
            usize::MAX
        }
        Selection::DevicePath(path) => {
            found.retain(|known| at(known).is_some_and(|at| at == path));
            1
        }
    };
    found.is_empty() || found.len() > most || found.iter().any(|known| !known.state.device)
}

fn by_id(
    id: &VolumeId,
    containers: &[String],
    sandbox: &Sandbox,
    known: Vec<KnownVolume>,
) -> Result<KnownVolume, Error> {
    let mut found: Vec<_> = known.into_iter().filter(|known| known.id == *id).collect();
    if found.is_empty() {
        return Err(Error::VolumeNotFound { asked: id.to_string(), sandbox: sandbox.id.clone() });
    }
    if let Some(asked) = containers.first() {
        let is_elsewhere = |known: &KnownVolume| {
            known.attachment.is_some() && !containers.iter().any(|id| is_in(known, id))
        };
        if found.iter().all(is_elsewhere)
            && let Some(other) = &found[0].attachment
        {
            let (volume, asked) = (id.to_string(), asked.clone());
            let container = other.intent.container.clone();
            return Err(Error::OtherContainer { volume, container, asked });
        }
        found.retain(|known| !is_elsewhere(known));
    }
    keep_newest(&mut found, containers);
    only(found, |found| Error::VolumeAmbiguous { volume: id.to_string(), found })
}

fn by_path(
    path: &str,
    containers: &[String],
    sandbox: &Sandbox,
    known: Vec<KnownVolume>,
) -> Result<KnownVolume, Error> {
    let is_here = |known: &KnownVolume| {
        let is_at = known.attachment.as_ref().is_some_and(|known| known.intent.path == path);
        is_at && (containers.is_empty() || containers.iter().any(|id| is_in(known, id)))
    };
    let mut found: Vec<KnownVolume> = known.into_iter().filter(is_here).collect();
    // An attached volume takes precedence over what an interrupted run left at its path.
    if found.iter().filter(|known| known.is_attached()).count() == 1 {
        found.retain(KnownVolume::is_attached);
    }
    keep_newest(&mut found, containers);
    if found.is_empty() {
        let asked = match containers.first() {
            Some(container) => format!("at {path} in container {container}"),
            None => format!("at {path}"),
        };
        return Err(Error::VolumeNotFound { asked, sandbox: sandbox.id.clone() });
    }
    only(found, |found| Error::PathAmbiguous { path: path.to_owned(), found })
}

/// Whether the volume is attached to `container`.
fn is_in(known: &KnownVolume, container: &str) -> bool {
    known.attachment.as_ref().is_some_and(|known| known.intent.container == container)
}

/// Keeps what the newest of `containers` has that has anything.
fn keep_newest(found: &mut Vec<KnownVolume>, containers: &[String]) {
    if let Some(newest) = containers.iter().find(|id| found.iter().any(|known| is_in(known, id))) {
        found.retain(|known| is_in(known, newest));
    }
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
    let containers = complete(container, sandbox, &known)?;
    let key = |known: &KnownVolume| {
        let intent = &known.attachment.as_ref()?.intent;
        Some((intent.container.clone(), intent.path.clone()))
    };
    known.retain(|known| containers.is_empty() || containers.iter().any(|id| is_in(known, id)));
    known.sort_by_cached_key(key);
    Ok(known)
}

/// Completes a prefix of a container's ID, also of a container that only a record names. Returns
/// every ID that is meant, the newest first: one, several of a container of a pod, or none if none
/// is named.
fn complete(
    prefix: Option<&str>,
    sandbox: &Sandbox,
    known: &[KnownVolume],
) -> Result<Vec<String>, Error> {
    let Some(prefix) = prefix else { return Ok(Vec::new()) };
    if !sandbox.attempts().is_empty() {
        return Ok(sandbox.attempts().to_vec());
    }
    let recorded: Vec<_> = known
        .iter()
        .filter_map(|known| Some(known.attachment.as_ref()?.intent.container.as_str()))
        .collect();
    Ok(vec![sandbox.container(prefix, &recorded)?])
}
