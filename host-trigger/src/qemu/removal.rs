//! Removes from QEMU what exists of a volume: device, block node, descriptors. `remove-fd` comes
//! last: it removes the record.

use block_volume_qmp::{COMMAND_TIMEOUT, Command, Event, PassedFd, Qmp, QmpError};
use serde_json::{Value, json};

use super::{
    block_node,
    descriptor_sets::{Carrier, DescriptorSets},
    disk::{is_gone, unless_gone},
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

/// What QEMU has of a volume and has to lose.
#[derive(Debug, Clone)]
pub(crate) struct Removal {
    id: VolumeId,
    /// Its device exists.
    device: bool,
    /// Its block node may exist.
    node: bool,
    /// The path reservations of further attachments.
    reservations: Vec<String>,
    /// Descriptors, or whole sets.
    descriptors: Vec<Carrier>,
}

impl Removal {
    /// The removal of what `inventory` has of the volume.
    pub(crate) fn of(inventory: &Inventory, id: &VolumeId, owner: Owner<'_>) -> Self {
        let state = inventory.volume(id);
        let (disk, run) = match owner {
            Owner::Any => (true, None),
            Owner::Run(run) => (true, Some(run)),
            Owner::RecordsOf(run) => (false, Some(run)),
        };
        let attachments = state.attachments();
        let further = attachments.iter().filter(|known| disk && known.is_further());
        let reservations =
            further.map(|known| reservation_name(&known.intent.container, &known.intent.path));
        let intents =
            state.intents.iter().filter(|(_, intent)| run.is_none_or(|run| run == intent.run));
        let descriptors = intents.flat_map(|(carrier, _)| {
            let whole = (carrier.set, None);
            // Others keep what they have in the same set.
            let own = inventory.sets.beside_others(*carrier);
            let whole = own.is_empty().then_some(whole);
            whole.into_iter().chain(own.into_iter().map(|PassedFd { set, fd }| (set, Some(fd))))
        });
        Self {
            id: id.clone(),
            device: disk && state.device,
            // It is cheaper to try than to check whether it exists: QEMU lists only all nodes.
            node: disk,
            reservations: reservations.collect(),
            descriptors: descriptors.collect(),
        }
    }

    /// Removes it, and makes sure that it is gone. What is gone already is no error.
    ///
    /// # Errors
    /// QEMU refuses, or does not reply, or keeps a descriptor.
    pub(crate) async fn run(&self, qmp: &mut Qmp, deadline: Deadline) -> Result<(), Error> {
        if self.device {
            remove_device(qmp, &self.id, deadline).await?;
        }
        if self.node {
            remove_node(qmp, &self.id, deadline).await?;
            fault::point("remove-after-blockdev-del").await?;
        }
        for reservation in &self.reservations {
            block_node::release_path(qmp, reservation).await?;
        }
        // A stopped QEMU 7.2 replies that it removed a descriptor, and keeps it. The second time it
        // should not find it. (It does if another program has a node over the set: then the set is
        // empty.)
        let is_left = !remove_descriptors(qmp, &self.descriptors, 2).await?
            && DescriptorSets::read(qmp).await?.have_any(&self.descriptors);
        match is_left {
            true => Err(Error::TimedOut { what: format!("QEMU to remove volume {}", self.id) }),
            false => Ok(()),
        }
    }
}

/// Removes a volume from QEMU, as far as it exists: device, block node, descriptors.
///
/// # Errors
/// QEMU refuses, or does not reply, or keeps a descriptor.
pub async fn remove(
    qmp: &mut Qmp,
    id: &VolumeId,
    owner: Owner<'_>,
    deadline: Deadline,
) -> Result<(), Error> {
    Removal::of(&Inventory::read(qmp).await?, id, owner).run(qmp, deadline).await
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
        block_node::release_path(qmp, &reservation_name(container, path)).await?;
    }
    fault::point("remove-after-release-path").await?;
    let carriers = known.commits.iter().map(|(carrier, _)| (carrier.set, Some(carrier.fd)));
    remove_descriptors(qmp, &carriers.collect::<Vec<_>>(), 1).await?;
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
    remove_descriptors(qmp, &[(set, fd)], 1).await.map(drop)
}

/// Removes descriptors and whole sets, `times` times. Returns whether the last time each was gone
/// already.
async fn remove_descriptors(
    qmp: &mut Qmp,
    carriers: &[Carrier],
    times: usize,
) -> Result<bool, QmpError> {
    let command = |(set, fd): &Carrier| match fd {
        Some(fd) => Command::new("remove-fd", json!({"fdset-id": set, "fd": fd})),
        None => Command::new("remove-fd", json!({"fdset-id": set})),
    };
    let commands: Vec<_> =
        carriers.iter().flat_map(|carrier| vec![command(carrier); times]).collect();
    let mut replies = qmp.send_all(&commands).await;
    let mut are_gone = true;
    for _ in carriers {
        let mut is_gone = false;
        for _ in 0..times {
            let removed = replies.read::<Value>();
            is_gone = removed.is_err();
            unless_gone(removed)?;
        }
        are_gone &= is_gone;
    }
    Ok(are_gone)
}

/// Removes the device of a volume, and waits until it is gone. Returns what is then left to remove,
/// as it was found during the wait: the lists grow with the volumes, and QEMU has nothing else to
/// do.
///
/// # Errors
/// QEMU refuses, or does not reply.
pub(crate) async fn begin(
    qmp: &mut Qmp,
    id: &VolumeId,
    deadline: Deadline,
) -> Result<Removal, Error> {
    let is_awaited = delete_device(qmp, id).await?;
    let left = Removal::of(&Inventory::read(qmp).await?, id, Owner::Any);
    if is_awaited {
        await_deletion(qmp, id, deadline).await?;
    }
    Ok(Removal { device: false, ..left })
}

/// Removes the device of a volume, and waits until it is gone. QEMU does not wait for the guest.
async fn remove_device(qmp: &mut Qmp, id: &VolumeId, deadline: Deadline) -> Result<(), Error> {
    match delete_device(qmp, id).await? {
        true => await_deletion(qmp, id, deadline).await,
        false => Ok(()),
    }
}

/// Requests the removal of the device. Returns whether its end is to be awaited.
async fn delete_device(qmp: &mut Qmp, id: &VolumeId) -> Result<bool, Error> {
    match qmp.execute("device_del", json!({"id": id.device()})).await {
        // It was requested before; the event is still to come.
        Err(e) if e.refusal().is_some_and(|text| text.contains("in the process of unplug")) => {}
        // It was removed in the meantime: there is no event to wait for.
        Err(e) if e.refusal().is_some_and(is_gone) => return Ok(false),
        reply => drop(reply?),
    }
    fault::point("remove-before-device-deleted").await?;
    Ok(true)
}

/// Waits until the device is gone.
async fn await_deletion(qmp: &mut Qmp, id: &VolumeId, deadline: Deadline) -> Result<(), Error> {
    // The event may have been sent while no client was connected: then the device is gone.
    if !await_deleted(qmp, id, deadline).await && Inventory::read(qmp).await?.volume(id).device {
        return Err(QmpError::TimedOut { command: "device_del".into() }.into());
    }
    fault::point("remove-after-device-del").await
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
