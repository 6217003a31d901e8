//! Resolves the paths of a request.

use std::time::Instant;

use super::{
    failed::{Failed, OfVolume as _},
    job::{AttachJob, distinct_targets},
};
use crate::{
    device_node::Location,
    error::{BoxedError, Error, Result},
    mount::Mounts,
    namespace::{NamespaceTask, Root, Target},
};

/// Finds the locations of the nodes, in the order of the request. A thread in the namespace of each
/// container resolves its paths; those of several containers work side by side.
pub(super) fn locations(jobs: &[AttachJob], deadline: Instant) -> Result<Vec<Location>, Failed> {
    let mut tasks: Vec<(&Target, NamespaceTask<Vec<Result<Location>>>)> = Vec::new();
    for target in distinct_targets(jobs.iter().map(|job| &job.target)) {
        let mut paths = Vec::with_capacity(jobs.len());
        for job in of_target(jobs, target) {
            paths.push(job.attachment.path.clone());
        }
        let find = move |root: &Root, mounts: &Mounts| {
            let mut locations = Vec::with_capacity(paths.len());
            for path in &paths {
                locations.push(Location::find(root, path, mounts));
            }
            Ok(locations)
        };
        tasks.push((target, Mounts::visit(target, find)?));
    }
    let mut found = Vec::with_capacity(tasks.len());
    for (target, task) in tasks {
        found.push((&target.id, task.finish(deadline)?.into_iter()));
    }
    let mut all = Vec::with_capacity(jobs.len());
    for job in jobs {
        let locations = found.iter_mut().find(|(id, _)| **id == job.target.id);
        let location = locations.and_then(|(_, locations)| locations.next());
        let location = location.unwrap_or_else(|| Err(BoxedError::from(Error::Panicked)));
        all.push(location.of(&job.attachment.serial)?);
    }
    Ok(all)
}

fn of_target<'a>(jobs: &'a [AttachJob], target: &Target) -> impl Iterator<Item = &'a AttachJob> {
    jobs.iter().filter(move |job| job.target.id == target.id)
}
