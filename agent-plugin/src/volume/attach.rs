//! Attach: scan, wait, verify, node or mount, filter, publish, for all volumes of a request. All or
//! nothing.
//!
//! In a conversation it stops twice: before the scan, until the disks are there, and at the end,
//! until its caller has committed.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, umask},
};

use super::{
    attachment::{Attachment, Outcome, Way},
    conversation::Conversation,
    discover::{self, Search},
    failed::{Failed, OfVolume as _},
    guard::Guard,
    job::AttachJob,
    mount, node,
    probe::{Guest, PathState, Probed, ProbedContainer},
    progress::{Progress, VolumeProgress, parents_made, roll_back},
    publish::publish,
    queue::Ticket,
    resolve,
    stages::Stages,
};
use crate::{
    block::BlockDevice,
    cgroup::{self, Filter, Grant},
    device_node::{Existing, Location, NodeKind, NodePath},
    disk_directory::DiskDirectory,
    error::{BoxedError, Error, Mismatch, Result},
    fault,
    ids::Ids,
    kernel::Kernel,
    namespace::Target,
    node::open_block_device,
    scsi::ScsiHost,
    text::displayed,
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
    conversation: Option<&Conversation<'_>>,
) -> Result<Vec<Attached>, Failed> {
    ticket.wait_for_turn(deadline)?;
    let guard = Guard { deadline, ticket, jobs };
    let mut progress = Progress::default();
    let run = || sequence(&guard, stages, &mut progress, conversation);
    let result =
        catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(Error::Panicked.into()));
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
        failed.error = BoxedError::from(Error::ContainerEnded { id: displayed(&ended.id) });
    }
    if !fault::skips("undo") {
        failed.left = roll_back(jobs, &mut progress, ticket, deadline);
    }
    Err(failed)
}

fn sequence(
    guard: &Guard<'_>,
    stages: &mut Stages,
    progress: &mut Progress,
    conversation: Option<&Conversation<'_>>,
) -> Result<Vec<Attached>, Failed> {
    let jobs = guard.jobs;
    private_umask()?;
    let mut socket = UeventSocket::open()?;
    stages.end("uevent-socket")?;

    let hosts = ScsiHost::all()?;
    let filters = look_up(jobs, &hosts, progress)?;
    let locations = resolve::locations(jobs, guard.deadline)?;
    for (index, location) in locations.iter().enumerate() {
        check_place(&jobs[index], location, &filters[index]).of(&jobs[index].attachment.serial)?;
    }
    stages.end("lookup")?;

    guard.check("the look-up")?;
    if let Some(conversation) = conversation {
        let probed = probed(hosts.clone(), jobs, &filters, &locations)?;
        conversation.ready(&probed, guard, stages)?;
        guard.check("the disks")?;
        for (search, job) in progress.searches.iter_mut().zip(jobs) {
            search.replace_mismatch(&job.attachment, &hosts).of(&job.attachment.serial)?;
        }
    }
    for (search, job) in progress.searches.iter_mut().zip(jobs) {
        search.check_mismatch().and_then(|()| search.scan()).of(&job.attachment.serial)?;
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
    let mut devices = Vec::with_capacity(jobs.len());
    for (index, job) in jobs.iter().enumerate() {
        let guarded = filters[index].mode() != cgroup::Mode::None;
        let (disk, volume) = (disk(&progress.searches[index]), &progress.volumes[index]);
        devices.push(node::device(&job.attachment, disk, volume, guarded));
    }
    let private = node::private_nodes(jobs, &locations, &devices, guard.deadline)?;
    let places = locations.into_iter().zip(devices.into_iter().zip(private));
    for (index, (job, (location, (device, private)))) in jobs.iter().zip(places).enumerate() {
        let Attachment { serial, mount, .. } = &*job.attachment;
        if mount.is_some() {
            wait_until_ready(index, progress, &mut socket, guard)?;
        }
        let volume = &mut progress.volumes[index];
        let disk = disk(&progress.searches[index]);
        match (mount, device) {
            (Some(mount), _) => {
                mount::make(job, mount, disk, location, volume, guard).of(serial)?;
            }
            (None, Some(device)) => {
                node::make(job, disk, location, volume, (device, private)).of(serial)?;
                verify_open(index, progress, &mut socket, guard)?;
            }
            (None, None) => {}
        }
    }
    stages.end("node")?;

    guard.check("the nodes")?;
    // A mount needs no right.
    let nodes = |(_, job): &(usize, &AttachJob)| job.attachment.mount.is_none();
    for (index, job) in jobs.iter().enumerate().filter(nodes).filter(|_| !fault::skips("filter")) {
        let Attachment { serial, access, .. } = &*job.attachment;
        let number = disk(&progress.searches[index]).number;
        let grant = progress.volumes[index].grant.insert(Grant::default());
        filters[index].allow(number, access.access(), grant).of(serial)?;
    }
    stages.end("filter")?;

    guard.check("the device filter")?;
    let mut attached = Vec::with_capacity(jobs.len());
    for (index, job) in jobs.iter().enumerate() {
        let volume = &progress.volumes[index];
        let parents = parents_made(jobs, &progress.volumes, index, guard.ticket);
        let disk = disk(&progress.searches[index]);
        attached.push(report(&job.attachment, disk, &filters[index], volume, parents));
    }
    if let Some(conversation) = conversation {
        conversation.prepared(&attached, stages)?;
    }
    publish(jobs, &mut progress.volumes, guard.deadline)?;
    stages.end("publish")?;
    // A container that has ended is an error, even if its tmpfs accepted everything.
    guard.targets().try_for_each(Target::check_alive)?;
    for (index, one) in attached.iter_mut().enumerate() {
        one.outcome.parents_made = parents_made(jobs, &progress.volumes, index, guard.ticket);
    }
    if let Some(conversation) = conversation {
        conversation.attached(&attached, guard, stages)?;
    }
    Ok(attached)
}

/// Gives the thread its own umask, of 0: otherwise it shares the agent's, and a node would not get
/// the mode that is requested.
pub(super) fn private_umask() -> Result<()> {
    unshare(CloneFlags::CLONE_FS).map_err(Error::system("unshare", &"CLONE_FS"))?;
    umask(Mode::empty());
    Ok(())
}

/// Reads and checks everything that can be known before anything is changed.
fn look_up<'a>(
    jobs: &'a [AttachJob],
    hosts: &[ScsiHost],
    progress: &mut Progress,
) -> Result<Vec<Filter<'a>>, Failed> {
    let mut filters = Vec::with_capacity(jobs.len());
    for AttachJob { attachment, target } in jobs {
        let serial = &attachment.serial;
        target.check_inside().of(serial)?;
        let filter = Filter::of(target).of(serial)?;
        let mut options = None;
        if attachment.mount.is_none() {
            let outside = Ids::of(target).and_then(|ids| attachment.options.outside(&ids));
            options = Some(outside.of(serial)?);
            filter.check().of(serial)?;
        }
        filters.push(filter);
        let mut search = Search::new(attachment, hosts).of(serial)?;
        search.read_sysfs().of(serial)?;
        progress.searches.push(search);
        let earlier =
            jobs.iter().zip(&progress.volumes).find(|(job, _)| job.target.id == target.id);
        let container_started = match earlier {
            Some((_, volume)) => volume.container_started,
            None => target.started()?,
        };
        progress.volumes.push(VolumeProgress {
            options,
            container_started,
            ..VolumeProgress::default()
        });
    }
    Ok(filters)
}

