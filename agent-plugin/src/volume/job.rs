//! An attachment together with the container that it is for.

use std::sync::Arc;

use super::attachment::{Attachment, Outcome};
use crate::namespace::Target;

/// An attachment to make.
#[derive(Debug, Clone)]
pub(crate) struct AttachJob {
    pub(crate) attachment: Arc<Attachment>,
    pub(crate) target: Target,
}

/// An attachment to remove or to inspect.
#[derive(Debug)]
pub(crate) struct DetachJob {
    pub(crate) attachment: Arc<Attachment>,
    /// From the host's record of the reply to Attach, if the host got one.
    pub(crate) outcome: Option<Arc<Outcome>>,
    /// Another container continues to use the disk: only this one's node and access are removed.
    pub(crate) keep_disk: bool,
    /// Another path of the same container continues to use it: only the node is removed.
    pub(crate) keep_right: bool,
    /// `None`: the container is not running; its nodes and its device filter are gone with it.
    pub(crate) target: Option<Target>,
}

impl DetachJob {
    /// Whether the volume is a mount, and no device node.
    pub(super) fn is_mount(&self) -> bool {
        self.attachment.mount.is_some()
    }
}

/// Each container of a request once, in the request's order.
pub(super) fn distinct_targets<'a>(targets: impl Iterator<Item = &'a Target>) -> Vec<&'a Target> {
    let mut distinct: Vec<&Target> = Vec::new();
    for target in targets {
        if !distinct.iter().any(|known| known.id == target.id) {
            distinct.push(target);
        }
    }
    distinct
}
