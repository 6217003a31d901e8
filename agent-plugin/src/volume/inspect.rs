//! What the guest can do and how attachments look: only looks, changes nothing.
//!
//! Paths are resolved by descriptor on the request's own thread. A container whose file system
//! never answers keeps that thread; the caller's time-out ends the call, and nothing else waits for
//! it.

use super::{Attachment, Departure, distinct_targets};
use crate::{
    block::{self, BlockDevice, DeviceNumber},
    cgroup::{self, Filter},
    device_node::{NodePath, Occupant, Place, Way},
    disk_stats::DiskStats,
    error::{Error, Result, Unsupported},
    holders::{self, Disk, Holder, Scope},
    mount::Mounts,
    namespace::Target,
    scsi::{self, ScsiHost},
};

/// What the guest has.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) hosts: Vec<ScsiHost>,
    pub(crate) scan_mode: String,
}

/// The guest alone.
pub(crate) fn probe() -> Result<Guest> {
    Ok(Guest { hosts: ScsiHost::all()?, scan_mode: scsi::scan_mode()? })
}

/// A path in a container, as it is now.
#[derive(Debug)]
pub(crate) struct PathState {
    pub(crate) path: String,
    /// `None`: there is no safe way to its parent.
    pub(crate) parent: Option<ParentState>,
    pub(crate) occupant: Option<Occupant>,
}

/// The directory that would hold a node.
#[derive(Debug)]
pub(crate) struct ParentState {
    pub(crate) file_system: String,
    pub(crate) nodev: bool,
    pub(crate) read_only: bool,
    /// It has to be made first.
    pub(crate) is_missing: bool,
    /// How a node would come there, or why it would not.
    pub(crate) way: Result<Way>,
}

/// The paths of a container.
pub(crate) fn paths(target: &Target, paths: &[NodePath]) -> Result<Vec<PathState>> {
    let root = target.root()?;
    let mounts = if paths.is_empty() { Mounts::default() } else { Mounts::read(target)? };
    let state = |path: &NodePath| {
        let mut state = PathState { path: path.as_str().to_owned(), parent: None, occupant: None };
        if let Some(place) = reachable(Place::find(&root, path, &mounts))? {
            state.occupant = place.occupant()?;
            state.parent = Some(ParentState {
                file_system: place.file_system(),
                nodev: place.nodev(),
                read_only: place.read_only(),
                is_missing: !place.missing().is_empty(),
                way: place.check(target),
            });
        }
        Ok(state)
    };
    paths.iter().map(state).collect()
}

fn reachable(place: Result<Place>) -> Result<Option<Place>> {
    match place {
        Ok(place) => Ok(Some(place)),
        Err(Error::ParentMissing { .. } | Error::Unsupported(Unsupported::MagicLink { .. })) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// How an attachment looks.
#[derive(Debug, Default)]
pub(crate) struct Inspected {
    pub(crate) disk: Option<BlockDevice>,
    pub(crate) size: u64,
    pub(crate) read_only: bool,
    pub(crate) container_running: bool,
    pub(crate) container_started: u64,
    pub(crate) node_present: bool,
    pub(crate) allowed: bool,
    pub(crate) filter: Option<cgroup::Mode>,
    pub(crate) leftovers: Vec<String>,
    pub(crate) stats: Option<DiskStats>,
    /// Where they were asked for.
    pub(crate) holders: Vec<Holder>,
}

/// How attachments look, in their order, and who holds the disks if that is of interest.
pub(crate) fn inspect(subjects: &[Departure], holders: bool) -> Result<Vec<Inspected>> {
    let hosts = ScsiHost::all()?;
    let mut all: Vec<Inspected> =
        subjects.iter().map(|subject| inspect_one(subject, &hosts)).collect::<Result<_>>()?;
    if holders {
        look_for_holders(subjects, &mut all)?;
    }
    Ok(all)
}

/// Without a claim, which somebody could run into.
fn look_for_holders(subjects: &[Departure], all: &mut [Inspected]) -> Result<()> {
    let disk = |(subject, inspected): (&Departure, &Inspected)| {
        let (attachment, disk) = (&subject.attachment, inspected.disk.as_ref()?);
        Some(Disk::new(&attachment.serial, attachment.path.as_str(), disk))
    };
    let disks: Vec<Disk> = subjects.iter().zip(&*all).filter_map(disk).collect::<Result<_>>()?;
    let known = distinct_targets(subjects.iter().filter_map(|subject| subject.target.as_ref()));
    for found in holders::look(&disks, &known, Scope::All)? {
        let is_of = |subject: &Departure| subject.attachment.serial == found.holder.serial;
        if let Some(index) = subjects.iter().position(is_of) {
            all[index].holders.push(found.holder);
        }
    }
    Ok(())
}

fn inspect_one(
    Departure { attachment, outcome, target, .. }: &Departure,
    hosts: &[ScsiHost],
) -> Result<Inspected> {
    let mut inspected = Inspected::default();
    for host in ScsiHost::candidates(hosts, attachment.controller.as_deref()).unwrap_or_default() {
        let device = host.device(attachment.address);
        if block::serial(device)?.as_ref() == Some(&attachment.serial)
            && let Some(disk) = BlockDevice::at(device)?
        {
            inspected.size = disk.size()?;
            inspected.read_only = disk.read_only()?;
            inspected.stats = Some(DiskStats::of(&disk)?);
            inspected.disk = Some(disk);
        }
    }
    let number = inspected
        .disk
        .as_ref()
        .map(|disk| disk.number)
        .or(outcome.as_ref().map(|outcome| outcome.device));
    if let Some(target) = target.as_ref().filter(|target| !target.has_ended()) {
        match look_inside(attachment, number, target, &mut inspected) {
            // It ended while we looked.
            Err(_) if target.has_ended() => {}
            result => {
                result?;
                inspected.container_running = true;
            }
        }
    }
    Ok(inspected)
}

fn look_inside(
    attachment: &Attachment,
    number: Option<DeviceNumber>,
    target: &Target,
    inspected: &mut Inspected,
) -> Result<()> {
    inspected.container_started = target.started()?;
    let mounts = Mounts::read(target)?;
    if let Some(place) = reachable(Place::find(&target.root()?, &attachment.path, &mounts))? {
        let found = place.occupant()?;
        inspected.node_present =
            matches!(found, Some(Occupant::Block(found, _)) if Some(found) == number);
        inspected.leftovers.extend(place.leftover(&attachment.serial)?);
    }
    let filter = Filter::of(target)?;
    inspected.filter = Some(filter.mode());
    if let Some(number) = number {
        inspected.allowed = filter.allows(number, attachment.access.rights())?;
    }
    Ok(())
}
