//! What becomes of one volume of which something is left: which way it goes, by what QEMU and the
//! guest have of it.
//!
//! | found | goes |
//! |---|---|
//! | all of it | kept |
//! | a plug that the guest had done, without its outcome | completed: the outcome is written |
//! | a plug that the guest had not done, or not for a container that runs | undone |
//! | plugged; the guest lost the node or the right, the container runs | completed: the guest makes them again |
//! | plugged; the guest has no disk, or QEMU no device | completed: an unplug that began is brought to its end |
//! | plugged; the container is gone, or was started anew and does not have it | undone |
//! | a node in QEMU without device and record | undone |
//! | a device without record | left alone: nobody knows what a container has of it |
//!
//! Where a plug cannot be completed it is undone. Where the guest has a say and does not answer,
//! nothing changes.

use std::time::Duration;

use block_volume_api::block_volume::{AttachRequest, Detachment};
use tokio::sync::Notify;

use crate::{
    Deadline, Error,
    agent::{self, Agent},
    disk,
    listing::{Listed, State},
    outcome,
    output::FailureBody,
    presence::{Known, Use},
    reach::Guest,
    removal::Removal,
    repaired::{Did, Now},
    sandbox::Place,
    stopwatch::Stopwatch,
    survey::Subject,
    volume::place_name,
};
use block_volume_qmp::Qmp;

/// Which way a volume goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// It is well.
    Keep,
    /// The guest makes it whole, and the outcome is written.
    Attach { why: &'static str },
    /// It is taken away. `completes`: that was under way already.
    Remove { completes: bool, why: &'static str },
    /// It cannot be decided.
    Leave { why: String },
}

/// What the guest said of a volume.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It cannot have anything of it.
    NotAsked,
    /// This is what it has.
    Told(Box<Listed>),
    /// It does not tell, and why.
    Silent(FailureBody),
}

impl Plan {
    pub(crate) fn new(known: &Known, answer: &Answer) -> Self {
        let Known { presence, used, .. } = known;
        let Some(used) = used else {
            let why = "the record is lost: plug it again as before, which takes back what is left, and unplug it";
            return if presence.device {
                Self::Leave { why: why.to_owned() }
            } else {
                Self::Remove { completes: false, why: "a block node without device and record" }
            };
        };
        let told = match answer {
            Answer::NotAsked => {
                return Self::Remove {
                    completes: false,
                    why: "the plug ended before its device was there",
                };
            }
            Answer::Silent(error) => {
                return Self::Leave {
                    why: format!("the guest does not tell of it: {}", error.message),
                };
            }
            Answer::Told(told) => told,
        };
        let Some(guest) = &told.guest else {
            return Self::Leave { why: "the guest does not tell of it".to_owned() };
        };
        let placed = used.committed().is_some();
        let in_qemu = presence.device && presence.node.is_some();
        let in_container = guest.node_present && guest.allowed && guest.leftovers.is_empty();
        match told.state {
            _ if placed && !(in_qemu && guest.disk_present) => {
                Self::Remove { completes: true, why: "the unplug had begun" }
            }
            State::ContainerRestarted if in_container => Self::Attach {
                why: "the guest had attached it to the container that was started anew",
            },
            State::ContainerRestarted => {
                Self::Remove { completes: false, why: "its container was started anew" }
            }
            State::ContainerGone => Self::Remove { completes: false, why: "its container is gone" },
            _ if !guest.container_running => Self::Remove {
                completes: false,
                why: "the plug was not complete, and its container is gone",
            },
            _ if !(in_qemu && guest.disk_present) => {
                Self::Remove { completes: false, why: "the guest had not attached it" }
            }
            _ if placed && in_container => Self::Keep,
            _ if placed => {
                Self::Attach { why: "its node or its right was gone from the container" }
            }
            _ if in_container => Self::Attach { why: "the guest had attached it" },
            _ => Self::Remove { completes: false, why: "the guest had not attached it" },
        }
    }

    /// What is done, what is there then, and why.
    pub(crate) fn outcome(&self) -> (Did, Now, String) {
        match self {
            Self::Keep => (Did::Kept, Now::Attached, String::new()),
            Self::Attach { why } => (Did::Completed, Now::Attached, (*why).to_owned()),
            Self::Remove { completes: true, why } => (Did::Completed, Now::Gone, (*why).to_owned()),
            Self::Remove { completes: false, why } => (Did::Undone, Now::Gone, (*why).to_owned()),
            Self::Leave { why } => (Did::Failed, Now::Unknown, why.clone()),
        }
    }

