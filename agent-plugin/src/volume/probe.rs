//! What the guest can do, and what exists at paths of a container. Changes nothing.
//!
//! A probe resolves paths by descriptor on the request's own thread. A container whose file system
//! never answers keeps that thread; the caller's time-out ends the call, and nothing else waits for
//! it.

use crate::{
    block::DeviceNumber,
    cgroup::{self, Filter},
    device_node::{Existing, Location, NodeKind, NodePath},
    error::Result,
    kernel::Kernel,
    mount::Mounts,
    mounted::Point,
    namespace::Target,
    scsi::{self, ScsiHost},
    text::displayed,
};

/// What a probe found.
#[derive(Debug)]
pub(crate) struct Probed {
    pub(crate) guest: Guest,
    pub(crate) container: Option<ProbedContainer>,
}

/// What the guest has, apart from containers.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) hosts: Vec<ScsiHost>,
    pub(crate) scan_mode: String,
    pub(crate) kernel: Kernel,
}

/// A running container.
#[derive(Debug)]
pub(crate) struct ProbedContainer {
    pub(crate) user_namespace: bool,
    pub(crate) filter: cgroup::Mode,
    /// Ids of the programs.
    pub(crate) programs: Vec<u32>,
    /// Why the filter cannot be changed; empty: it can.
    pub(crate) filter_refused: String,
    pub(crate) paths: Vec<PathState>,
}

/// The present state of a path in a container.
#[derive(Debug)]
pub(crate) struct PathState {
    pub(crate) path: String,
    /// `None`: the parent cannot be reached safely.
    pub(crate) parent: Option<ParentState>,
    /// What is there already, in words, and its device number: of a block device, or of the file
    /// system that is mounted there.
    pub(crate) taken: Option<(String, Option<DeviceNumber>)>,
}

/// How an attach would make a volume usable at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PathWay {
    Node(NodeKind),
    Mount,
}

/// The directory that would hold a node.
#[derive(Debug)]
pub(crate) struct ParentState {
    pub(crate) file_system: String,
    pub(crate) nodev: bool,
    pub(crate) read_only: bool,
    /// The directory has to be made first; for a mount that may be the mount point itself.
    pub(crate) is_missing: bool,
    /// How an attach would make it usable there, or why it would not.
    pub(crate) way: Result<PathWay>,
}

/// Reads what the guest has, and the state of paths in a container: of nodes first, then of mounts.
pub(crate) fn probe(
    target: Option<&Target>,
    paths: &[NodePath],
    mount_paths: &[NodePath],
) -> Result<Probed> {
    let guest = Guest::with(ScsiHost::all()?, Kernel::tried())?;
    let Some(target) = target else { return Ok(Probed { guest, container: None }) };
    // As an attach does.
    target.check_inside()?;
    let filter = Filter::of(target)?;
    let root = target.root()?;
    let is_asked = !(paths.is_empty() && mount_paths.is_empty());
    let mounts = if is_asked { Mounts::of(&target.mountinfo()?)? } else { Mounts::default() };
    let mut states = Vec::with_capacity(paths.len() + mount_paths.len());
    for (paths, filter) in [(paths, Some(&filter)), (mount_paths, None)] {
        for path in paths {
            let location = reachable(Location::find(&root, path, &mounts))?;
            states.push(PathState::of(path, location.as_ref(), target, filter)?);
        }
    }
    let container = ProbedContainer::of(target, &filter, states);
    Ok(Probed { guest, container: Some(container) })
}

pub(super) fn reachable(location: Result<Location>) -> Result<Option<Location>> {
    match location {
        Ok(location) => Ok(Some(location)),
        Err(error) if error.is_unreachable_path() => Ok(None),
        Err(error) => Err(error),
    }
}

impl Guest {
    pub(super) fn with(hosts: Vec<ScsiHost>, kernel: Kernel) -> Result<Guest> {
        Ok(Guest { hosts, scan_mode: scsi::scan_mode()?, kernel })
    }
}

impl ProbedContainer {
    pub(super) fn of(target: &Target, filter: &Filter<'_>, paths: Vec<PathState>) -> Self {
        Self {
            user_namespace: target.container.user_namespace.is_some(),
            filter: filter.mode(),
            programs: filter.programs().to_vec(),
            filter_refused: filter.check().err().map(|error| error.message()).unwrap_or_default(),
            paths,
        }
    }
}

impl PathState {
    /// Without a filter: of a mount, which needs no right.
    pub(super) fn of(
        path: &NodePath,
        location: Option<&Location>,
        target: &Target,
        filter: Option<&Filter<'_>>,
    ) -> Result<PathState> {
        let mut state = PathState { path: path.as_str().to_owned(), parent: None, taken: None };
        let Some(location) = location else { return Ok(state) };
        let mut is_missing = !location.missing().is_empty();
        let way = match filter {
            Some(filter) => {
                if let Some(existing) = location.existing()? {
                    let number = match existing {
                        Existing::Block(number, _) => Some(number),
                        Existing::Other(_) => None,
                    };
                    state.taken = Some((displayed(&existing), number));
                }
                let is_guarded = filter.mode() != cgroup::Mode::None;
                location.check(target, is_guarded).map(PathWay::Node)
            }
            None => {
                match location.point()? {
                    Point::Missing => is_missing = true,
                    Point::Directory => {}
                    other => state.taken = Some((displayed(&other), location.mounted_device()?)),
                }
                location.check_mount().map(|()| PathWay::Mount)
            }
        };
        state.parent = Some(ParentState {
            file_system: location.file_system(),
            nodev: location.nodev(),
            read_only: location.read_only(),
            is_missing,
            way,
        });
        Ok(state)
    }
}
