//! Detach: removes volumes from containers, and their disks from the guest.

use super::{
    BlockVolume, Found, audit,
    operation::{Caller, Deadline, Done, Operation, Output},
    reply,
    request::{Checked, Detachment},
};
use crate::{
    agent::ContainerError,
    error::Result,
    log,
    namespace::Target,
    volume::{self, CancelOnDrop, DetachJob, DetachPolicy, LeftBehind, Stages, Ticket},
};

pub(super) struct Detach {
    jobs: Vec<DetachJob>,
    busy: DetachPolicy,
    ticket: Ticket,
    /// What stays in containers that the agent cannot reach.
    unreached: Vec<LeftBehind>,
}

impl Detach {
    /// # Errors
    /// A container cannot lose a volume now, or a later request has cancelled this one.
    pub(super) fn new(service: &BlockVolume, checked: &Checked, found: &[Found]) -> Result<Detach> {
        let busy = DetachPolicy { force: checked.force, wait: checked.wait };
        let serials = checked.serials();
        let (mut jobs, mut unreached) = (Vec::with_capacity(checked.volumes.len()), Vec::new());
        for (detachment, found) in checked.volumes.iter().zip(found) {
            let target = target(detachment, found, busy.force, &mut unreached)?;
            let Detachment { attachment, outcome, keep_disk, keep_right } = detachment.clone();
            jobs.push(DetachJob { attachment, outcome, keep_disk, keep_right, target });
        }
        let ticket = service.queues.detach(serials, busy.waits())?;
        Ok(Detach { jobs, busy, ticket, unreached })
    }
}

/// The container to remove a volume from; `None`: there is nothing to remove, or nothing that can
/// be.
fn target(
    detachment: &Detachment,
    found: &Found,
    force: bool,
    unreached: &mut Vec<LeftBehind>,
) -> Result<Option<Target>> {
    let attachment = &detachment.attachment;
    let (source, remains) = match &found.container {
        Ok(target) => return Ok(Some(target.clone())),
        Err(source) => (source, || found.remains.clone()),
    };
    match source {
        // Its file system and its device filter are gone with it, or never existed.
        ContainerError::Unknown | ContainerError::Created => Ok(None),
        ContainerError::Stopped => Ok(remains()),
        // It is as it was, and gets nothing. It can lose a volume.
        ContainerError::Paused if found.remains.is_some() => Ok(remains()),
        ContainerError::Paused | ContainerError::Unreachable(_) if force => {
            let error = Found::error(&attachment.container_id, source);
            unreached.push(LeftBehind {
                serial: attachment.serial.clone(),
                path: attachment.path.as_str().to_owned(),
                reason: format!("its device node and its right: {}", error.message()),
            });
            Ok(None)
        }
        source => Err(Found::error(&attachment.container_id, source)),
    }
}

impl Operation for Detach {
    fn run(mut self: Box<Self>, deadline: Deadline, stages: &mut Stages, caller: &Caller) -> Done {
        let Detach { jobs, busy, ticket, .. } = &mut *self;
        let released = &mut |serials: &[&str]| caller.say(reply::released(serials));
        let mut result = volume::detach(jobs, *busy, ticket, deadline.at(), stages, released);
        if let Ok(output) = &mut result {
            output.left_behind.append(&mut self.unreached);
            for LeftBehind { serial, path, reason } in &output.left_behind {
                let reason = reason.escape_debug();
                log::warn(format_args!("left behind of volume {serial} at {path:?}: {reason}"));
            }
        }
        let mut about = String::new();
        self.jobs.iter().for_each(|job| audit::add(&mut about, &job.attachment));
        Done { result: result.map(Output::Detached), about }
    }

    /// A wait for holders is of use to the caller alone.
    fn cancel_on_drop(&self) -> Option<CancelOnDrop> {
        self.busy.waits().then(|| self.ticket.cancel_on_drop())
    }
}
