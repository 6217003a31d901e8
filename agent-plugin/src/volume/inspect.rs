//! The present state of attachments. Changes nothing.
//!
//! Paths are resolved by descriptor on the request's own thread. A container whose file system
//! never answers keeps that thread; the caller's time-out ends the call, and nothing else waits for
//! it.

use std::{sync::Arc, time::Instant};

use super::{
    attachment::{Attachment, Outcome},
    busy::disk_of,
    job::distinct_targets,
    probe::reachable,
};
use crate::{
    agent::ContainerError,
    block::{BlockDevice, DeviceNumber},
    cgroup::{self, Filter},
    device_node::{Existing, Location, NodePath},
    disk_directory::DiskDirectory,
    disk_stats::DiskStats,
    error::{Error, Result},
    file_system::{Kind, Space},
    holder::Holder,
    holders::{self, Disk, Scope},
    inode::Inode,
    mount::Mounts,
    mounted::MountIdentity,
    namespace::{Root, Target},
    procfs::mountinfo::MountLine,
    scsi::ScsiHost,
    text::displayed,
};

/// An attachment to inspect.
#[derive(Debug)]
pub(crate) struct InspectJob {
    pub(crate) attachment: Arc<Attachment>,
    /// From the host's record of the reply to Attach, if the host got one.
    pub(crate) outcome: Option<Arc<Outcome>>,
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
    /// Of a mount that is there.
    pub(crate) file_system: Option<(Kind, Space)>,
    /// Where they were requested.
    pub(crate) holders: Vec<Holder>,
    /// Why a part could not be told.
    pub(crate) unknown: Option<String>,
    /// Why the holders could not be told.
    pub(crate) holders_unknown: Option<String>,
}

/// What is read of a container once, for all its attachments: each of them may be a mount and an
/// entry of the filter, so that reading them for every attachment would grow with the square.
struct ContainerView<'a> {
    started: u64,
    root: Root,
    mounts: Mounts,
    mountinfo: Vec<u8>,
    filter: Filter<'a>,
    /// That of the last device: most of them are in one directory.
    location: Option<Location>,
}

/// The containers of a request that were read so far.
#[derive(Default)]
struct Views<'a>(Vec<(&'a Target, Result<ContainerView<'a>, String>)>);

impl<'a> Views<'a> {
    fn of(&mut self, target: &'a Target) -> &mut Result<ContainerView<'a>, String> {
        let known = self.0.iter().position(|(known, _)| known.id == target.id);
        let index = known.unwrap_or_else(|| {
            let view = ContainerView::of(target).map_err(|error| error.message());
            self.0.push((target, view));
            self.0.len() - 1
        });
        &mut self.0[index].1
    }
}

impl<'a> ContainerView<'a> {
    fn of(target: &'a Target) -> Result<Self> {
        let mountinfo = target.mountinfo()?;
        Ok(Self {
            started: target.started()?,
            root: target.root()?,
            mounts: Mounts::of(&mountinfo)?,
            mountinfo,
            filter: Filter::of(target)?,
            location: None,
        })
    }

    /// Reads what the container has of one attachment.
    fn read(
        &mut self,
        attachment: &Attachment,
        number: Option<DeviceNumber>,
        inspected: &mut Inspected,
    ) -> Result<()> {
        inspected.container_started = self.started;
        if attachment.mount.is_some() {
            inspected.allowed = true;
            return self.read_mount(attachment, number, inspected);
        }
        if let Some(location) = self.locate(&attachment.path)? {
            let found = location.found();
            inspected.node_present =
                matches!(found, Some(Existing::Block(found, _)) if Some(found) == number);
            inspected.leftovers.extend(location.leftover(&attachment.serial)?);
        }
        inspected.filter = Some(self.filter.mode());
        if let Some(number) = number {
            inspected.allowed = self.filter.allows(number, attachment.access.access())?;
        }
        Ok(())
    }
}

impl ContainerView<'_> {
    /// Finds a path; `None` where nothing can be.
    fn locate(&mut self, path: &NodePath) -> Result<Option<&Location>> {
        let location = match self.location.take() {
            Some(mut last) if last.is_beside(path) => last.turn_to(path).map(|()| last),
            _ => Location::find(&self.root, path, &self.mounts),
        };
        self.location = reachable(location)?;
        Ok(self.location.as_ref())
    }

    /// Reads what the container has of an attachment that is a mount.
    fn read_mount(
        &self,
        attachment: &Attachment,
        number: Option<DeviceNumber>,
        inspected: &mut Inspected,
    ) -> Result<()> {
        let Attachment { serial, container_id, path, .. } = attachment;
        let identity = MountIdentity::new(serial, container_id, path, number);
        let directory = match self.root.existing(path.as_str()) {
            Ok(Some(directory)) => directory,
            Ok(None) => return Ok(()),
            Err(error) if error.is_unreachable_path() => return Ok(()),
            Err(error) => return Err(error),
        };
        let found = Inode::of(&directory).map_err(Error::system("statx", &path.as_str()))?;
        let mut lines = MountLine::all(&self.mountinfo);
        let is_it = |line: &MountLine<'_>| u64::from(line.id) == found.mount;
        let Some(line) = lines.find(|line| is_it(line) && identity.is_shown_by(line)) else {
            return Ok(());
        };
        inspected.node_present = found.is_mounted;
        let kind = str::from_utf8(line.file_system).ok().and_then(Kind::named);
        let space = Space::of(&directory)?;
        inspected.file_system = kind.map(|kind| (kind, space));
        Ok(())
    }
}

