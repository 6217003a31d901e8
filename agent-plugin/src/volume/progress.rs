//! What an attach has done so far, and its rollback.

use std::time::Instant;

use super::{attachment::Way, discover::Search, job::AttachJob, queue::Ticket, unmount};
use crate::{
    cgroup::Grant,
    device_node::{Node, NodeOptions, NodePath},
    error::{BoxedError, Result},
    mounted::Mounting,
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
    pub(super) mounting: Option<Mounting>,
    /// How the container got it.
    pub(super) way: Option<Way>,
    /// It had the volume before this request: node or mount, and the disk, stay.
    pub(super) was_there: bool,
    pub(super) grant: Option<Grant>,
    pub(super) container_started: u64,
    pub(super) size: u64,
    pub(super) read_only: bool,
}

impl VolumeProgress {
    /// Whether this request makes a node or a mount.
    pub(super) fn is_new(&self) -> bool {
        self.node.is_some() || self.mounting.is_some()
    }

    fn parents_made(&self) -> Vec<String> {
        let of_node = self.node.as_ref().map(Node::parents_made);
        of_node.or_else(|| Some(self.mounting.as_ref()?.parents_made())).unwrap_or_default()
    }
}

/// The directories above a node, outermost first, that this request made for any of its volumes,
/// or earlier ones for theirs. Each volume below them names them, and the last one that is detached
/// removes them.
pub(super) fn parents_made(
    jobs: &[AttachJob],
    volumes: &[VolumeProgress],
    index: usize,
    ticket: &Ticket,
) -> Vec<NodePath> {
    let AttachJob { attachment, target } = &jobs[index];
    if !volumes[index].is_new() {
        return Vec::new();
    }
    let of_container = jobs.iter().zip(volumes).filter(|(job, _)| job.target.id == target.id);
    let made = of_container.flat_map(|(_, volume)| volume.parents_made());
    // Each is a part of a path that was checked.
    let made = made.filter_map(|path| NodePath::new(&path).ok());
    let made = made.chain(ticket.parents_above(&target.id, &attachment.path));
    let mut above: Vec<NodePath> = Vec::new();
    // The mount point of a volume is made for it, too.
    let is_of = |made: &NodePath| attachment.path.is_below(made) || attachment.path == *made;
    for made in made.filter(is_of) {
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
    progress: &mut Progress,
    ticket: &Ticket,
    deadline: Instant,
) -> Vec<BoxedError> {
    let mut left = Vec::new();
    let mut note = |result: Result<()>| left.extend(result.err());
    for volume in progress.volumes.iter_mut().rev() {
        if let Some(node) = &volume.node {
            note(node.remove(deadline));
        }
        // Before its disk is deleted.
        if let Some(mounting) = &mut volume.mounting {
            note(mounting.remove(deadline));
        }
    }
    for (index, volume) in
        progress.volumes.iter().enumerate().filter(|(_, it)| it.mounting.is_some())
    {
        let disk = progress.searches[index].found.as_ref();
        if let (Some(disk), Some(Way::Mount(mounted))) = (disk, volume.way) {
            note(unmount::await_end(&jobs[index].attachment, disk, mounted.kind));
        }
    }
    for grant in progress.volumes.iter().rev().filter_map(|volume| volume.grant.as_ref()) {
        note(grant.roll_back());
    }
    for (index, volume) in progress.volumes.iter().enumerate().rev() {
        let is_attached = ticket.is_attached(&jobs[index].attachment.serial);
        note(progress.searches[index].roll_back(volume.was_there || is_attached));
    }
    left
}
