//! Attach: scan, wait, verify, node, filter, publish, for all volumes of a batch. All or nothing.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, umask},
};

use super::{
    Access, Arrival, Attached, Attachment, Failed, Guard, OfVolume as _, Outcome, Stages, Ticket,
    distinct_targets,
    hunt::{self, Search},
};
use crate::{
    block::BlockDevice,
    cgroup::{Filter, Grant},
    device_node::{Device, Node, NodeOptions, NodePath, Occupant, Place, Way},
    error::{Error, Result},
    fault,
    ids::Ids,
    mount::Mounts,
    namespace::{Target, Visit},
    scsi::ScsiHost,
    uevent::UeventSocket,
};

/// What was done so far. It lives outside of the sequence, so that an error and a panic are undone
/// alike.
#[derive(Debug, Default)]
struct Done {
    searches: Vec<Search>,
    volumes: Vec<Progress>,
}

/// What was done for one volume.
#[derive(Debug, Default)]
struct Progress {
    /// As the attachment has them, by our own numbers.
    options: Option<NodeOptions>,
    node: Option<Node>,
    /// The node was there before this request, and how: it and its disk are not ours to remove.
    was_there: Option<Way>,
    grant: Option<Grant>,
    container_started: u64,
    size: u64,
    read_only: bool,
}

/// Attaches all volumes, or none. The calling thread must not be used for anything else afterwards.
pub(crate) fn attach(
    arrivals: &[Arrival],
    ticket: &Ticket,
    deadline: Instant,
    stages: &mut Stages,
) -> Result<Vec<Attached>, Failed> {
    ticket.turn(deadline)?;
    let guard = Guard { deadline, ticket, arrivals };
    let mut done = Done::default();
    let result = catch_unwind(AssertUnwindSafe(|| sequence(&guard, stages, &mut done)))
        .unwrap_or_else(|_| Err(Error::Panicked.into()));
    let mut failed = match result {
        Ok(attached) => {
            for (arrival, volume) in arrivals.iter().zip(&attached) {
                ticket.set_attached(&volume.serial, true);
                ticket.note_made(&volume.serial, &arrival.target.id, &volume.outcome.parents_made);
            }
            return Ok(attached);
        }
        Err(failed) => failed,
    };
    // Whatever failed because the container ended, its end is the reason.
    if let Some(ended) = guard.targets().find(|target| target.has_ended()) {
        failed.error = Box::new(Error::ContainerEnded { id: ended.id.to_string() });
    }
    if !fault::skips("undo") {
        failed.left = undo(arrivals, &done, ticket, deadline);
    }
    Err(failed)
}

fn sequence(
    guard: &Guard<'_>,
    stages: &mut Stages,
    done: &mut Done,
) -> Result<Vec<Attached>, Failed> {
    let arrivals = guard.arrivals;
    private_umask()?;
    let mut socket = UeventSocket::open()?;
    stages.end("uevent-socket")?;

    let filters = look_up(arrivals, done)?;
    let visits = find_places(arrivals)?;
    stages.end("lookup")?;

    guard.check("the look-up")?;
    for (search, arrival) in done.searches.iter_mut().zip(arrivals) {
        search.scan().of(&arrival.attachment.serial)?;
    }
    stages.end("scan")?;

    hunt::wait(&mut done.searches, &mut socket, guard)?;
    stages.end("wait")?;

    for (arrival, (search, progress)) in
        arrivals.iter().zip(done.searches.iter().zip(&mut done.volumes))
    {
        verify(&arrival.attachment, disk(search), progress).of(&arrival.attachment.serial)?;
    }
    stages.end("verify")?;

    let places = collect(arrivals, visits, guard.deadline)?;
    for (index, (place, arrival)) in places.into_iter().zip(arrivals).enumerate() {
        let Attachment { serial, .. } = &arrival.attachment;
        let place = place.of(serial)?;
        let progress = &mut done.volumes[index];
        make_node(arrival, disk(&done.searches[index]), place, progress, guard.deadline)
            .of(serial)?;
        prove(index, done, &mut socket, guard)?;
    }
    stages.end("node")?;

    for (index, arrival) in arrivals.iter().enumerate().filter(|_| !fault::skips("filter")) {
        let Attachment { serial, access, .. } = &arrival.attachment;
        let number = disk(&done.searches[index]).number;
        let grant = done.volumes[index].grant.insert(Grant::default());
        filters[index].allow(number, access.rights(), grant).of(serial)?;
    }
    stages.end("filter")?;

    guard.check("the device filter")?;
    for (arrival, progress) in arrivals.iter().zip(&mut done.volumes) {
        if let Some(node) = &mut progress.node {
            node.publish(guard.deadline).of(&arrival.attachment.serial)?;
        }
    }
    stages.end("publish")?;
    // A container that has ended gets an error, even if its tmpfs took all of it.
    guard.targets().try_for_each(Target::check_alive)?;

    let attached = |(index, arrival): (usize, &Arrival)| {
        let made = parents_made(arrivals, &done.volumes, index);
        report(
            &arrival.attachment,
            disk(&done.searches[index]),
            &filters[index],
            &done.volumes[index],
            made,
        )
    };
    Ok(arrivals.iter().enumerate().map(attached).collect())
}

