//! Inspect: the present state of attachments. Changes nothing.

use std::time::Duration;

use super::{
    Found, audit,
    operation::{Caller, Deadline, Done, Operation, Output},
    request::{Checked, Detachment},
};
use crate::volume::{self, Details, Failed, InspectJob, Stages};

/// How long holders are searched: the request has no time-out of its own.
const LONGEST_SCAN: Duration = Duration::from_secs(2);

pub(super) struct Inspect {
    subjects: Vec<InspectJob>,
    details: Details,
}

impl Inspect {
    pub(super) fn new(checked: &Checked, found: &[Found]) -> Inspect {
        let details = Details { holders: checked.holders, stats: !checked.without_stats };
        let mut subjects = Vec::with_capacity(checked.volumes.len());
        for (volume, found) in checked.volumes.iter().zip(found) {
            let Detachment { attachment, outcome, .. } = volume.clone();
            subjects.push(InspectJob { attachment, outcome, container: found.container.clone() });
        }
        Inspect { subjects, details }
    }
}

impl Operation for Inspect {
    fn run(self: Box<Self>, deadline: Deadline, _: &mut Stages, _: &Caller) -> Done {
        let until = deadline.began + LONGEST_SCAN;
        let result = volume::inspect(&self.subjects, self.details, until);
        let mut about = String::new();
        self.subjects.iter().for_each(|subject| audit::add(&mut about, &subject.attachment));
        Done { result: result.map(Output::Inspected).map_err(Failed::from), about }
    }
}