    /// The same of what is only looked at.
    pub(crate) fn outlook(&self) -> (Did, Now, String) {
        match self.outcome() {
            (Did::Completed, now, why) => (Did::WouldComplete, now, why),
            (Did::Undone, now, why) => (Did::WouldUndo, now, why),
            other => other,
        }
    }
}

/// What volumes are mended with.
#[derive(Debug)]
pub(crate) struct Workshop<'a> {
    pub(crate) place: &'a Place,
    pub(crate) verbose: bool,
    pub(crate) deadline: Deadline,
    pub(crate) qmp: &'a mut Qmp,
    pub(crate) guest: Option<&'a Guest>,
    /// The uses that were taken away.
    pub(crate) gone: Vec<Use>,
}

impl Workshop<'_> {
    /// Brings a volume to where `plan` says; what came of it, what is there then, and why.
    pub(crate) async fn mend(&mut self, subject: &Subject, plan: &Plan) -> (Did, Now, String) {
        let question = subject.question.clone();
        let failed = |e: Error| (Did::Failed, Now::Unknown, e.message());
        match (plan, self.guest, question) {
            (Plan::Keep | Plan::Leave { .. }, ..) => plan.outcome(),
            (Plan::Remove { .. }, _, question) => match self.remove(subject, question).await {
                Ok(()) => plan.outcome(),
                Err(e) => failed(e),
            },
            (Plan::Attach { .. }, Some(guest), Some(question)) => {
                match self.attach(&guest.agent, subject, &question).await {
                    Ok(()) => plan.outcome(),
                    // The guest says no: then all of it goes.
                    Err(Error::Guest { message, .. }) => match self
                        .remove(subject, Some(question))
                        .await
                    {
                        Ok(()) => (Did::Undone, Now::Gone, format!("the guest says: {message}")),
                        Err(e) => failed(e),
                    },
                    Err(e) => failed(e),
                }
            }
            (Plan::Attach { .. }, ..) => plan.outcome(),
        }
    }

    async fn remove(
        &mut self,
        subject: &Subject,
        question: Option<Detachment>,
    ) -> Result<(), Error> {
        let mut question = question;
        let gone = &mut self.gone;
        if let Some(question) = &mut question {
            // Of several uses the last one takes the disk along.
            let mut others = subject.known.others();
            others.retain(|other| !gone.contains(other));
            question.keep_disk = !others.is_empty();
            let container = &question.attachment.container_id;
            question.keep_right = others.iter().any(|other| other.intent.container == *container);
        }
        let mut removal = Removal {
            place: self.place,
            verbose: self.verbose,
            deadline: self.deadline,
            watch: &mut Stopwatch::new(),
            qmp: self.qmp,
            id: &subject.known.id,
            guest: self.guest,
            force: false,
            wait: Duration::ZERO,
        };
        removal.run(question, &Notify::new()).await?;
        gone.extend(subject.known.used.clone());
        Ok(())
    }

    /// Asks the guest for what it has done already or lost since, and writes the outcome.
    async fn attach(
        &mut self,
        agent: &Agent,
        subject: &Subject,
        question: &Detachment,
    ) -> Result<(), Error> {
        let (Some(asked), Some(used)) = (question.attachment.as_ref(), &subject.known.used) else {
            return Err(outcome::answer("no volume"));
        };
        if used.is_further() {
            // A killed unplug may have begun with it.
            disk::keep_place(self.qmp, &place_name(&used.intent.container, &used.intent.path))
                .await?;
        }
        let remaining = self.deadline.remaining();
        let request = AttachRequest {
            attachments: vec![asked.clone()],
            timeout_ms: agent::timeout_ms(remaining - remaining / 4),
            ..Default::default()
        };
        let mut reply = agent.attach(&request, self.deadline).await?;
        let attached = match (reply.attached.pop(), reply.attached.len()) {
            (Some(attached), 0) => attached,
            _ => return Err(outcome::answer("another number of volumes")),
        };
        outcome::check(asked, &attached)?;
        let before = used.committed().or(used.placements.first());
        let mut placement = outcome::placement(&subject.volume.scsi.controller, asked, &attached);
        if let Some((_, before)) = before {
            placement.carry_over(before);
        }
        outcome::write(self.qmp, used.set, before.map(|(carrier, _)| *carrier), &placement).await
    }
}
