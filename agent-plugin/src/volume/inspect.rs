//! What the guest can do, and the present state of attachments. Changes nothing.
//!
//! Paths are resolved by descriptor on the request's own thread. A container whose file system
//! never answers keeps that thread; the caller's time-out ends the call, and nothing else waits for
//! it.

use std::time::Instant;

use super::{
    attachment::Attachment,
    job::{DetachJob, distinct_targets},
};
use crate::{
    block::{self, BlockDevice, DeviceNumber},
    cgroup::{self, Filter},
    device_node::{Existing, Location, NodeKind, NodePath},
    disk_stats::DiskStats,
    error::{Error, Result, Unsupported},
    holder::Holder,
    holders::{self, Disk, Scope},
    mount::Mounts,
    namespace::Target,
    scsi::{self, ScsiHost},
};

/// What the guest has, apart from containers.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) hosts: Vec<ScsiHost>,
    pub(crate) scan_mode: String,
}

/// Reads what the guest has.
pub(crate) fn probe() -> Result<Guest> {
    Ok(Guest { hosts: ScsiHost::all()?, scan_mode: scsi::scan_mode()? })
}

/// The present state of a path in a container.
#[derive(Debug)]
pub(crate) struct PathState {
    pub(crate) path: String,
    /// `None`: the parent cannot be reached safely.
    pub(crate) parent: Option<ParentState>,
    pub(crate) existing: Option<Existing>,
}

/// The directory that would hold a node.
#[derive(Debug)]
pub(crate) struct ParentState {
    pub(crate) file_system: String,
    pub(crate) nodev: bool,
    pub(crate) read_only: bool,
    /// The directory has to be made first.
    pub(crate) is_missing: bool,
    /// The kind of node that an attach would make there, or why it would make none.
    pub(crate) kind: Result<NodeKind>,
}

/// Reads the state of paths in a container.
pub(crate) fn paths(target: &Target, paths: &[NodePath]) -> Result<Vec<PathState>> {
    let root = target.root()?;
    let mounts = if paths.is_empty() { Mounts::default() } else { Mounts::read(target)? };
    let guarded = Filter::of(target)?.mode() != cgroup::Mode::None;
    let state = |path: &NodePath| {
        let mut state = PathState { path: path.as_str().to_owned(), parent: None, existing: None };
        if let Some(location) = reachable(Location::find(&root, path, &mounts))? {
            state.existing = location.existing()?;
            state.parent = Some(ParentState {
                file_system: location.file_system(),
                nodev: location.nodev(),
                read_only: location.read_only(),
                is_missing: !location.missing().is_empty(),
                kind: location.check(target, guarded),
            });
        }
        Ok(state)
    };
    paths.iter().map(state).collect()
}

fn reachable(location: Result<Location>) -> Result<Option<Location>> {
    match location {
        Ok(location) => Ok(Some(location)),
        Err(Error::ParentMissing { .. } | Error::Unsupported(Unsupported::MagicLink { .. })) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The present state of an attachment.
#[derive(Debug, Default)]
pub(crate) struct Inspected {
    pub(crate) serial: String,
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
    /// Where they were requested.
    pub(crate) holders: Vec<Holder>,
}

/// Reads the state of attachments, in their order, and on request the holders of their disks.
pub(crate) fn inspect(
    subjects: &[DetachJob],
    holders: bool,
    deadline: Instant,
) -> Result<Vec<Inspected>> {
    let hosts = ScsiHost::all()?;
    let mut all: Vec<Inspected> =
        subjects.iter().map(|subject| inspect_one(subject, &hosts)).collect::<Result<_>>()?;
    if holders {
        find_holders(subjects, &mut all, deadline)?;
    }
    Ok(all)
}

/// Finds holders without a claim, which could make an open or a mount of another process fail.
fn find_holders(subjects: &[DetachJob], all: &mut [Inspected], deadline: Instant) -> Result<()> {
    let disk = |(subject, inspected): (&DetachJob, &Inspected)| {
        let (attachment, disk) = (&subject.attachment, inspected.disk.as_ref()?);
        Some(Disk::new(&attachment.serial, attachment.path.as_str(), disk))
    };
    let disks: Vec<Disk> = subjects.iter().zip(&*all).filter_map(disk).collect::<Result<_>>()?;
    let containers =
        distinct_targets(subjects.iter().filter_map(|subject| subject.target.as_ref()));
    let scan = holders::find(&disks, &containers, Scope::All, deadline)?;
    for found in scan.with_the_rest_unknown(&disks) {
        let is_of = |subject: &DetachJob| subject.attachment.serial == found.holder.serial;
        if let Some(index) = subjects.iter().position(is_of) {
            all[index].holders.push(found.holder);
        }
    }
    Ok(())
}

fn inspect_one(
    DetachJob { attachment, outcome, target, .. }: &DetachJob,
    hosts: &[ScsiHost],
) -> Result<Inspected> {
    let mut inspected = Inspected { serial: attachment.serial.clone(), ..Inspected::default() };
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
        match inspect_container(attachment, number, target, &mut inspected) {
            // The container ended in the meantime.
            Err(_) if target.has_ended() => {}
            result => {
                result?;
                inspected.container_running = true;
            }
        }
    }
    Ok(inspected)
}

fn inspect_container(
    attachment: &Attachment,
    number: Option<DeviceNumber>,
    target: &Target,
    inspected: &mut Inspected,
) -> Result<()> {
    inspected.container_started = target.started()?;
    let mounts = Mounts::read(target)?;
    if let Some(location) = reachable(Location::find(&target.root()?, &attachment.path, &mounts))? {
        let found = location.existing()?;
        inspected.node_present =
            matches!(found, Some(Existing::Block(found, _)) if Some(found) == number);
        inspected.leftovers.extend(location.leftover(&attachment.serial)?);
    }
    let filter = Filter::of(target)?;
    inspected.filter = Some(filter.mode());
    if let Some(number) = number {
        inspected.allowed = filter.allows(number, attachment.access.access())?;
    }
    Ok(())
}
