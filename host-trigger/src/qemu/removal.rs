//! Removes from QEMU what exists of a volume: device, block node, descriptors. `remove-fd` comes
//! last: it removes the record.

use block_volume_qmp::{COMMAND_TIMEOUT, Event, Qmp, QmpError};
use serde_json::json;

use super::{
    disk::{self, is_gone, unless_gone},
    inventory::Inventory,
};
use crate::{
    Deadline, Error, fault,
    volume_id::{VolumeId, reservation_name},
};

/// Whose work on a volume is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner<'a> {
    /// That of any run.
    Any,
    /// The disk, and the records of this run.
    Run(&'a str),
    /// Only the records of this run: the disk is another run's.
    RecordsOf(&'a str),
}

/// Removes a volume from QEMU, as far as it exists: device, block node, descriptors.
///
/// # Errors
/// QEMU refuses, or does not reply.
pub async fn remove(
    qmp: &mut Qmp,
    id: &VolumeId,
    owner: Owner<'_>,
    deadline: Deadline,
) -> Result<(), Error> {
    let state = Inventory::read(qmp).await?.volume(id);
    let run = match owner {
        Owner::Any => None,
        Owner::Run(run) | Owner::RecordsOf(run) => Some(run),
    };
    if !matches!(owner, Owner::RecordsOf(_)) {
        if state.device {
            remove_device(qmp, id, deadline).await?;
            fault::point("remove-after-device-del").await?;
        }
        // It is cheaper to try than to check whether it exists: QEMU lists only all nodes together.
        remove_node(qmp, id, deadline).await?;
        fault::point("remove-after-blockdev-del").await?;
        for further in state.attachments().iter().filter(|known| known.is_further()) {
            let reservation = reservation_name(&further.intent.container, &further.intent.path);
            disk::release_path(qmp, &reservation).await?;
        }
    }
    for (set, intent) in &state.intents {
        if run.is_none_or(|run| run == intent.run) {
            remove_descriptor(qmp, *set, None).await?;
        }
    }
    Ok(())
}

/// Removes one attachment of a volume whose other attachments remain: its path reservation and,
/// last, its records.
///
/// # Errors
/// QEMU refuses, or does not reply.
pub(crate) async fn remove_attachment(
    qmp: &mut Qmp,
    id: &VolumeId,
    container: &str,
    path: &str,
) -> Result<(), Error> {
    let attachments = Inventory::read(qmp).await?.volume(id).attachments();
    let Some(known) = attachments.iter().find(|known| known.is_at(container, path)) else {
        return Ok(());
    };
    if known.is_further() {
        disk::release_path(qmp, &reservation_name(container, path)).await?;
    }
    fault::point("remove-after-release-path").await?;
    for (carrier, _) in &known.commits {
        remove_descriptor(qmp, carrier.set, Some(carrier.fd)).await?;
    }
    Ok(())
}

/// Removes a descriptor, or a whole descriptor set.
///
/// # Errors
/// QEMU refuses, or does not reply.
pub(crate) async fn remove_descriptor(
    qmp: &mut Qmp,
    set: u64,
    fd: Option<i64>,
) -> Result<(), QmpError> {
    let mut arguments = json!({"fdset-id": set});
    if let Some(fd) = fd {
        arguments["fd"] = json!(fd);
    }
    unless_gone(qmp.execute("remove-fd", arguments).await)
}

async fn remove_device(qmp: &mut Qmp, id: &VolumeId, deadline: Deadline) -> Result<(), Error> {
    match qmp.execute("device_del", json!({"id": id.device()})).await {
        // It was requested before; the event is still to come.
        Err(e) if e.refusal().is_some_and(|text| text.contains("in the process of unplug")) => {}
        // It was removed in the meantime: there is no event to wait for.
        Err(e) if e.refusal().is_some_and(is_gone) => return Ok(()),
        reply => drop(reply?),
    }
    fault::point("remove-before-device-deleted").await?;
    if await_deleted(qmp, id, deadline).await {
        return Ok(());
    }
    // The event may have been sent while no client was connected: then the device is gone.
    if Inventory::read(qmp).await?.volume(id).device {
        return Err(QmpError::TimedOut { command: "device_del".into() }.into());
    }
    Ok(())
}

/// Awaits the event that the device was deleted. Returns false if it does not arrive in time.
async fn await_deleted(qmp: &mut Qmp, id: &VolumeId, deadline: Deadline) -> bool {
    let device = id.device();
    let path = format!("/machine/peripheral/{device}");
    let is_ours = |event: &Event| {
        event.name == "DEVICE_DELETED"
            && (event.data["device"] == device.as_str() || event.data["path"] == path.as_str())
    };
    // The rest of the time is for checking whether the device exists.
    let deadline = deadline.capped(COMMAND_TIMEOUT).within(deadline.remaining() / 2);
    while let Some(event) = qmp.next_event(deadline).await {
        if is_ours(&event) {
            return true;
        }
    }
    false
}

/// A device that an earlier run removed leaves QEMU's tree immediately, and releases its node some
/// 50 ms later, right before its event (seen with 10.0).
async fn remove_node(qmp: &mut Qmp, id: &VolumeId, deadline: Deadline) -> Result<(), QmpError> {
    let arguments = || json!({"node-name": id.node()});
    let removed = qmp.execute("blockdev-del", arguments()).await;
    let in_use =
        removed.as_ref().is_err_and(|e| e.refusal().is_some_and(|text| text.contains("is in use")));
    if in_use && await_deleted(qmp, id, deadline).await {
        return unless_gone(qmp.execute("blockdev-del", arguments()).await);
    }
    unless_gone(removed)
}
