//! Resize: makes the guest's kernel read the capacity of disks again.

use std::sync::Arc;

use super::{
    audit,
    operation::{Caller, Deadline, Done, Operation, Output},
    request::Checked,
};
use crate::volume::{self, Announced, Attachment, Stages};

pub(super) struct Resize {
    attachments: Vec<Arc<Attachment>>,
    announced: Announced,
}

impl Resize {
    pub(super) fn new(checked: &Checked, announced: Announced) -> Resize {
        let mut attachments = Vec::with_capacity(checked.volumes.len());
        for volume in &checked.volumes {
            attachments.push(volume.attachment.clone());
        }
        Resize { attachments, announced }
    }
}

impl Operation for Resize {
    fn run(self: Box<Self>, deadline: Deadline, stages: &mut Stages, _: &Caller) -> Done {
        let Resize { attachments, announced } = *self;
        let result = volume::resize(&attachments, announced, deadline.at(), stages);
        let mut about = String::new();
        attachments.iter().for_each(|attachment| audit::add(&mut about, attachment));
        Done { result: result.map(Output::Resized), about }
    }
}