/// A thread shares its umask with the whole agent; modes are meant as they are given.
pub(super) fn private_umask() -> Result<()> {
    unshare(CloneFlags::CLONE_FS).map_err(Error::system("unshare", "CLONE_FS"))?;
    umask(Mode::empty());
    Ok(())
}

/// Everything that can be known before anything is changed.
fn look_up<'a>(arrivals: &'a [Arrival], done: &mut Done) -> Result<Vec<Filter<'a>>, Failed> {
    let hosts = ScsiHost::all()?;
    let mut filters = Vec::with_capacity(arrivals.len());
    for Arrival { attachment, target } in arrivals {
        let serial = &attachment.serial;
        let options =
            Ids::of(target).and_then(|ids| attachment.options.outside(&ids)).of(serial)?;
        let filter = Filter::of(target).of(serial)?;
        filter.check().of(serial)?;
        filters.push(filter);
        let mut search = Search::new(attachment, &hosts).of(serial)?;
        search.look().of(serial)?;
        done.searches.push(search);
        let earlier =
            arrivals.iter().zip(&done.volumes).find(|(arrival, _)| arrival.target.id == target.id);
        let container_started = match earlier {
            Some((_, progress)) => progress.container_started,
            None => target.started()?,
        };
        done.volumes.push(Progress {
            options: Some(options),
            container_started,
            ..Progress::default()
        });
    }
    Ok(filters)
}

type Places = Vec<Result<Place>>;

/// Resolves the paths of each container on a thread there, while this one goes on with the disks.
fn find_places(arrivals: &[Arrival]) -> Result<Vec<(&Target, Visit<Places>)>, Failed> {
    let visit = |target| {
        let paths: Vec<_> =
            of_target(arrivals, target).map(|arrival| arrival.attachment.path.clone()).collect();
        let find = move |root: &_, mounts| {
            Ok(paths.iter().map(|path| Place::find(root, path, &mounts)).collect())
        };
        let of = target.clone();
        Ok((target, target.enter_with(move || Mounts::read(&of), find, drop)?))
    };
    distinct_targets(arrivals.iter().map(|arrival| &arrival.target))
        .into_iter()
        .map(visit)
        .collect()
}

fn of_target<'a>(arrivals: &'a [Arrival], target: &Target) -> impl Iterator<Item = &'a Arrival> {
    arrivals.iter().filter(move |arrival| arrival.target.id == target.id)
}

/// The places in the order of the request.
fn collect(
    arrivals: &[Arrival],
    visits: Vec<(&Target, Visit<Places>)>,
    deadline: Instant,
) -> Result<Places, Failed> {
    let mut found = Vec::with_capacity(visits.len());
    for (target, visit) in visits {
        found.push((&target.id, visit.finish(deadline)?.into_iter()));
    }
    let next = |arrival: &Arrival| {
        let places = found.iter_mut().find(|(id, _)| **id == arrival.target.id);
        places.and_then(|(_, places)| places.next()).unwrap_or(Err(Error::Panicked))
    };
    Ok(arrivals.iter().map(next).collect())
}

/// The serial was checked when the disk was found.
fn verify(attachment: &Attachment, disk: &BlockDevice, progress: &mut Progress) -> Result<()> {
    progress.size = disk.size()?;
    progress.read_only = disk.read_only()?;
    if progress.size == attachment.size {
        return Ok(());
    }
    Err(Error::IdentityMismatch {
        device: disk.device.to_string(),
        what: "size",
        found: progress.size.to_string(),
        expected: attachment.size.to_string(),
    })
}

