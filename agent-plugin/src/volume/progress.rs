//! What an attach has done so far, and its rollback.

use std::time::Instant;

use super::{discover::Search, job::AttachJob, queue::Ticket};
use crate::{
    cgroup::Grant,
    device_node::{Node, NodeKind, NodeOptions, NodePath},
    error::{BoxedError, Result},
};

/// What was done so far. It lives outside of the sequence, so that an error and a panic are rolled
/// back alike.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) searches: Vec<Search>,
    pub(super) volumes: Vec<VolumeProgress>,
}

/// What was done for one volume.
#[derive(Debug, Default)]
pub(super) struct VolumeProgress {
    /// The attachment's options, with the guest's user and group ids.
    pub(super) options: Option<NodeOptions>,
    pub(super) node: Option<Node>,
    /// The kind of a node that existed before this request: it and its disk stay.
    pub(super) existing: Option<NodeKind>,
    pub(super) grant: Option<Grant>,
    pub(super) container_started: u64,
    pub(super) size: u64,
    pub(super) read_only: bool,
}

/// The directories above a node, outermost first, that this request made for any of its volumes.
/// Each volume below them names them, and the last one that is detached removes them.
pub(super) fn parents_made(
    jobs: &[AttachJob],
    volumes: &[VolumeProgress],
    index: usize,
) -> Vec<NodePath> {
    let AttachJob { attachment, target } = &jobs[index];
    if volumes[index].node.is_none() {
        return Vec::new();
    }
    let of_container = jobs.iter().zip(volumes).filter(|(job, _)| job.target.id == target.id);
    let nodes = of_container.filter_map(|(_, volume)| volume.node.as_ref());
    // Each is a part of a path that was checked.
    let made = nodes.flat_map(Node::parents_made).filter_map(|path| NodePath::new(&path).ok());
    let mut above: Vec<NodePath> = Vec::new();
    for made in made.filter(|made| attachment.path.is_below(made)) {
        // Of two that have the same length and are above the same path, both are the same.
        let length = |path: &NodePath| path.as_str().len();
        if let Err(at) = above.binary_search_by_key(&length(&made), length) {
            above.insert(at, made);
        }
    }
    above
}

/// Reverts the steps in reverse order: the nodes, then the access, then the disks. Continues after
/// an error.
pub(super) fn roll_back(
    jobs: &[AttachJob],
    progress: &Progress,
    ticket: &Ticket,
    deadline: Instant,
) -> Vec<BoxedError> {
    let mut left = Vec::new();
    let mut note = |result: Result<()>| left.extend(result.err());
    for node in progress.volumes.iter().rev().filter_map(|volume| volume.node.as_ref()) {
        note(node.remove(deadline));
    }
    for grant in progress.volumes.iter().rev().filter_map(|volume| volume.grant.as_ref()) {
        note(grant.roll_back());
    }
    for (index, volume) in progress.volumes.iter().enumerate().rev() {
        let is_attached = ticket.is_attached(&jobs[index].attachment.serial);
        note(progress.searches[index].roll_back(volume.existing.is_some() || is_attached));
    }
    left
}
