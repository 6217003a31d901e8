//! The mount of an attachment: made, or found where the container has it already.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    attachment::{AccessMode, Attachment, Mount, Mounted, Outcome, Way},
    guard::Guard,
    job::AttachJob,
    node::check_access,
    progress::VolumeProgress,
    queue::Cancellation,
};
use crate::{
    block::BlockDevice,
    device_node::Location,
    error::{Conflict, Result},
    file_system::{Detached, Kind, Limit, MountRequest, Owners},
    file_system_error::FileSystemError,
    ids::Ids,
    mount::Mounts,
    mounted::{MountIdentity, Mounting, Point},
    namespace::Target,
    procfs::mountinfo::MountLine,
};

/// What is left of the time when the work on the files of a volume ends, at most: the rollback
/// begins with the deadline.
const RESERVE: Duration = Duration::from_millis(200);

/// Checks what can be known of a mount point before the disk is found.
pub(super) fn check_place(
    AttachJob { attachment, target }: &AttachJob,
    mount: &Mount,
    location: &Location,
) -> Result<()> {
    if let Some(fs_group) = mount.fs_group {
        Ids::of(target)?.group_outside(fs_group.gid)?;
    }
    match location.point()? {
        Point::Missing | Point::Directory => location.check_mount(),
        // It may be the disk's own.
        point @ Point::Mount(_) => match is_ours(attachment, target, point)? {
            Some(_) => Ok(()),
            None => Err(location.taken_by(point)),
        },
        other => Err(location.taken_by(other)),
    }
}

/// Makes the mount, which is attached nowhere yet.
pub(super) fn make(
    job: &AttachJob,
    mount: &Mount,
    disk: &BlockDevice,
    location: Location,
    volume: &mut VolumeProgress,
    guard: &Guard<'_>,
) -> Result<()> {
    let AttachJob { attachment, target } = job;
    let point = location.point()?;
    if let point @ Point::Mount(_) = point {
        let Some(found) = is_ours(attachment, target, point)? else {
            return Err(location.taken_by(point));
        };
        volume.was_there = true;
        volume.way = Some(Way::Mount(found.mounted(target)));
        return found.check(attachment, mount);
    }
    check_access(attachment, disk, volume)?;
    let identity = identity(attachment, &target.id, Some(disk));
    let request = request(attachment, target, mount, disk, &identity)?;
    let changed = Arc::new(AtomicU64::new(0));
    let made =
        detached(target, request, &changed, Some(guard.ticket.cancellation()), guard.deadline)?;
    let (kind, idmapped) = (made.kind, made.idmapped);
    let owners_changed = changed.load(Ordering::Relaxed);
    volume.mounting = Some(Mounting::new(location, target, identity, made)?);
    volume.way = Some(Way::Mount(Mounted { kind, idmapped, owners_changed }));
    Ok(())
}

/// Whose mount it is.
pub(super) fn identity(
    attachment: &Attachment,
    container: &str,
    disk: Option<&BlockDevice>,
) -> MountIdentity {
    let number = disk.map(|disk| disk.number);
    MountIdentity::new(&attachment.serial, container, &attachment.path, number)
}

fn request(
    attachment: &Attachment,
    target: &Target,
    mount: &Mount,
    disk: &BlockDevice,
    identity: &MountIdentity,
) -> Result<MountRequest> {
    let owners = match mount.fs_group {
        Some(fs_group) => {
            let gid = Ids::of(target)?.group_outside(fs_group.gid)?;
            Some(Owners { gid, always: fs_group.always })
        }
        None => None,
    };
    Ok(MountRequest {
        source: identity.source(&disk.name, disk.number),
        kind: mount.kind,
        options: mount.options.clone(),
        read_only: attachment.access == AccessMode::ReadOnly,
        container: (target.id.clone(), target.container.clone()),
        owners,
    })
}