/// What is told beside the state of attachments.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Details {
    /// The holders of their disks.
    pub(crate) holders: bool,
    /// The counters of their disks.
    pub(crate) stats: bool,
}

/// Reads the state of attachments, in their order, and what else is asked for. What cannot be told
/// of one attachment is said there.
///
/// # Errors
/// The guest's SCSI hosts cannot be read: nothing is known of any disk.
pub(crate) fn inspect(
    subjects: &[InspectJob],
    details: Details,
    deadline: Instant,
) -> Result<Vec<Inspected>> {
    let hosts = ScsiHost::all()?;
    let mut views = Views::default();
    let mut all = Vec::with_capacity(subjects.len());
    for subject in subjects {
        all.push(inspect_one(subject, details, &hosts, &mut views));
    }
    if details.holders
        && let Err(error) = find_holders(subjects, &mut all, deadline)
    {
        all.iter_mut().for_each(|one| one.holders_unknown = Some(error.message()));
    }
    Ok(all)
}

/// Finds holders without a claim, which could make an open or a mount of another process fail.
fn find_holders(subjects: &[InspectJob], all: &mut [Inspected], deadline: Instant) -> Result<()> {
    let mut disks: Vec<Disk> = Vec::with_capacity(subjects.len());
    for (subject, inspected) in subjects.iter().zip(&*all) {
        let serial = &subject.attachment.serial;
        // A shared disk has several attachments.
        if let Some(disk) = &inspected.disk
            && disks.iter().all(|known| known.serial != *serial)
        {
            disks.push(disk_of(&subject.attachment, subject.container.as_ref().ok(), disk)?);
        }
    }
    let containers =
        distinct_targets(subjects.iter().filter_map(|subject| subject.container.as_ref().ok()));
    let scan = holders::find(&disks, &containers, Scope::All, deadline)?;
    for found in scan.with_the_rest_unknown(&disks) {
        for one in all.iter_mut().filter(|one| one.serial == found.holder.serial) {
            one.holders.push(found.holder.clone());
        }
    }
    Ok(())
}

fn inspect_one<'a>(
    InspectJob { attachment, outcome, container }: &'a InspectJob,
    details: Details,
    hosts: &[ScsiHost],
    views: &mut Views<'a>,
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
        file_system: None,
        holders: Vec::new(),
        unknown: None,
        holders_unknown: None,
    };
    let errors_before = outcome.as_ref().map_or(0, |outcome| outcome.errors_before);
    let errors_before = details.stats.then_some(errors_before);
    let disk = inspect_disk(attachment, errors_before, hosts, &mut inspected);
    let mut unknown = disk.err().map(|error| error.message());
    let number = inspected
        .disk
        .as_ref()
        .map(|disk| disk.number)
        .or(outcome.as_ref().map(|outcome| outcome.device));
    match container {
        Err(error) => {
            inspected.container = error.into();
            if is_unknown(error) {
                let (id, source) = (displayed(&attachment.container_id), error.clone());
                unknown = unknown.or(Some(Error::Container { id, source }.message()));
            }
        }
        Ok(target) => {
            let found = views.of(target).as_mut().map_err(|why| why.clone()).and_then(|view| {
                let read = view.read(attachment, number, &mut inspected);
                read.map_err(|error| error.message())
            });
            if target.has_ended() {
                inspected.container = ContainerStatus::Stopped;
                inspected.container_started = 0;
            } else {
                unknown = unknown.or(found.err());
            }
        }
    }
    inspected.unknown = unknown;
    inspected
}

/// Whether a container may have the volume although it cannot be entered now.
fn is_unknown(error: &ContainerError) -> bool {
    match error {
        ContainerError::Paused | ContainerError::Unreachable(_) => true,
        ContainerError::Unknown | ContainerError::Created | ContainerError::Stopped => false,
    }
}

/// Reads the disk with the attachment's serial number. It is reported as a whole or not at all; its
/// counters, less the errors that it had before, where those are given.
fn inspect_disk(
    attachment: &Attachment,
    errors_before: Option<u64>,
    hosts: &[ScsiHost],
    inspected: &mut Inspected,
) -> Result<()> {
    // Without the controller there is no disk at it.
    for host in ScsiHost::candidates(hosts, attachment.controller.as_deref()).unwrap_or_default() {
        let device = host.device(attachment.address);
        if let Some(directory) = DiskDirectory::open(device)?
            && directory.serial()?.as_ref() == Some(&attachment.serial)
            && let Some(disk) = directory.disk()?
        {
            let mut stats = None;
            if let Some(before) = errors_before {
                let counted = directory.stats(&disk)?;
                let errors = counted.errors.saturating_sub(before);
                stats = Some(DiskStats { errors, ..counted });
            }
            (inspected.size, inspected.read_only) =
                (directory.size(&disk)?, directory.read_only(&disk)?);
            (inspected.stats, inspected.disk) = (stats, Some(disk));
        }
    }
    Ok(())
}
