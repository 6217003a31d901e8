//! Attach: scan, wait, verify, node, filter, publish, for all volumes of a request. All or nothing.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, umask},
};

use super::{
    attachment::{AccessMode, Attachment, Outcome},
    discover::{self, Search},
    failed::{Failed, OfVolume as _},
    guard::Guard,
    job::AttachJob,
    progress::{Progress, VolumeProgress, parents_made, roll_back},
    queue::Ticket,
    resolve,
    stages::Stages,
};
use crate::{
    block::BlockDevice,
    cgroup::{self, Filter, Grant},
    device_node::{Device, Existing, Location, Node, NodeKind, NodePath},
    error::{Error, Result},
    fault,
    ids::Ids,
    namespace::Target,
    scsi::ScsiHost,
    uevent::UeventSocket,
};

/// A volume that is attached.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) serial: String,
    pub(crate) unchanged: bool,
    pub(crate) guest_device: String,
    pub(crate) outcome: Outcome,
    pub(crate) size: u64,
    pub(crate) read_only: bool,
}

/// Attaches all volumes, or none. The calling thread must not be used for anything else afterwards.
pub(crate) fn attach(
    jobs: &[AttachJob],
    ticket: &Ticket,
    deadline: Instant,
    stages: &mut Stages,
) -> Result<Vec<Attached>, Failed> {
    ticket.wait_for_turn(deadline)?;
    let guard = Guard { deadline, ticket, jobs };
    let mut progress = Progress::default();
    let result = catch_unwind(AssertUnwindSafe(|| sequence(&guard, stages, &mut progress)))
        .unwrap_or_else(|_| Err(Error::Panicked.into()));
    let mut failed = match result {
        Ok(attached) => {
            for (job, volume) in jobs.iter().zip(&attached) {
                let parents = &volume.outcome.parents_made;
                ticket.set_attached(&volume.serial, true);
                let path = &job.attachment.path;
                ticket.record_parents(&volume.serial, &job.target.id, path, parents);
            }
            return Ok(attached);
        }
        Err(failed) => failed,
    };
    // The end of a container explains every other error.
    if let Some(ended) = guard.targets().find(|target| target.has_ended()) {
        failed.error = Box::new(Error::ContainerEnded { id: ended.id.to_string() });
    }
    if !fault::skips("undo") {
        failed.left = roll_back(jobs, &progress, ticket, deadline);
    }
    Err(failed)
}

fn sequence(
    guard: &Guard<'_>,
    stages: &mut Stages,
    progress: &mut Progress,
) -> Result<Vec<Attached>, Failed> {
    let jobs = guard.jobs;
    private_umask()?;
    let mut socket = UeventSocket::open()?;
    stages.end("uevent-socket")?;

    let filters = look_up(jobs, progress)?;
    let tasks = resolve::start(jobs)?;
    stages.end("lookup")?;

    guard.check("the look-up")?;
    for (search, job) in progress.searches.iter_mut().zip(jobs) {
        search.scan().of(&job.attachment.serial)?;
    }
    stages.end("scan")?;

    discover::wait(&mut progress.searches, &mut socket, guard)?;
    stages.end("wait")?;

    for (job, (search, volume)) in
        jobs.iter().zip(progress.searches.iter().zip(&mut progress.volumes))
    {
        verify(&job.attachment, disk(search), volume).of(&job.attachment.serial)?;
    }
    stages.end("verify")?;

    guard.check("the disks")?;
    let locations = resolve::finish(jobs, tasks, guard.deadline)?;
    for (index, (location, job)) in locations.into_iter().zip(jobs).enumerate() {
        let Attachment { serial, .. } = &job.attachment;
        let location = location.of(serial)?;
        let volume = &mut progress.volumes[index];
        let guarded = filters[index].mode() != cgroup::Mode::None;
        make_node(job, disk(&progress.searches[index]), location, volume, guarded, guard.deadline)
            .of(serial)?;
        verify_open(index, progress, &mut socket, guard)?;
    }
    stages.end("node")?;

    guard.check("the nodes")?;
    for (index, job) in jobs.iter().enumerate().filter(|_| !fault::skips("filter")) {
        let Attachment { serial, access, .. } = &job.attachment;
        let number = disk(&progress.searches[index]).number;
        let grant = progress.volumes[index].grant.insert(Grant::default());
        filters[index].allow(number, access.access(), grant).of(serial)?;
    }
    stages.end("filter")?;

    guard.check("the device filter")?;
    for (job, volume) in jobs.iter().zip(&mut progress.volumes) {
        if let Some(node) = &mut volume.node {
            node.publish(guard.deadline).of(&job.attachment.serial)?;
        }
    }
    stages.end("publish")?;
    // A container that has ended is an error, even if its tmpfs accepted everything.
    guard.targets().try_for_each(Target::check_alive)?;

    let attached = |(index, job): (usize, &AttachJob)| {
        let parents = parents_made(jobs, &progress.volumes, index);
        report(
            &job.attachment,
            disk(&progress.searches[index]),
            &filters[index],
            &progress.volumes[index],
            parents,
        )
    };
    Ok(jobs.iter().enumerate().map(attached).collect())
}

/// Gives the thread its own umask, of 0: otherwise it shares the agent's, and a node would not get
/// the mode that is requested.
pub(super) fn private_umask() -> Result<()> {
    unshare(CloneFlags::CLONE_FS).map_err(Error::system("unshare", "CLONE_FS"))?;
    umask(Mode::empty());
    Ok(())
}

