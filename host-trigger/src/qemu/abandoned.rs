//! Abandoned volumes: the host freed them without the guest, which may still have a disk, a device
//! node and a right. What is known of one is kept in QEMU until the guest has detached it.
//!
//! The record is on a descriptor of `/dev/null`, and copies of the commit records are on further
//! ones in the same set. QEMU 7.2 drops a set that nothing uses: so a block node uses the first
//! one, read-only. It is no disk, and cannot be written. A QOM object says that there are such
//! records at all: a plug then need not read the lists, which grow with the volumes.

use std::fs::{File, OpenOptions};

use block_volume_qmp::{Command, Qmp, QmpError, Replies};
use serde_json::{Value, json};

use super::{
    disk::{is_gone, unless_gone},
    inventory::Inventory,
    record::{AbandonedRecord, CommitRecord, Record},
    removal::remove_descriptor,
    volume_state::VolumeState,
};
use crate::{Error, fault, volume_id::VolumeId};

/// The ID of the object that exists while there are records.
const MARKER: &str = "ecrblk-abandoned";

/// Records that the volume `id`, of which QEMU has `state`, is taken from the guest: `commits` has
/// what is known of each attachment. Whatever an interrupted run recorded is replaced.
///
/// # Errors
/// QEMU refuses, or does not reply.
pub(crate) async fn write(
    qmp: &mut Qmp,
    id: &VolumeId,
    state: &VolumeState,
    commits: &[CommitRecord],
) -> Result<(), Error> {
    let Some((_, intent)) = state.intents.first() else {
        return Err(Error::RecordLost { volume: id.to_string() });
    };
    remove(qmp, id, None).await?;
    let marker = json!({"qom-type": "throttle-group", "id": MARKER});
    unless_duplicate(qmp.execute("object-add", marker).await)?;
    let record = Record::Abandoned(AbandonedRecord { v: intent.v, abandoned: intent.clone() });
    let set = qmp.add_fd(null(false)?, None, &record.to_opaque()).await?.set;
    for commit in commits {
        let record = Record::Commit(commit.clone()).to_opaque();
        qmp.add_fd(null(true)?, Some(set), &record).await?;
    }
    fault::point("after-record-abandoned").await?;
    let node = json!({
        "driver": "host_device", "node-name": id.abandoned_node(),
        "filename": format!("/dev/fdset/{set}"), "read-only": true,
    });
    match qmp.execute("blockdev-add", node).await {
        // Newer versions keep a set that nothing uses. The volume is freed in any case.
        Err(e) if e.refusal().is_some() => Ok(()),
        added => Ok(added.map(drop)?),
    }
}

/// The query that tells whether there may be abandoned volumes.
pub(crate) fn query() -> Command<'static> {
    let marker = json!({"path": format!("/objects/{MARKER}"), "property": "type"});
    Command::new("qom-get", marker)
}

/// Whether there may be abandoned volumes, by the reply to [`query`].
///
/// # Errors
/// QEMU does not reply.
pub(crate) fn exist(replies: &mut Replies) -> Result<bool, QmpError> {
    match replies.read::<Value>() {
        Err(e) if e.refusal().is_some_and(is_gone) => Ok(false),
        found => found.map(|_| true),
    }
}

/// Removes what is recorded of the volume; with `one`, only of the attachment of this container at
/// this path, if there are others.
///
/// # Errors
/// QEMU refuses, or does not reply.
pub(crate) async fn remove(
    qmp: &mut Qmp,
    id: &VolumeId,
    one: Option<(&str, &str)>,
) -> Result<(), Error> {
    let state = Inventory::read(qmp).await?.abandoned(id);
    let is_one = |container: &str, path: &str| one.is_none_or(|one| one == (container, path));
    let (gone, rest): (Vec<_>, Vec<_>) = state
        .attachments()
        .into_iter()
        .partition(|known| is_one(&known.intent.container, &known.intent.path));
    if !rest.is_empty() {
        for (carrier, _) in gone.iter().flat_map(|known| &known.commits) {
            remove_descriptor(qmp, carrier.set, Some(carrier.fd)).await?;
        }
        return Ok(());
    }
    unless_gone(qmp.execute("blockdev-del", json!({"node-name": id.abandoned_node()})).await)?;
    for (carrier, _) in &state.intents {
        remove_descriptor(qmp, carrier.set, None).await?;
    }
    if !Inventory::read(qmp).await?.has_abandoned() {
        unless_gone(qmp.execute("object-del", json!({"id": MARKER})).await)?;
    }
    Ok(())
}

fn unless_duplicate(reply: Result<Value, QmpError>) -> Result<(), QmpError> {
    match reply {
        Err(e) if e.refusal().is_some_and(|text| text.contains("duplicate")) => Ok(()),
        reply => reply.map(drop),
    }
}

fn null(writable: bool) -> Result<File, Error> {
    let null = OpenOptions::new().read(!writable).write(writable).open("/dev/null");
    null.map_err(|e| Error::system("open", "/dev/null", e))
}
