//! What the guest can do, and what exists at paths of a container. Changes nothing.
//!
//! A probe resolves paths by descriptor on the request's own thread. A container whose file system
//! never answers keeps that thread; the caller's time-out ends the call, and nothing else waits for
//! it.

use crate::{
    cgroup::{self, Filter},
    device_node::{Existing, Location, NodeKind, NodePath},
    error::Result,
    kernel::Kernel,
    mount::Mounts,
    namespace::Target,
    scsi::{self, ScsiHost},
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

/// Reads what the guest has, and the state of paths in a container.
pub(crate) fn probe(target: Option<&Target>, paths: &[NodePath]) -> Result<Probed> {
    let guest = Guest::with(ScsiHost::all()?)?;
    let Some(target) = target else { return Ok(Probed { guest, container: None }) };
    // As an attach does.
    target.check_inside()?;
    let filter = Filter::of(target)?;
    let root = target.root()?;
    let mounts = if paths.is_empty() { Mounts::default() } else { Mounts::read(target)? };
    let mut states = Vec::with_capacity(paths.len());
    for path in paths {
        let location = reachable(Location::find(&root, path, &mounts))?;
        states.push(PathState::of(path, location.as_ref(), target, &filter)?);
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
    pub(super) fn with(hosts: Vec<ScsiHost>) -> Result<Guest> {
        Ok(Guest { hosts, scan_mode: scsi::scan_mode()?, kernel: Kernel::tried() })
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
    pub(super) fn of(
        path: &NodePath,
        location: Option<&Location>,
        target: &Target,
        filter: &Filter<'_>,
    ) -> Result<PathState> {
        let mut state = PathState { path: path.as_str().to_owned(), parent: None, existing: None };
        if let Some(location) = location {
            state.existing = location.existing()?;
            state.parent = Some(ParentState {
                file_system: location.file_system(),
                nodev: location.nodev(),
                read_only: location.read_only(),
                is_missing: !location.missing().is_empty(),
                kind: location.check(target, filter.mode() != cgroup::Mode::None),
            });
        }
        Ok(state)
    }
}
