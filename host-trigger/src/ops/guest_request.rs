//! What is sent to the guest: attachments, detachments and their time-outs.

use std::time::Duration;

use block_volume_api::block_volume::{
    self as api, DetachRequest, DetachResponse, Detachment, ScsiAddress as ApiScsiAddress,
};
use block_volume_qmp::{Qmp, QmpError};
use serde_json::json;

use crate::{
    Deadline, Error,
    kata::{
        agent::{self, Agent},
        unplug_stream::UnplugStream,
    },
    qemu::{
        disk::ScsiAddress,
        mount::MountRecord,
        record::{Access, IntentRecord},
        volume_state::{Attachment, VolumeState},
    },
};

/// The part of a command's time that is kept for the rollback, at most. A rollback has at least
/// this time, also when the command's own is over.
pub(crate) const ROLLBACK_TIME: Duration = Duration::from_secs(5);
/// The type of a directory: what the API wants as the mode of a mount, so that a plugin which does
/// not know mounts refuses the request, and makes no node.
const MODE_OF_MOUNTS: u32 = 0o40_000;
/// The guest's reply may arrive this much later than its own deadline.
pub(crate) const REPLY_GRACE: Duration = Duration::from_secs(2);

/// How a request's time is split, so that the guest can roll back and the host can, too.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestTime {
    /// What the guest gets.
    pub(crate) timeout_ms: u64,
    /// When the reply is taken for lost.
    pub(crate) reply_by: Deadline,
}

impl RequestTime {
    /// The split of what remains until `deadline`.
    pub(crate) fn until(deadline: Deadline) -> Self {
        let remaining = deadline.remaining();
        let guest = (remaining - (remaining / 4).min(ROLLBACK_TIME)).min(agent::MAX_REQUEST_TIME);
        let reply_by =
            Deadline::after(guest + REPLY_GRACE).min(Deadline::after((guest + remaining) / 2));
        Self { timeout_ms: agent::timeout_ms(guest), reply_by }
    }
}

/// A volume as it is described to the guest.
pub(crate) fn attachment(
    intent: &IntentRecord,
    controller: &str,
    address: ScsiAddress,
    size: u64,
) -> api::Attachment {
    let address = ApiScsiAddress { target: address.target, lun: address.lun, ..Default::default() };
    api::Attachment {
        container_id: intent.container.clone(),
        controller: controller.to_owned(),
        address: Some(address).into(),
        serial: intent.id.clone(),
        size,
        path: intent.path.clone(),
        access: match intent.access {
            Access::ReadWrite => api::Access::ACCESS_READ_WRITE,
            Access::ReadOnly => api::Access::ACCESS_READ_ONLY,
        }
        .into(),
        uid: intent.uid,
        gid: intent.gid,
        mode: if intent.mount.is_some() { MODE_OF_MOUNTS } else { intent.mode },
        mount: intent.mount.as_ref().map(MountRecord::to_request).into(),
        ..Default::default()
    }
}

/// Whether the container may only read.
pub(crate) fn is_read_only(attachment: &api::Attachment) -> bool {
    attachment.access == api::Access::ACCESS_READ_ONLY.into()
}

/// What the guest is to detach of one attachment. If the run ended before it wrote the commit
/// record, the guest finds out by itself what it did. The disk stays if other attachments use it,
/// and the right to use it stays if one of them is in the same container.
///
/// # Errors
/// QEMU does not report the disk's address.
pub(crate) async fn detachment(
    qmp: &mut Qmp,
    state: &VolumeState,
    known: &Attachment,
    controller: &str,
) -> Result<Detachment, QmpError> {
    let Attachment { intent, .. } = known;
    // The record of a plug that was completed has the address of the device. Of an interrupted one
    // the device itself has to be asked.
    let address = if state.device && known.committed().is_none() {
        let path = format!("/machine/peripheral/ecrblk-{}", intent.id);
        let target = qmp.query("qom-get", json!({"path": path, "property": "scsi-id"})).await?;
        let lun = qmp.query("qom-get", json!({"path": path, "property": "lun"})).await?;
        ScsiAddress { target, lun }
    } else {
        match known.committed().or(known.commits.first()) {
            Some((_, commit)) => ScsiAddress { target: commit.target, lun: commit.lun },
            None => ScsiAddress { target: 0, lun: 0 },
        }
    };
    let all = state.attachments();
    let others = || all.iter().filter(|other| !other.is_at(&intent.container, &intent.path));
    let size = state.node.unwrap_or(known.size());
    Ok(Detachment {
        attachment: Some(attachment(intent, controller, address, size)).into(),
        outcome: known.committed().map(|(_, commit)| commit.outcome()).into(),
        keep_disk: others().next().is_some(),
        keep_right: others().any(|other| other.intent.container == intent.container),
        ..Default::default()
    })
}

/// Asks the guest to detach volumes.
///
/// # Errors
/// The guest refuses, or its reply is lost.
pub(crate) async fn detach(
    agent: &Agent,
    detachments: Vec<Detachment>,
    deadline: Deadline,
) -> Result<(), Error> {
    let request = DetachRequest { detachments, ..Default::default() };
    send_detach(agent, request, deadline).await.map(drop)
}

/// Sends `request` with the guest's time: the time to wait for holders, and most of the rest.
///
/// # Errors
/// As [`detach`].
pub(crate) async fn send_detach(
    agent: &Agent,
    request: DetachRequest,
    deadline: Deadline,
) -> Result<DetachResponse, Error> {
    agent.detach(&timed(request, deadline), deadline).await
}

/// Sends `request` as [`send_detach`], to be told when the disks are released.
///
/// # Errors
/// The agent is lost.
pub(crate) async fn send_unplug(
    agent: &Agent,
    request: DetachRequest,
    deadline: Deadline,
) -> Result<UnplugStream, Error> {
    agent.unplug(&timed(request, deadline), deadline).await
}

/// Adds the guest's time.
fn timed(mut request: DetachRequest, deadline: Deadline) -> DetachRequest {
    let left = deadline.remaining();
    let wait = Duration::from_millis(request.wait_ms).min(left);
    let timeout = agent::timeout_ms(left - (left - wait) / 4);
    request.timeout_ms = timeout;
    request.wait_ms = request.wait_ms.min(timeout);
    request
}
