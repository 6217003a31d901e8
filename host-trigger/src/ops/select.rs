//! Selects attached volumes, by ID or by path. The record in QEMU is decisive: a volume
//! whose container is gone is found, and so is one that an interrupted run left incomplete.

use crate::{
    Error,
    kata::sandbox::Sandbox,
    qemu::{
        inventory::Inventory,
        record::IntentRecord,
        volume_state::{Attachment, KnownVolume},
    },
    volume_id::VolumeId,
};

/// Which volume is meant.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Selection<'a> {
    /// The one of this ID.
    Id(&'a VolumeId),
    /// The device at this path in a container.
    DevicePath(&'a str),
    /// The one that is mounted at this path in a container.
    MountPath(&'a str),
}

/// A path in a container, of a device or of a mount.
#[derive(Debug, Clone, Copy)]
struct Path<'a> {
    path: &'a str,
    is_mount: bool,
}

impl Path<'_> {
    /// Whether the volume has this path in its container.
    fn is_of(self, known: &KnownVolume) -> bool {
        known.attachment.as_ref().is_some_and(|Attachment { intent, .. }| {
            intent.path == self.path && intent.mount.is_some() == self.is_mount
        })
    }
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
    one_of(selection, container, sandbox, inventory.attachments())
}

/// As [`one`], of all volumes.
///
/// # Errors
/// As [`one`].
pub(crate) fn one_of(
    selection: Selection<'_>,
    container: Option<&str>,
    sandbox: &Sandbox,
    known: Vec<KnownVolume>,
) -> Result<KnownVolume, Error> {
    let containers = complete(container, sandbox, &known)?;
    let at = |path, is_mount| Path { path, is_mount };
    match selection {
        Selection::Id(id) => by_id(id, &containers, sandbox, known),
        Selection::DevicePath(path) => by_path(at(path, false), &containers, sandbox, known),
        Selection::MountPath(path) => by_path(at(path, true), &containers, sandbox, known),
    }
}

/// Whether [`one_of`] cannot tell without the block nodes: what has no device may be a block node
/// alone, and of several volumes at one path that which is attached takes precedence.
pub(crate) fn needs_nodes(selection: Selection<'_>, known: &[KnownVolume]) -> bool {
    let most = match selection {
        Selection::Id(_) => usize::MAX,
        Selection::DevicePath(_) | Selection::MountPath(_) => 1,
    };
    let is_meant = |known: &&KnownVolume| match selection {
        Selection::Id(id) => known.id == *id,
        Selection::DevicePath(path) => Path { path, is_mount: false }.is_of(known),
        Selection::MountPath(path) => Path { path, is_mount: true }.is_of(known),
    };
    let found: Vec<_> = known.iter().filter(is_meant).collect();
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
    path: Path<'_>,
    containers: &[String],
    sandbox: &Sandbox,
    known: Vec<KnownVolume>,
) -> Result<KnownVolume, Error> {
    let is_here = |known: &KnownVolume| {
        path.is_of(known) && (containers.is_empty() || containers.iter().any(|id| is_in(known, id)))
    };
    let mut found: Vec<KnownVolume> = known.into_iter().filter(is_here).collect();
    // An attached volume takes precedence over what an interrupted run left at its path.
    if found.iter().filter(|known| known.is_attached()).count() == 1 {
        found.retain(KnownVolume::is_attached);
    }
    keep_newest(&mut found, containers);
    let Path { path, is_mount } = path;
    if found.is_empty() {
        let how = if is_mount { "mounted at" } else { "at" };
        let asked = match containers.first() {
            Some(container) => format!("{how} {path} in container {container}"),
            None => format!("{how} {path}"),
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

/// Returns all volumes, or those of `container`, by container and path.
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
