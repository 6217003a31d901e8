//! Takes back what was done for a volume, or what a killed run left of it. It goes by what QEMU and
//! the guest have, not by what was noted: the same code undoes a step that failed, one whose reply
//! was lost, and a whole run that ended in the middle.
//!
//! The guest comes first
//! ([`device_del`](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html#command-QMP-qdev.device_del)
//! of a SCSI disk is a surprise removal), and `remove-fd` last: it takes the record with it.

use std::{io::ErrorKind, time::Duration};

use block_volume_api::block_volume::{
    self as contract, Attachment, DetachRequest, DetachResponse, Detachment, ScsiAddress,
};
use serde_json::json;

use crate::{
    Deadline, Error,
    agent::{self, Agent},
    disk::{self, Address, is_gone, unless_gone},
    fault,
    presence::{Presence, Use},
    record::{Access, Intent},
    registry::Registry,
    sandbox::Place,
    volume::{VolumeId, place_name},
};
use block_volume_qmp::{COMMAND_TIMEOUT, Event, Qmp, QmpError};

/// The least time for an undo, also when the command's own is over.
pub const LEAST_TIME: Duration = Duration::from_secs(5);

/// Whose work on a volume is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose<'a> {
    /// Everybody's.
    Any,
    /// The disk, and the records of the run of this name.
    Run(&'a str),
    /// Only the records of the run of this name: the disk is another run's.
    RecordsOf(&'a str),
}

/// Asks the guest to take volumes away.
///
/// # Errors
/// The guest refuses, or its reply is lost.
pub async fn detach(
    agent: &Agent,
    detachments: Vec<Detachment>,
    deadline: Deadline,
) -> Result<(), Error> {
    let request = DetachRequest { detachments, ..Default::default() };
    ask(agent, request, deadline).await.map(drop)
}

/// Sends `request` with the time that the guest has: what may be waited, and most of the rest.
///
/// # Errors
/// As [`detach`].
pub(crate) async fn ask(
    agent: &Agent,
    mut request: DetachRequest,
    deadline: Deadline,
) -> Result<DetachResponse, Error> {
    let left = deadline.remaining();
    let wait = Duration::from_millis(request.wait_ms).min(left);
    let timeout = agent::timeout_ms(left - (left - wait) / 4);
    request.timeout_ms = timeout;
    request.wait_ms = request.wait_ms.min(timeout);
    agent.detach(&request, deadline).await
}

/// What the guest is to take away of one use of a volume. A run that ended before it wrote its
/// outcome leaves the guest to find out by itself. The disk stays where others use it, and so does
/// the right where they are the same container's.
///
/// # Errors
/// QEMU does not tell the disk's address.
pub(crate) async fn detachment(
    qmp: &mut Qmp,
    presence: &Presence,
    used: &Use,
    controller: &str,
) -> Result<Detachment, QmpError> {
    let Use { intent, .. } = used;
    let address = if presence.device {
        let path = format!("/machine/peripheral/ecrblk-{}", intent.id);
        let target = qmp.query("qom-get", json!({"path": path, "property": "scsi-id"})).await?;
        let lun = qmp.query("qom-get", json!({"path": path, "property": "lun"})).await?;
        Address { target, lun }
    } else {
        let noted = used.placements.first();
        noted.map_or(Address { target: 0, lun: 0 }, |(_, p)| Address {
            target: p.target,
            lun: p.lun,
        })
    };
    let others = presence.uses();
    let others = || others.iter().filter(|other| !other.is_at(&intent.container, &intent.path));
    let size = presence.node.unwrap_or(intent.size);
    Ok(Detachment {
        attachment: Some(attachment(intent, controller, address, size)).into(),
        outcome: used.committed().map(|(_, placement)| placement.outcome()).into(),
        keep_disk: others().next().is_some(),
        keep_right: others().any(|other| other.intent.container == intent.container),
        ..Default::default()
    })
}

/// A volume as the guest is told of it.
pub(crate) fn attachment(
    intent: &Intent,
    controller: &str,
    address: Address,
    size: u64,
) -> Attachment {
    Attachment {
        container_id: intent.container.clone(),
        controller: controller.to_owned(),
        address: Some(ScsiAddress {
            target: address.target,
            lun: address.lun,
            ..Default::default()
        })
        .into(),
        serial: intent.id.clone(),
        size,
        path: intent.path.clone(),
        access: match intent.access {
            Access::ReadWrite => contract::Access::ACCESS_READ_WRITE,
            Access::ReadOnly => contract::Access::ACCESS_READ_ONLY,
        }
        .into(),
        uid: intent.uid,
        gid: intent.gid,
        mode: intent.mode,
        ..Default::default()
    }
}

/// May the container only read?
pub(crate) fn is_read_only(attachment: &Attachment) -> bool {
    attachment.access == contract::Access::ACCESS_READ_ONLY.into()
}

/// A new connection to QEMU, after the earlier one was closed; `None` if there is no QEMU any more,
/// and with it no VM.
///
/// # Errors
/// QEMU is there, and does not answer.
pub(crate) async fn reconnect(place: &Place, deadline: Deadline) -> Result<Option<Qmp>, Error> {
    // It may be at work on the command that was cut short, and greets when that is done.
    match place.connect_qmp_within(deadline, COMMAND_TIMEOUT).await {
        Ok(qmp) => Ok(Some(qmp)),
        Err(Error::NoQmpSocket { .. }) => Ok(None),
        Err(Error::Qmp(QmpError::Connect { source, .. }))
            if matches!(source.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// Takes a volume from QEMU: device, node, descriptors, as far as they are there.
///
/// # Errors
/// QEMU refuses, or does not answer.
pub async fn remove(
    qmp: &mut Qmp,
    id: &VolumeId,
    whose: Whose<'_>,
    deadline: Deadline,
) -> Result<(), Error> {
    let presence = Registry::read(qmp).await?.presence(id);
    let run = match whose {
        Whose::Any => None,
        Whose::Run(run) | Whose::RecordsOf(run) => Some(run),
    };
    if !matches!(whose, Whose::RecordsOf(_)) {
        if presence.device {
            remove_device(qmp, id, deadline).await?;
            fault::point("remove-after-device-del").await?;
        }
        // Whether it is there is cheaper to try than to ask: QEMU lists its nodes only all at once.
        remove_node(qmp, id, deadline).await?;
        fault::point("remove-after-blockdev-del").await?;
        for used in presence.uses().iter().filter(|used| used.is_further()) {
            disk::free_place(qmp, &place_name(&used.intent.container, &used.intent.path)).await?;
        }
    }
    for (set, intent) in &presence.intents {
        if run.is_none_or(|run| run == intent.run) {
            remove_descriptor(qmp, *set, None).await?;
        }
    }
    Ok(())
}

/// Takes one use of a volume that others go on with from QEMU: what is noted of it, last, and what
/// keeps its place.
///
/// # Errors
/// QEMU refuses, or does not answer.
pub(crate) async fn remove_use(
    qmp: &mut Qmp,
    id: &VolumeId,
    container: &str,
    path: &str,
) -> Result<(), Error> {
    let uses = Registry::read(qmp).await?.presence(id).uses();
    let Some(used) = uses.iter().find(|used| used.is_at(container, path)) else { return Ok(()) };
    if used.is_further() {
        disk::free_place(qmp, &place_name(container, path)).await?;
    }
    fault::point("remove-after-free-place").await?;
    for (carrier, _) in &used.placements {
        remove_descriptor(qmp, carrier.set, Some(carrier.fd)).await?;
    }
    Ok(())
}

/// Takes a descriptor, or a whole set, from QEMU.
///
/// # Errors
/// QEMU refuses, or does not answer.
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
        // Somebody asked before; the event is still to come.
        Err(e) if e.refusal().is_some_and(|text| text.contains("in the process of unplug")) => {}
        // It went meanwhile: no event is to come.
        Err(e) if e.refusal().is_some_and(is_gone) => return Ok(()),
        answer => drop(answer?),
    }
    fault::point("remove-before-device-deleted").await?;
    if is_deleted(qmp, id, deadline).await {
        return Ok(());
    }
    // The event may have come while nobody listened: then the device is gone.
    if Registry::read(qmp).await?.presence(id).device {
        return Err(QmpError::TimedOut { command: "device_del".into() }.into());
    }
    Ok(())
}

/// Waits for the event that the device is gone.
async fn is_deleted(qmp: &mut Qmp, id: &VolumeId, deadline: Deadline) -> bool {
    let device = id.device();
    let path = format!("/machine/peripheral/{device}");
    let is_ours = |event: &Event| {
        event.name == "DEVICE_DELETED"
            && (event.data["device"] == device.as_str() || event.data["path"] == path.as_str())
    };
    // What is left is for the look at what is there.
    let deadline = deadline.within(COMMAND_TIMEOUT.min(deadline.remaining() / 2));
    while let Some(event) = qmp.next_event(deadline).await {
        if is_ours(&event) {
            return true;
        }
    }
    false
}

/// A device that an earlier run took away is out of QEMU's tree at once, and lets go of its node
/// some 50 ms later: right before its event (seen with 10.0).
async fn remove_node(qmp: &mut Qmp, id: &VolumeId, deadline: Deadline) -> Result<(), QmpError> {
    let removed = qmp.execute("blockdev-del", json!({"node-name": id.node()})).await;
    let in_use =
        removed.as_ref().is_err_and(|e| e.refusal().is_some_and(|text| text.contains("is in use")));
    if in_use && is_deleted(qmp, id, deadline).await {
        return unless_gone(qmp.execute("blockdev-del", json!({"node-name": id.node()})).await);
    }
    unless_gone(removed)
}
