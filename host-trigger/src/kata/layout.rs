//! The state directories of Kata's two runtimes: which sandboxes and containers they list.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::Error;

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

pub(super) fn check_id(what: &'static str, id: &str) -> Result<(), Error> {
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
    let is_rust = is_directory(&root.join(id))? && root.join(id).join("shim-monitor.sock").exists();
    Ok(is_rust.then(|| Layout::Rust(root.to_owned())))
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
    only("sandbox", prefix, with_prefix(roots, prefix)?, |(_, id)| id)
}

fn with_prefix(roots: &[PathBuf], prefix: &str) -> Result<Vec<(Layout, String)>, Error> {
    let mut found: Vec<(Layout, String)> = Vec::new();
    for root in roots {
        // A VM factory keeps VMs in `vm` that are no sandboxes.
        let go = if is_directory(&root.join("sbs"))? { root.join("sbs") } else { root.join("vm") };
        let go = directories(&go)?.into_iter().map(|id| (Layout::Go(root.clone()), id));
        let rust = directories(root)?
            .into_iter()
            .filter(|id| root.join(id).join("shim-monitor.sock").exists());
        let rust = rust.map(|id| (Layout::Rust(root.clone()), id));
        found.extend(go.chain(rust).filter(|(_, id)| id.starts_with(prefix)));
    }
    Ok(found)
}

pub(super) fn find_container(
    layout: &Layout,
    sandbox: &str,
    prefix: &str,
    recorded: &[&str],
) -> Result<String, Error> {
    let mut found: Vec<String> =
        recorded.iter().filter(|id| id.starts_with(prefix)).map(|&id| id.to_owned()).collect();
    let mut knows_all = false;
    // Only the Go runtime lists the containers. Elsewhere the full ID must be given, and the agent
    // knows it.
    if let Layout::Go(root) = layout {
        let directory = root.join("sbs").join(sandbox);
        knows_all = is_directory(&directory)?;
        found.extend(directories(&directory)?.into_iter().filter(|id| id.starts_with(prefix)));
    }
    found.sort_unstable();
    found.dedup();
    if found.iter().any(|id| id == prefix) {
        return Ok(prefix.to_owned());
    }
    match only("container", prefix, found, |id| id)? {
        Some(id) => Ok(id),
        None if knows_all => {
            Err(Error::ContainerNotFound { id: prefix.to_owned(), sandbox: sandbox.to_owned() })
        }
        None => Ok(prefix.to_owned()),
    }
}

pub(super) fn find_by_container(
    roots: &[PathBuf],
    prefix: &str,
) -> Result<(Layout, String), Error> {
    let mut found = Vec::new();
    for root in roots {
        for sandbox in directories(&root.join("sbs"))? {
            let containers = directories(&root.join("sbs").join(&sandbox))?.into_iter();
            let containers = containers.filter(|id| id.starts_with(prefix));
            found.extend(containers.map(|id| (Layout::Go(root.clone()), sandbox.clone(), id)));
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