/// Mounts it anew where a detach that failed has unmounted it, as it was recorded. Its files keep
/// their owners.
pub(super) fn restore(
    attachment: &Attachment,
    outcome: Option<&Outcome>,
    target: &Target,
    disk: &BlockDevice,
    until: Instant,
) -> Result<()> {
    let Some(mount) = &attachment.mount else { return Ok(()) };
    let kind = outcome.and_then(|outcome| match outcome.way {
        Way::Mount(mounted) => Some(mounted.kind),
        Way::Node(_) => None,
    });
    let recorded = Mount { kind: kind.or(mount.kind), fs_group: None, ..mount.clone() };
    let path = attachment.path.clone();
    let find = move |root: &_, mounts: &_| Location::find(root, &path, mounts);
    let location = Mounts::visit(target, find)?.finish(until)?;
    // It may not have been unmounted at all.
    if is_ours(attachment, target, location.point()?)?.is_some() {
        return Ok(());
    }
    let identity = identity(attachment, &target.id, Some(disk));
    let request = request(attachment, target, &recorded, disk, &identity)?;
    // A rollback goes on although the request was cancelled.
    let made = detached(target, request, &Arc::default(), None, until)?;
    Mounting::new(location, target, identity, made)?.publish(until)
}

/// Makes the mount on a thread: the disk may not answer, and its files may be many.
fn detached(
    target: &Target,
    request: MountRequest,
    changed: &Arc<AtomicU64>,
    cancellation: Option<Cancellation>,
    deadline: Instant,
) -> Result<Detached> {
    let left = deadline.saturating_duration_since(Instant::now());
    let until = deadline - RESERVE.min(left / 10);
    let (counter, of) = (changed.clone(), target.clone());
    let work = move || {
        let check = || {
            cancellation.as_ref().map_or(Ok(()), Cancellation::check)?;
            of.check_alive()
        };
        request.mount(&counter, &Limit { until, check: &check })
    };
    target.aside(work)?.finish(deadline).map_err(|error| match changed.load(Ordering::Relaxed) {
        // A disk that does not answer any more.
        changed @ 1.. if error.is_time_out() => FileSystemError::Owners { changed }.into(),
        _ => error,
    })
}

/// A mount of this attachment that exists.
struct Found {
    kind: Kind,
    read_only: bool,
}

/// What is mounted at the point, if it is this attachment's.
fn is_ours(attachment: &Attachment, target: &Target, point: Point) -> Result<Option<Found>> {
    let Point::Mount(id) = point else { return Ok(None) };
    let identity = identity(attachment, &target.id, None);
    let text = target.mountinfo()?;
    let mut lines = MountLine::all(&text);
    let line = lines.find(|line| u64::from(line.id) == id && identity.is_shown_by(line));
    Ok(line.and_then(|line| {
        let kind = Kind::named(str::from_utf8(line.file_system).ok()?)?;
        let read_only = line.options == b"ro" || line.options.starts_with(b"ro,");
        Some(Found { kind, read_only })
    }))
}

impl Found {
    fn mounted(&self, target: &Target) -> Mounted {
        let idmapped = target.container.user_namespace.is_some();
        Mounted { kind: self.kind, idmapped, owners_changed: 0 }
    }

    /// Compares it with the request.
    fn check(&self, attachment: &Attachment, mount: &Mount) -> Result<()> {
        let conflict = |existing: String, requested: String| {
            let path = attachment.path.as_str().to_owned();
            Err(Conflict { path, existing, requested }.into())
        };
        let access = if self.read_only { AccessMode::ReadOnly } else { AccessMode::ReadWrite };
        if access != attachment.access {
            return conflict(format!("{access} access"), format!("{} access", attachment.access));
        }
        match mount.kind {
            Some(kind) if kind != self.kind => {
                conflict(self.kind.name().to_owned(), kind.name().to_owned())
            }
            _ => Ok(()),
        }
    }
}