/// Checks what can be known of a volume's path before its disk is found.
fn check_place(job: &AttachJob, location: &Location, filter: &Filter<'_>) -> Result<()> {
    let AttachJob { attachment, target } = job;
    if let Some(mount) = &attachment.mount {
        return mount::check_place(job, mount, location);
    }
    match location.existing()? {
        None => location.check(target, filter.mode() != cgroup::Mode::None).map(drop),
        // It may be the disk's own.
        Some(Existing::Block(..)) => Ok(()),
        Some(other) => Err(node::taken(attachment, &other)),
    }
}

/// What a probe for the first container and its paths would find.
fn probed(
    hosts: Vec<ScsiHost>,
    jobs: &[AttachJob],
    filters: &[Filter<'_>],
    locations: &[Location],
) -> Result<Probed> {
    let guest = Guest::with(hosts, Kernel::known())?;
    let (target, filter) = (&jobs[0].target, &filters[0]);
    let mut paths = Vec::with_capacity(jobs.len());
    for (job, location) in jobs.iter().zip(locations).filter(|(job, _)| job.target.id == target.id)
    {
        let filter = job.attachment.mount.is_none().then_some(filter);
        paths.push(PathState::of(&job.attachment.path, Some(location), target, filter)?);
    }
    Ok(Probed { guest, container: Some(ProbedContainer::of(target, filter, paths)) })
}

/// Compares the size. The serial was checked when the disk was found.
fn verify(attachment: &Attachment, disk: &BlockDevice, volume: &mut VolumeProgress) -> Result<()> {
    let directory = DiskDirectory::of(disk)?;
    (volume.size, volume.read_only) = (directory.size(disk)?, directory.read_only(disk)?);
    if volume.size == attachment.size {
        return Ok(());
    }
    Err(Mismatch {
        device: displayed(&disk.device),
        what: "size",
        found: displayed(&volume.size),
        expected: displayed(&attachment.size),
    }
    .into())
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
            let name = &disk(&progress.searches[index]).name;
            return Err(Error::system("open", name)(Errno::ENXIO)).of(serial);
        }
        discover::wait_for_event_of(index, &mut progress.searches, socket, guard)?;
    }
}

/// Waits until the disk can be opened: as [`verify_open`], without a node.
fn wait_until_ready(
    index: usize,
    progress: &mut Progress,
    socket: &mut UeventSocket,
    guard: &Guard<'_>,
) -> Result<(), Failed> {
    loop {
        let search = &progress.searches[index];
        let (announced, disk) = (search.announced, disk(search));
        match open_block_device(&disk.name, disk.number, OFlag::O_RDONLY) {
            Err(Errno::ENXIO) if !announced => {}
            result => {
                let opened = result.map_err(Error::system("open", &disk.name.as_str()));
                return opened.map(drop).of(&guard.jobs[index].attachment.serial);
            }
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
    let errors = DiskDirectory::of(disk).and_then(|directory| directory.errors());
    let way = volume.way.unwrap_or(Way::Node(NodeKind::Mknod));
    Attached {
        serial: attachment.serial.clone(),
        unchanged: !fault::skips("unchanged")
            && volume.was_there
            && grant.is_none_or(|grant| grant.added.is_empty()),
        guest_device: disk.name.clone(),
        outcome: Outcome {
            device: disk.number,
            way,
            filter: attachment.mount.is_none().then(|| filter.mode()),
            parents_made,
            allowed_before: grant.is_some_and(|grant| grant.allowed_before),
            container_started: volume.container_started,
            // What cannot be read is counted as an error of the attachment, nothing worse.
            errors_before: errors.unwrap_or_default(),
        },
        size: volume.size,
        read_only: volume.read_only,
    }
}