fn make_node(
    Arrival { attachment, target }: &Arrival,
    disk: &BlockDevice,
    place: Place,
    progress: &mut Progress,
    deadline: Instant,
) -> Result<()> {
    let asked = progress.options.unwrap_or(attachment.options);
    let path = || attachment.path.as_str().to_owned();
    let access = if progress.read_only { Access::ReadOnly } else { Access::ReadWrite };
    match place.occupant()? {
        Some(Occupant::Block(number, options)) if number == disk.number => {
            progress.was_there = Some(place.find_node()?.map_or(Way::Mknod, |(_, way)| way));
            let conflict =
                |there: String, asked: String| Err(Error::Conflict { path: path(), there, asked });
            if options != asked {
                return conflict(options.to_string(), asked.to_string());
            }
            if access != attachment.access {
                return conflict(
                    format!("{access} access"),
                    format!("{} access", attachment.access),
                );
            }
            place.remove_leftover(&attachment.serial).map(drop)
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
            let read_only = attachment.access == Access::ReadOnly;
            let device = Device { number: disk.number, options: asked, read_only };
            progress.node = Some(place.make(target, &attachment.serial, device, deadline)?);
            Ok(())
        }
    }
}

/// A disk that was only seen in sysfs may not be open for business yet: then its event is still to
/// come.
fn prove(
    index: usize,
    done: &mut Done,
    socket: &mut UeventSocket,
    guard: &Guard<'_>,
) -> Result<(), Failed> {
    let Some(node) = &done.volumes[index].node else { return Ok(()) };
    let serial = &guard.arrivals[index].attachment.serial;
    loop {
        let announced = done.searches[index].announced;
        if node.prove().of(serial)? {
            return Ok(());
        }
        if announced {
            let failed = Error::system("open", disk(&done.searches[index]).name.as_str());
            return Err(failed(nix::errno::Errno::ENXIO)).of(serial);
        }
        hunt::wait_for_announcement(&mut done.searches, index, socket, guard)?;
    }
}

/// Only for stages behind the wait.
fn disk(search: &Search) -> &BlockDevice {
    search.found.as_ref().expect("the wait ends when every disk is found")
}

fn report(
    attachment: &Attachment,
    disk: &BlockDevice,
    filter: &Filter<'_>,
    progress: &Progress,
    parents_made: Vec<NodePath>,
) -> Attached {
    let grant = progress.grant.as_ref();
    Attached {
        serial: attachment.serial.clone(),
        unchanged: !fault::skips("unchanged")
            && progress.was_there.is_some()
            && grant.is_none_or(|grant| grant.added.is_empty()),
        guest_device: disk.name.clone(),
        outcome: Outcome {
            device: disk.number,
            node: progress
                .was_there
                .or(progress.node.as_ref().map(Node::way))
                .unwrap_or(Way::Mknod),
            filter: filter.mode(),
            parents_made,
            allowed_before: grant.is_some_and(|grant| grant.allowed_before),
            container_started: progress.container_started,
        },
        size: progress.size,
        read_only: progress.read_only,
    }
}

/// The directories above a node, outermost first, that this request made, for whichever of its
/// volumes: all of those name them, and the last to go takes them.
fn parents_made(arrivals: &[Arrival], volumes: &[Progress], index: usize) -> Vec<NodePath> {
    let Arrival { attachment, target } = &arrivals[index];
    if volumes[index].node.is_none() {
        return Vec::new();
    }
    let of_container =
        arrivals.iter().zip(volumes).filter(|(arrival, _)| arrival.target.id == target.id);
    let nodes = of_container.filter_map(|(_, progress)| progress.node.as_ref());
    // Each is a part of a path that was checked.
    let made = nodes.flat_map(Node::parents_made).filter_map(|path| NodePath::new(&path).ok());
    let mut above: Vec<_> = made.filter(|made| attachment.path.is_below(made)).collect();
    above.sort_by_key(|made| made.as_str().len());
    above.dedup();
    above
}

/// In reverse: what the container sees goes first, its rights next, the disk last. Goes on after an
/// error.
fn undo(arrivals: &[Arrival], done: &Done, ticket: &Ticket, deadline: Instant) -> Vec<Error> {
    let volumes = || done.volumes.iter().rev();
    let nodes =
        volumes().filter_map(|volume| volume.node.as_ref()).map(|node| node.remove(deadline));
    let rights = volumes().filter_map(|volume| volume.grant.as_ref()).map(Grant::undo);
    let disks = arrivals.iter().zip(&done.searches).zip(&done.volumes).rev().map(
        |((arrival, search), volume)| {
            search
                .undo(volume.was_there.is_some() || ticket.is_attached(&arrival.attachment.serial))
        },
    );
    nodes.chain(rights).chain(disks).filter_map(Result::err).collect()
}
