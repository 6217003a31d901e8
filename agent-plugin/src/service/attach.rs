//! Attach: makes volumes usable in containers, at once or in a conversation (Plug).

use super::{
    Found, audit,
    operation::{Caller, Deadline, Done, Operation, Output},
    reply,
    request::Checked,
};
use crate::{
    error::Result,
    volume::{self, Announced, AttachJob, Conversation, Said, Stages, Taken, Ticket},
};

pub(super) struct Attach {
    jobs: Vec<AttachJob>,
    ticket: Ticket,
}

impl Attach {
    /// # Errors
    /// A container does not run, or a later request has cancelled this one.
    pub(super) fn new(checked: &Checked, found: &[Found], announced: Announced) -> Result<Attach> {
        let mut jobs = Vec::with_capacity(checked.volumes.len());
        for (volume, found) in checked.volumes.iter().zip(found) {
            let target = found.running(&volume.attachment.container_id)?;
            jobs.push(AttachJob { attachment: volume.attachment.clone(), target });
        }
        Ok(Attach { jobs, ticket: announced.join()? })
    }
}

impl Operation for Attach {
    fn run(self: Box<Self>, deadline: Deadline, stages: &mut Stages, caller: &Caller) -> Done {
        let say = |said: Said<'_>, taken: &[Taken]| caller.say(reply::said(&said, taken));
        let conversation = caller.steps().map(|steps| Conversation::new(steps, &say));
        let result =
            volume::attach(&self.jobs, &self.ticket, deadline.at(), stages, conversation.as_ref());
        let attached = result.as_deref().unwrap_or_default();
        let mut about = String::new();
        for AttachJob { attachment, .. } in &self.jobs {
            audit::add(&mut about, attachment);
            if let Some(attached) = attached.iter().find(|one| one.serial == attachment.serial) {
                audit::add_attached(&mut about, attached);
            }
        }
        Done { result: result.map(Output::Attached), about }
    }
}
