//! Copies of a bind node in other mount namespaces: a process of the container may have made one
//! (`unshare -Urm`). A copy that is in no namespace, or in one that only a descriptor keeps, is not
//! found. Those are what `watch` is for.

use std::{sync::Arc, time::Instant};

use super::{
    identity::Identity,
    unmount::{Unmount, Unmounted},
};
use crate::{
    error::Result,
    log,
    namespace::{Elsewhere, NamespaceTask},
};

/// Makes every copy that is found `nodev` and unmounts it, in at most half of the time that
/// remains. Errors are logged: the container has made these mounts. `unmount` returns what to do in
/// one namespace, by a deadline.
pub(super) fn remove(
    container: &Arc<str>,
    identity: &Identity,
    deadline: Instant,
    unmount: &dyn Fn(Instant) -> Result<Unmount>,
) {
    let now = Instant::now();
    let end = now + deadline.saturating_duration_since(now) / 2;
    let source = identity.source();
    let remove_from = |place: Elsewhere| -> Result<Unmounted> {
        let unmount = unmount(end)?;
        let enter = move || {
            place.enter()?;
            unmount.run(place.root.as_slice())
        };
        NamespaceTask::start(container, enter)?.finish(end)
    };
    let mut visit = |place| match remove_from(place) {
        Ok(done) => {
            for left in done.left {
                log::info(format_args!(
                    "a copy of {source} stays at {} of another namespace, nodev: {}",
                    left.path, left.reason
                ));
            }
        }
        Err(error) => log::warn(format_args!("a copy of {source} is left: {}", error.message())),
    };
    if !Elsewhere::each(end, &|line| identity.is_shown_by(line), &mut visit) {
        log::warn(format_args!("copies of {source} may be left: the search took too long"));
    }
}
