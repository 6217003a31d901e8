//! Rolls back what an interrupted run left of a volume that is to be plugged now.

use block_volume_qmp::Qmp;

use crate::{
    Deadline, Error,
    kata::agent::Agent,
    ops::guest_request,
    qemu::{
        record::IntentRecord,
        removal::{self, Owner},
        volume_state::{Attachment, VolumeState},
    },
    volume_id::VolumeId,
};

/// How much of the volume is rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All of it: it is no whole disk.
    Volume,
    /// The attachment of the intent alone: the disk has others.
    Attachment,
}

/// Rolls back what `state` has of the volume `id`. `intent` is what is requested now.
///
/// # Errors
/// The guest or QEMU refuses, or does not reply.
pub(crate) async fn roll_back(
    qmp: &mut Qmp,
    agent: &Agent,
    id: &VolumeId,
    state: &VolumeState,
    intent: &IntentRecord,
    extent: Extent,
    deadline: Deadline,
) -> Result<(), Error> {
    let mut attachments = state.attachments();
    match extent {
        Extent::Attachment => {
            attachments.retain(|known| known.is_at(&intent.container, &intent.path));
        }
        // The record is lost. The intent names the same volume.
        Extent::Volume if attachments.is_empty() => {
            attachments.push(Attachment { set: 0, intent: intent.clone(), commits: Vec::new() });
        }
        Extent::Volume => {}
    }
    if state.device || !state.commits.is_empty() {
        for (index, known) in attachments.iter().enumerate() {
            // The earlier run may have used another controller. Without its address the guest
            // searches all controllers, and the serial number decides.
            let mut detachment = guest_request::detachment(qmp, state, known, "").await?;
            if extent == Extent::Volume {
                // All are detached, one after the other; the last one takes the disk along.
                let rest = &attachments[index + 1..];
                detachment.keep_disk = !rest.is_empty();
                let container = &known.intent.container;
                detachment.keep_right =
                    rest.iter().any(|other| other.intent.container == *container);
            }
            guest_request::detach(agent, vec![detachment], deadline).await?;
        }
    }
    match extent {
        Extent::Attachment => {
            removal::remove_attachment(qmp, id, &intent.container, &intent.path).await
        }
        Extent::Volume => removal::remove(qmp, id, Owner::Any, deadline).await,
    }
}
