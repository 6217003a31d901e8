//! The state directories of Kata's two runtimes: which sandboxes and containers they list. The Rust
//! runtime lists no containers: the bundles do.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use block_volume_qmp::Trust;

use super::bundle::Bundles;
use crate::Error;

/// The default state directories.
const RUN_DIRS: [&str; 2] = ["/run/vc", "/run/kata"];

/// The state directories: the one that is named, or the default ones, after those of the VMM's
/// user.
pub fn roots(named: Option<&Path>, vmm_user: Option<u32>) -> Vec<PathBuf> {
    if let Some(named) = named {
        return vec![named.to_owned()];
    }
    let theirs = vmm_user.into_iter().flat_map(|user| {
        let theirs = Trust::user_run_dir(user);
        RUN_DIRS.map(|directory| theirs.join(directory.trim_start_matches('/')))
    });
    theirs.chain(RUN_DIRS.map(PathBuf::from)).collect()
}

/// How the runtime of a sandbox lays out its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Layout {
    /// The Go runtime's, below this directory.
    Go(PathBuf),
    /// The Rust runtime's, below this directory.
    Rust(PathBuf),
    /// No state directory: both sockets were named.
    None,
}

impl Layout {
    /// Whether the runtime is still starting the sandbox: both write its state when it has started.
    pub(super) fn is_starting(&self, sandbox: &str) -> bool {
        let (directory, state) = match self {
            Self::Go(root) => {
                (root.join("vm").join(sandbox), root.join("sbs").join(sandbox).join("persist.json"))
            }
            Self::Rust(root) => (root.join(sandbox), root.join(sandbox).join("state.json")),
            Self::None => return false,
        };
        let is_missing = state.symlink_metadata().is_err_and(|e| {
            matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        });
        // Without its directory the sandbox is gone.
        is_missing && directory.is_dir()
    }
}

pub(crate) fn check_id(what: &'static str, id: &str) -> Result<(), Error> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let starts = id.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts && id.len() <= 128 && id.chars().all(allowed) && !id.contains("..") {
        return Ok(());
    }
    Err(Error::InvalidId { what, id: id.to_owned() })
}

fn is_directory(path: &Path) -> Result<bool, Error> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_dir()),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(false)
        }
        Err(e) => Err(Error::system("stat", path, e)),
    }
}

/// The names of the directories in `path`; none if that does not exist.
pub(super) fn directories(path: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(Error::system("opendir", path, e)),
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter(|name| path.join(name).is_dir()).collect())
}

/// The layout of the sandbox with exactly this ID below `root`.
fn exact(root: &Path, id: &str) -> Result<Option<Layout>, Error> {
    if is_directory(&root.join("sbs").join(id))? || is_directory(&root.join("vm").join(id))? {
        return Ok(Some(Layout::Go(root.to_owned())));
    }
    let is_rust = is_directory(&root.join(id))? && rust_shim(root, id).exists();
    Ok(is_rust.then(|| Layout::Rust(root.to_owned())))
}

/// The socket of the Rust runtime's shim. That of a rootless VMM is not below the VMM's directory.
pub(super) fn rust_shim(root: &Path, id: &str) -> PathBuf {
    let is_rootless = Trust::is_user_run_dir(root);
    let root = if is_rootless { Path::new(RUN_DIRS[1]) } else { root };
    root.join(id).join("shim-monitor.sock")
}