/// Reads and checks everything that can be known before anything is changed.
fn look_up<'a>(jobs: &'a [AttachJob], progress: &mut Progress) -> Result<Vec<Filter<'a>>, Failed> {
    let hosts = ScsiHost::all()?;
    let mut filters = Vec::with_capacity(jobs.len());
    for AttachJob { attachment, target } in jobs {
        let serial = &attachment.serial;
        target.check_inside().of(serial)?;
        let options =
            Ids::of(target).and_then(|ids| attachment.options.outside(&ids)).of(serial)?;
        let filter = Filter::of(target).of(serial)?;
        filter.check().of(serial)?;
        filters.push(filter);
        let mut search = Search::new(attachment, &hosts).of(serial)?;
        search.read_sysfs().of(serial)?;
        progress.searches.push(search);
        let earlier =
            jobs.iter().zip(&progress.volumes).find(|(job, _)| job.target.id == target.id);
        let container_started = match earlier {
            Some((_, volume)) => volume.container_started,
            None => target.started()?,
        };
        progress.volumes.push(VolumeProgress {
            options: Some(options),
            container_started,
            ..VolumeProgress::default()
        });
    }
    Ok(filters)
}

/// Compares the size. The serial was checked when the disk was found.
fn verify(attachment: &Attachment, disk: &BlockDevice, volume: &mut VolumeProgress) -> Result<()> {
    volume.size = disk.size()?;
    volume.read_only = disk.read_only()?;
    if volume.size == attachment.size {
        return Ok(());
    }
    Err(Error::IdentityMismatch {
        device: disk.device.to_string(),
        what: "size",
        found: volume.size.to_string(),
        expected: attachment.size.to_string(),
    })
}

fn make_node(
    AttachJob { attachment, target }: &AttachJob,
    disk: &BlockDevice,
    location: Location,
    volume: &mut VolumeProgress,
    guarded: bool,
    deadline: Instant,
) -> Result<()> {
    let requested = volume.options.unwrap_or(attachment.options);
    let path = || attachment.path.as_str().to_owned();
    let access = if volume.read_only { AccessMode::ReadOnly } else { AccessMode::ReadWrite };
    match location.existing()? {
        Some(Existing::Block(number, options)) if number == disk.number => {
            let kind = location.find_node()?.map_or(NodeKind::Mknod, |(_, kind)| kind);
            volume.existing = Some(kind);
            let conflict = |existing: String, requested: String| {
                Err(Error::Conflict { path: path(), existing, requested })
            };
            if options != requested {
                return conflict(options.to_string(), requested.to_string());
            }
            if access != attachment.access {
                return conflict(
                    format!("{access} access"),
                    format!("{} access", attachment.access),
                );
            }
            location.remove_leftover(&attachment.serial).map(drop)
        }
        Some(other) => Err(Error::PathTaken { path: path(), by: other.to_string() }),
        None if access != attachment.access => Err(Error::IdentityMismatch {
            device: disk.device.to_string(),
            what: "access",
            found: access.to_string(),
            expected: attachment.access.to_string(),
        }),
        None if fault::skips("node") => Ok(()),
        None => {
            let read_only = attachment.access == AccessMode::ReadOnly;
            let device = Device { number: disk.number, options: requested, read_only, guarded };
            volume.node = Some(location.make(target, &attachment.serial, device, deadline)?);
            Ok(())
        }
    }
}

/// Opens the node. A disk that was found in sysfs may not be ready yet (ENXIO): then its event is
/// still to come.
fn verify_open(
    index: usize,
    progress: &mut Progress,
    socket: &mut UeventSocket,
    guard: &Guard<'_>,
) -> Result<(), Failed> {
    let Some(node) = &progress.volumes[index].node else { return Ok(()) };
    let serial = &guard.jobs[index].attachment.serial;
    loop {
        let announced = progress.searches[index].announced;
        if node.verify_open().of(serial)? {
            return Ok(());
        }
        if announced {
            let failed = Error::system("open", disk(&progress.searches[index]).name.as_str());
            return Err(failed(nix::errno::Errno::ENXIO)).of(serial);
        }
        discover::wait_for_event_of(index, &mut progress.searches, socket, guard)?;
    }
}

/// The disk of a search, for stages behind the wait.
fn disk(search: &Search) -> &BlockDevice {
    search.found.as_ref().expect("the wait ends when every disk is found")
}

fn report(
    attachment: &Attachment,
    disk: &BlockDevice,
    filter: &Filter<'_>,
    volume: &VolumeProgress,
    parents_made: Vec<NodePath>,
) -> Attached {
    let grant = volume.grant.as_ref();
    let made = volume.node.as_ref().map(Node::kind);
    Attached {
        serial: attachment.serial.clone(),
        unchanged: !fault::skips("unchanged")
            && volume.existing.is_some()
            && grant.is_none_or(|grant| grant.added.is_empty()),
        guest_device: disk.name.clone(),
        outcome: Outcome {
            device: disk.number,
            node: volume.existing.or(made).unwrap_or(NodeKind::Mknod),
            filter: filter.mode(),
            parents_made,
            allowed_before: grant.is_some_and(|grant| grant.allowed_before),
            container_started: volume.container_started,
        },
        size: volume.size,
        read_only: volume.read_only,
    }
}
