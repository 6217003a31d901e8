//! Resolves the paths of a request, while the disks are discovered.

use std::time::Instant;

use super::{
    failed::Failed,
    job::{AttachJob, distinct_targets},
};
use crate::{
    device_node::Location,
    error::{Error, Result},
    mount::Mounts,
    namespace::{NamespaceTask, Target},
};

pub(super) type Locations = Vec<Result<Location>>;

/// Starts to resolve the paths of each container on a thread in its namespace, while this thread
/// works on the disks.
pub(super) fn start(
    jobs: &[AttachJob],
) -> Result<Vec<(&Target, NamespaceTask<Locations>)>, Failed> {
    let resolve = |target: &Target| {
        let paths: Vec<_> =
            of_target(jobs, target).map(|job| job.attachment.path.clone()).collect();
        let find = move |root: &_, mounts| {
            Ok(paths.iter().map(|path| Location::find(root, path, &mounts)).collect())
        };
        let of = target.clone();
        target.enter_with(move || Mounts::read(&of), find, drop)
    };
    distinct_targets(jobs.iter().map(|job| &job.target))
        .into_iter()
        .map(|target| Ok((target, resolve(target)?)))
        .collect()
}

fn of_target<'a>(jobs: &'a [AttachJob], target: &Target) -> impl Iterator<Item = &'a AttachJob> {
    jobs.iter().filter(move |job| job.target.id == target.id)
}

/// Waits for the locations, and returns them in the order of the request.
pub(super) fn finish(
    jobs: &[AttachJob],
    tasks: Vec<(&Target, NamespaceTask<Locations>)>,
    deadline: Instant,
) -> Result<Locations, Failed> {
    let mut found = Vec::with_capacity(tasks.len());
    for (target, task) in tasks {
        found.push((&target.id, task.finish(deadline)?.into_iter()));
    }
    let next = |job: &AttachJob| {
        let locations = found.iter_mut().find(|(id, _)| **id == job.target.id);
        locations.and_then(|(_, locations)| locations.next()).unwrap_or(Err(Error::Panicked))
    };
    Ok(jobs.iter().map(next).collect())
}
