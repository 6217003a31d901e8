//! The plan for one volume: complete it or roll it back, by what QEMU and the guest have.
//!
//! | found | action |
//! |---|---|
//! | everything | kept |
//! | an attachment that the guest completed, without commit record | completed: the commit record is written |
//! | an attachment that the guest did not complete, or whose container does not run | rolled back |
//! | attached; the guest lost the device node, the right or the mount, the container runs | completed: the guest makes them again |
//! | attached; the guest has no disk, or QEMU no device | completed: an interrupted unplug is finished, and what is left of a plug that was killed before its commit is removed |
//! | attached; the container is gone, or was restarted without the volume | rolled back |
//! | a block node in QEMU without device and record | rolled back |
//! | the record of a volume that the host freed without the guest | completed: the guest detaches it |
//! | a device without record | left alone: what a container has of it is not known |
//!
//! An attachment that cannot be completed is rolled back. If the guest has to be asked and does not
//! reply or cannot tell, nothing changes.

use super::{Action, Recovered, StateAfter};
use crate::{
    error::ErrorBody,
    ops::volume::{Cause, ListedVolume, State},
    qemu::{record::IntentRecord, volume_state::KnownVolume},
};

/// What is to be done about a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RecoveryPlan {
    /// Nothing: it is complete.
    Keep,
    /// The guest attaches it again, and the commit record is written.
    Attach {
        /// Why.
        why: &'static str,
    },
    /// It is detached.
    Detach {
        /// An unplug had begun.
        completes: bool,
        /// Why.
        why: &'static str,
    },
    /// It cannot be decided.
    Leave {
        /// Why.
        why: String,
    },
}

/// What the container has lost.
fn gone(intent: &IntentRecord) -> &'static str {
    match intent.mount {
        Some(_) => "its mount was gone from the container",
        None => "its device node or its right was gone from the container",
    }
}

/// What the guest reports of a volume.
#[derive(Debug)]
pub(crate) enum GuestReport {
    /// It was not asked: it cannot have anything of the volume.
    NotAsked,
    /// What it has.
    Reported(Box<ListedVolume>),
    /// It does not report it, and why.
    Unavailable(ErrorBody),
}

impl RecoveryPlan {
    /// Decides by what QEMU and the guest have.
    pub(crate) fn new(known: &KnownVolume, report: &GuestReport) -> Self {
        let KnownVolume { state, attachment, .. } = known;
        let Some(attachment) = attachment else {
            return if state.device {
                let why = "the record is lost: plug the volume again with the same options, which \
                           rolls back what is left, then unplug it";
                Self::Leave { why: why.to_owned() }
            } else {
                Self::Detach { completes: false, why: "a block node without device and record" }
            };
        };
        let listed = match report {
            GuestReport::NotAsked => {
                return Self::Detach {
                    completes: false,
                    why: "the plug was interrupted before the device was added",
                };
            }
            GuestReport::Unavailable(error) => {
                return Self::Leave {
                    why: format!("the guest does not report it: {}", error.message),
                };
            }
            GuestReport::Reported(listed) => listed,
        };
        if state.is_abandoned {
            let why = "the host had freed it without the guest";
            return Self::Detach { completes: true, why };
        }
        let Some(guest) = &listed.guest else {
            return Self::Leave { why: "the guest does not report it".to_owned() };
        };
        let committed = attachment.committed().is_some();
        let in_qemu = state.device && state.node.is_some();
        let in_container = guest.node_present && guest.allowed && guest.leftovers.is_empty();
        match listed.state {
            _ if committed && !(in_qemu && guest.disk_present) => {
                let why = "an unplug had begun, or a plug was not committed";
                Self::Detach { completes: true, why }
            }
            State::Stale { cause: Cause::ContainerRestarted } if in_container => Self::Attach {
                why: "the guest had attached it to the container that was restarted",
            },
            State::Stale { cause: Cause::ContainerRestarted } => {
                Self::Detach { completes: false, why: "its container was restarted" }
            }
            State::Stale { cause: Cause::ContainerGone } => {
                Self::Detach { completes: false, why: "its container is gone" }
            }
            _ if !guest.container_running => Self::Detach {
                completes: false,
                why: "the plug was interrupted, and its container is gone",
            },
            _ if !(in_qemu && guest.disk_present) => {
                Self::Detach { completes: false, why: "the guest had not attached it" }
            }
            _ if committed && in_container => Self::Keep,
            _ if committed => Self::Attach { why: gone(&attachment.intent) },
            _ if in_container => Self::Attach { why: "the guest had attached it" },
            _ => Self::Detach { completes: false, why: "the guest had not attached it" },
        }
    }

    /// The result if the plan succeeds; also that of a dry run.
    pub(crate) fn result(&self) -> Recovered {
        match self {
            Self::Keep => Recovered::new(Action::Kept, StateAfter::Attached, ""),
            Self::Attach { why } => Recovered::new(Action::Completed, StateAfter::Attached, *why),
            Self::Detach { completes: true, why } => {
                Recovered::new(Action::Completed, StateAfter::Gone, *why)
            }
            Self::Detach { completes: false, why } => Recovered::rolled_back(*why),
            Self::Leave { why } => Recovered::failed(why.clone()),
        }
    }
}
