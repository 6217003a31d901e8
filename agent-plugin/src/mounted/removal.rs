//! Unmounts the file system of a volume: in its container, and by force in every mount namespace
//! that has it.

use std::{os::fd::OwnedFd, sync::Arc, time::Instant};

use super::{
    identity::MountIdentity,
    unmount::{Unmount, Unmounted},
};
use crate::{
    device_node::AgentProc,
    error::Result,
    log,
    namespace::{Elsewhere, NamespaceTask, Target},
};

/// Returns what unmounts the mount of one attachment.
///
/// # Errors
/// The agent's `/proc` cannot be opened.
pub(super) fn unmount(identity: MountIdentity, lazy: bool, deadline: Instant) -> Result<Unmount> {
    let proc = AgentProc::open()?;
    Ok(Unmount { identity, whole_volume: false, lazy, deadline, proc })
}

/// Unmounts it in the container, wherever it is there. With `force` every mount of the volume's
/// superblock in the container, whatever uses it.
///
/// # Errors
/// The container's namespace does not answer.
pub fn unmount_in(
    target: &Target,
    identity: MountIdentity,
    (lazy, whole_volume): (bool, bool),
    deadline: Instant,
) -> Result<Unmounted> {
    let unmount = Unmount { whole_volume, ..unmount(identity, lazy, deadline)? };
    // A container may mount over the root of its namespace; its own processes stay below.
    let roots: Vec<OwnedFd> =
        target.root().ok().and_then(|root| root.existing("/").ok()?).into_iter().collect();
    target.enter_even_ended(move || unmount.run(&roots))?.finish(deadline)
}

/// Unmounts every mount of the volume's superblock, in the namespaces of all processes and threads,
/// whatever uses it. Errors are logged: processes of the container have made these mounts.
pub fn unmount_everywhere(container: &Arc<str>, identity: &MountIdentity, end: Instant) {
    let unmount_at = |place: Elsewhere| -> Result<Unmounted> {
        let unmount = Unmount { whole_volume: true, ..unmount(identity.clone(), true, end)? };
        let enter = move || {
            place.enter()?;
            unmount.run(place.root.as_slice())
        };
        NamespaceTask::start(container, enter)?.finish(end)
    };
    let mut visit = |place| match unmount_at(place) {
        Ok(done) => {
            for left in done.left {
                let (path, reason) = (left.path, left.reason);
                log::warn(format_args!("a mount stays at {path} of another namespace: {reason}"));
            }
        }
        Err(error) => log::warn(format_args!("a mount is left: {}", error.message())),
    };
    if !Elsewhere::each(end, &|line| identity.is_of_volume(line), &mut visit) {
        log::warn(format_args!("mounts may be left: the search took too long"));
    }
}
