//! What the guest can do, and the present state of attachments. Changes nothing.
//!
//! Paths are resolved by descriptor on the request's own thread. A container whose file system
//! never answers keeps that thread; the caller's time-out ends the call, and nothing else waits for
//! it.

use std::time::Instant;

use super::{
    attachment::{Attachment, Outcome},
    job::distinct_targets,
};
use crate::{
    agent::ContainerError,
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

/// An attachment to inspect.
#[derive(Debug)]
pub(crate) struct InspectJob {
    pub(crate) attachment: Attachment,
    /// From the host's record of the reply to Attach, if the host got one.
    pub(crate) outcome: Option<Outcome>,
    /// Its container, or what the agent says of a container that cannot be entered.
    pub(crate) container: Result<Target, ContainerError>,
}

/// What is known of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContainerStatus {
    Running,
    Paused,
    Stopped,
    Created,
    UnknownId,
    Unreachable,
}

impl From<&ContainerError> for ContainerStatus {
    fn from(error: &ContainerError) -> Self {
        match error {
            ContainerError::Unknown => Self::UnknownId,
            ContainerError::Created => Self::Created,
            ContainerError::Stopped => Self::Stopped,
            ContainerError::Paused => Self::Paused,
            ContainerError::Unreachable(_) => Self::Unreachable,
        }
    }
}

/// The present state of an attachment. Where `unknown` is set, what is missing is neither present
/// nor gone; a disk that is there was told.
#[derive(Debug)]
pub(crate) struct Inspected {
    pub(crate) serial: String,
    pub(crate) disk: Option<BlockDevice>,
    pub(crate) size: u64,
    pub(crate) read_only: bool,
    pub(crate) container: ContainerStatus,
    pub(crate) container_started: u64,
    pub(crate) node_present: bool,
    pub(crate) allowed: bool,
    pub(crate) filter: Option<cgroup::Mode>,
    pub(crate) leftovers: Vec<String>,
    pub(crate) stats: Option<DiskStats>,
    /// Where they were requested.
    pub(crate) holders: Vec<Holder>,
    /// Why a part could not be told.
    pub(crate) unknown: Option<String>,
    /// Why the holders could not be told.
    pub(crate) holders_unknown: Option<String>,
}

/// Reads the state of attachments, in their order, and on request the holders of their disks. What
/// cannot be told of one attachment is said there.
///
/// # Errors
/// The guest's SCSI hosts cannot be read: nothing is known of any disk.
pub(crate) fn inspect(
    subjects: &[InspectJob],
    holders: bool,
    deadline: Instant,
) -> Result<Vec<Inspected>> {
    let hosts = ScsiHost::all()?;
    let mut all: Vec<Inspected> =
        subjects.iter().map(|subject| inspect_one(subject, &hosts)).collect();
    if holders && let Err(error) = find_holders(subjects, &mut all, deadline) {
        all.iter_mut().for_each(|one| one.holders_unknown = Some(error.message()));
    }
    Ok(all)
}

/// Finds holders without a claim, which could make an open or a mount of another process fail.
fn find_holders(subjects: &[InspectJob], all: &mut [Inspected], deadline: Instant) -> Result<()> {
    let disk = |(subject, inspected): (&InspectJob, &Inspected)| {
        let (attachment, disk) = (&subject.attachment, inspected.disk.as_ref()?);
        Some(Disk::new(&attachment.serial, attachment.path.as_str(), disk))
    };
    let disks: Vec<Disk> = subjects.iter().zip(&*all).filter_map(disk).collect::<Result<_>>()?;
    let containers =
        distinct_targets(subjects.iter().filter_map(|subject| subject.container.as_ref().ok()));
    let scan = holders::find(&disks, &containers, Scope::All, deadline)?;
    for found in scan.with_the_rest_unknown(&disks) {
        let is_of = |subject: &InspectJob| subject.attachment.serial == found.holder.serial;
        if let Some(index) = subjects.iter().position(is_of) {
            all[index].holders.push(found.holder);
        }
    }
    Ok(())
}

fn inspect_one(
    InspectJob { attachment, outcome, container }: &InspectJob,
    hosts: &[ScsiHost],
) -> Inspected {
    let mut inspected = Inspected {
        serial: attachment.serial.clone(),
        disk: None,
        size: 0,
        read_only: false,
        container: ContainerStatus::Running,
        container_started: 0,
        node_present: false,
        allowed: false,
        filter: None,
        leftovers: Vec::new(),
        stats: None,
        holders: Vec::new(),
        unknown: None,
        holders_unknown: None,
    };
    let mut unknown = inspect_disk(attachment, hosts, &mut inspected).err();
    let number = inspected
        .disk
        .as_ref()
        .map(|disk| disk.number)
        .or(outcome.as_ref().map(|outcome| outcome.device));
    match container {
        Err(error) => {
            inspected.container = error.into();
            if is_unknown(error) {
                let (id, source) = (attachment.container_id.to_string(), error.clone());
                unknown = unknown.or(Some(Error::Container { id, source }));
            }
        }
        Ok(target) => {
            let found = inspect_container(attachment, number, target, &mut inspected);
            if target.has_ended() {
                inspected.container = ContainerStatus::Stopped;
                inspected.container_started = 0;
            } else {
                unknown = unknown.or(found.err());
            }
        }
    }
    inspected.unknown = unknown.map(|error| error.message());
    inspected
}

/// Whether a container may have the volume although it cannot be entered now.
fn is_unknown(error: &ContainerError) -> bool {
    match error {
        ContainerError::Paused | ContainerError::Unreachable(_) => true,
        ContainerError::Unknown | ContainerError::Created | ContainerError::Stopped => false,
    }
}

/// Reads the disk with the attachment's serial number. It is reported as a whole or not at all.
fn inspect_disk(
    attachment: &Attachment,
    hosts: &[ScsiHost],
    inspected: &mut Inspected,
) -> Result<()> {
    // Without the controller there is no disk at it.
    for host in ScsiHost::candidates(hosts, attachment.controller.as_deref()).unwrap_or_default() {
        let device = host.device(attachment.address);
        if block::serial(device)?.as_ref() == Some(&attachment.serial)
            && let Some(disk) = BlockDevice::at(device)?
        {
            let stats = DiskStats::of(&disk)?;
            (inspected.size, inspected.read_only) = (disk.size()?, disk.read_only()?);
            (inspected.stats, inspected.disk) = (Some(stats), Some(disk));
        }
    }
    Ok(())
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