/// Whether there is a sandbox with exactly this ID below `roots`.
///
/// # Errors
/// The ID is invalid, or a directory cannot be read.
pub fn has(roots: &[PathBuf], id: &str) -> Result<bool, Error> {
    for root in roots {
        if exact(root, id)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The IDs of all sandboxes below `roots`.
pub(crate) fn all(roots: &[PathBuf]) -> Result<Vec<String>, Error> {
    Ok(with_prefix(roots, "")?.into_iter().map(|(_, id)| id).collect())
}

pub(super) fn find_sandbox(
    roots: &[PathBuf],
    prefix: &str,
) -> Result<Option<(Layout, String)>, Error> {
    for root in roots {
        if let Some(layout) = exact(root, prefix)? {
            return Ok(Some((layout, prefix.to_owned())));
        }
    }
    let found = only("sandbox", prefix, with_prefix(roots, prefix)?, |(_, id)| id)?;
    if found.is_some() {
        return Ok(found);
    }
    // The Go runtime lists a sandbox in `sbs` when it has started.
    let mut starting = Vec::new();
    for root in roots {
        let ids = directories(&root.join("vm"))?.into_iter().filter(|id| id.starts_with(prefix));
        starting.extend(ids.map(|id| (Layout::Go(root.clone()), id)));
    }
    only("sandbox", prefix, starting, |(_, id)| id)
}

fn with_prefix(roots: &[PathBuf], prefix: &str) -> Result<Vec<(Layout, String)>, Error> {
    let mut found: Vec<(Layout, String)> = Vec::new();
    for root in roots {
        // A VM factory keeps VMs in `vm` that are no sandboxes.
        let go = if is_directory(&root.join("sbs"))? { root.join("sbs") } else { root.join("vm") };
        let go = directories(&go)?.into_iter().map(|id| (Layout::Go(root.clone()), id));
        let rust = directories(root)?.into_iter().filter(|id| rust_shim(root, id).exists());
        let rust = rust.map(|id| (Layout::Rust(root.clone()), id));
        for (layout, id) in go.chain(rust).filter(|(_, id)| id.starts_with(prefix)) {
            // The shim's socket of a rootless VMM is in a directory of its own.
            if !found.iter().any(|(_, one)| *one == id) {
                found.push((layout, id));
            }
        }
    }
    Ok(found)
}

/// What tells which containers there are: the runtime's state, or the engine's bundles.
#[derive(Debug, Clone, Copy)]
pub(super) struct Containers<'a> {
    pub(super) bundles: &'a Bundles,
    pub(super) trust: &'a Trust,
}

impl Containers<'_> {
    /// The IDs of the containers of `sandbox` that begin with `prefix`.
    pub(super) fn of(
        self,
        layout: &Layout,
        sandbox: &str,
        prefix: &str,
    ) -> Result<Vec<String>, Error> {
        let mut found = match layout {
            Layout::Go(root) => directories(&root.join("sbs").join(sandbox))?,
            Layout::Rust(_) => {
                let containers = self.bundles.containers(prefix, self.trust)?.into_iter();
                let its = containers.filter(|container| container.sandbox == sandbox);
                its.map(|container| container.id).collect()
            }
            Layout::None => Vec::new(),
        };
        found.retain(|id| id.starts_with(prefix));
        Ok(found)
    }

    /// Whether all containers of `sandbox` are listed. Elsewhere the full ID must be given, and the
    /// agent knows it.
    fn are_all_known(self, layout: &Layout, sandbox: &str) -> Result<bool, Error> {
        match layout {
            Layout::Go(root) => is_directory(&root.join("sbs").join(sandbox)),
            // The engine has a bundle of the pause container.
            Layout::Rust(_) => self.bundles.has(sandbox),
            Layout::None => Ok(false),
        }
    }

    pub(super) fn find(
        self,
        layout: &Layout,
        sandbox: &str,
        prefix: &str,
        recorded: &[&str],
    ) -> Result<String, Error> {
        let mut found: Vec<String> =
            recorded.iter().filter(|id| id.starts_with(prefix)).map(|&id| id.to_owned()).collect();
        found.extend(self.of(layout, sandbox, prefix)?);
        found.sort_unstable();
        found.dedup();
        if found.iter().any(|id| id == prefix) {
            return Ok(prefix.to_owned());
        }
        match only("container", prefix, found, |id| id)? {
            Some(id) => Ok(id),
            None if self.are_all_known(layout, sandbox)? => {
                Err(Error::ContainerNotFound { id: prefix.to_owned(), sandbox: sandbox.to_owned() })
            }
            None => Ok(prefix.to_owned()),
        }
    }

    /// Finds the sandbox of the only container whose ID begins with `prefix`.
    pub(super) fn sandbox_of(
        self,
        roots: &[PathBuf],
        prefix: &str,
    ) -> Result<(Layout, String), Error> {
        let mut found = Vec::new();
        let bundled = self.bundles.containers(prefix, self.trust)?;
        for root in roots {
            for sandbox in directories(&root.join("sbs"))? {
                let containers = directories(&root.join("sbs").join(&sandbox))?.into_iter();
                let containers = containers.filter(|id| id.starts_with(prefix));
                found.extend(containers.map(|id| (Layout::Go(root.clone()), sandbox.clone(), id)));
            }
            for container in &bundled {
                if found.iter().any(|(_, _, id)| *id == container.id) {
                    continue;
                }
                // The Go runtime's own state says more: a container may have ended.
                if let Some(layout @ Layout::Rust(_)) = exact(root, &container.sandbox)? {
                    found.push((layout, container.sandbox.clone(), container.id.clone()));
                }
            }
        }
        if let Some(exact) = found.iter().position(|(_, _, id)| id == prefix) {
            let (layout, sandbox, _) = found.swap_remove(exact);
            return Ok((layout, sandbox));
        }
        let found = only("container", prefix, found, |(_, _, id)| id)?;
        let (layout, sandbox, _) =
            found.ok_or_else(|| Error::SandboxUnknown { container: prefix.to_owned() })?;
        Ok((layout, sandbox))
    }
}

/// Returns the only one of `found`, if any.
fn only<T>(
    what: &'static str,
    prefix: &str,
    mut found: Vec<T>,
    id: impl Fn(&T) -> &String,
) -> Result<Option<T>, Error> {
    if found.len() > 1 {
        let mut found: Vec<_> = found.iter().map(|one| id(one).clone()).collect();
        found.sort_unstable();
        found.truncate(8);
        return Err(Error::AmbiguousId { what, prefix: prefix.to_owned(), found });
    }
    Ok(found.pop())
}
