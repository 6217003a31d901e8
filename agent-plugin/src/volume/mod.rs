//! The sequences of attach, detach and resize with their rollback, and the inspection of
//! attachments. Knows no encoding.
//!
//! Everything here is synchronous and runs on a thread that lives for one request: nothing
//! interrupts it.
//!
//! | module | does |
//! |---|---|
//! | `attachment`, `job` | what a request consists of, and what the host records of it |
//! | `attach`, `detach`, `resize`, `inspect` | one operation each |
//! | `grow` | grows the file system of a disk that was resized |
//! | `probe` | what the guest can do, and what exists at paths of a container |
//! | `conversation` | what an attach says to its caller, and what it waits for |
//! | `discover` | finds the disks of a request: sysfs, scan, uevents |
//! | `resolve` | finds the directories of the nodes |
//! | `node`, `mount` | one of the two for an attachment, and what may be in its place |
//! | `progress` | what an attach has done, and its rollback |
//! | `publish` | what an attach has prepared, made visible in containers |
//! | `present` | what exists of a volume that is detached |
//! | `restoration` | the rollback of a detach |
//! | `unlink`, `unmount` | the parts of a detach in a container: its device node, its mount |
//! | `disk_removal` | the disk's own part of a detach: flush, quiesce, delete |
//! | `tree` | the time of a detach in the trees of containers |
//! | `busy`, `patience` | holders of a disk that is detached: claim, find, wait; for how long |
//! | `queue` | one operation at a time on a volume |
//! | `guard` | what ends a request early |
//! | `stages`, `failed` | the time of each stage; why a request failed |

mod attach;
mod attachment;
mod busy;
mod conversation;
mod detach;
mod discover;
mod disk_removal;
mod failed;
mod grow;
mod guard;
mod inspect;
mod job;
mod mount;
mod node;
mod patience;
mod present;
mod probe;
mod progress;
mod publish;
mod queue;
mod resize;
mod resolve;
mod restoration;
mod stages;
mod tree;
mod unlink;
mod unmount;

pub(crate) use attach::{Attached, attach};
pub(crate) use attachment::{AccessMode, Attachment, FsGroup, Mount, Mounted, Outcome, Way};
pub(crate) use conversation::{Conversation, Said, Step, Steps};
pub(crate) use detach::{DetachOutput, detach};
pub(crate) use failed::Failed;
pub(crate) use inspect::{ContainerStatus, Details, InspectJob, Inspected, inspect};
pub(crate) use job::{AttachJob, DetachJob};
pub(crate) use patience::DetachPolicy;
pub(crate) use present::LeftBehind;
pub(crate) use probe::{PathState, PathWay, Probed, probe};
pub(crate) use queue::{Announced, CancelOnDrop, Queues, Ticket};
pub(crate) use resize::{Resized, resize};
pub(crate) use stages::{Stages, Taken};
#[cfg(test)]
pub(crate) use {
    detach::Detached,
    grow::Grown,
    probe::{Guest, ParentState, ProbedContainer},
};

/// Gives up the numbers of deleted disks that nothing refers to any more.
pub(crate) use crate::device_node::sweep;
