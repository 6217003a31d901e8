//! Where a Kata host keeps what belongs to a sandbox.
//!
//! | | Go runtime, `/run/vc` | Rust runtime, `/run/kata` |
//! |---|---|---|
//! | QMP | `vm/<sid>/extra-monitor.sock`, then `vm/<sid>/qmp.sock` | has to be named |
//! | agent | `sbs/<sid>/shim-monitor.sock`, else `sbs/<sid>/persist.json` | `<sid>/shim-monitor.sock` |
//! | containers | `sbs/<sid>/<cid>/` | – |
//!
//! See [Kata's
//! architecture](https://github.com/kata-containers/kata-containers/blob/main/docs/design/architecture/README.md).

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{Deadline, Error, agent::AgentAddress, holders, shim};
use block_volume_qmp::{GREETING_TIMEOUT, Qmp, QmpError};

/// Where sandboxes are looked for when nothing else is said.
pub(crate) const RUN_DIRS: [&str; 2] = ["/run/vc", "/run/kata"];

/// What the user said of the sandbox.
#[derive(Debug, Clone, Default)]
pub struct Search {
    /// In place of the known state directories.
    pub run_dir: Option<PathBuf>,
    /// The sandbox's id or the start of it.
    pub sandbox: Option<String>,
    /// The container's id or the start of it; it tells the sandbox where that is not named.
    pub container: Option<String>,
    /// QEMU's socket.
    pub qmp: Option<PathBuf>,
    /// The agent's address.
    pub agent: Option<AgentAddress>,
}

/// A sandbox, and where to reach its QEMU and its agent.
#[derive(Debug)]
pub struct Place {
    /// The sandbox's whole id.
    pub sandbox: String,
    layout: Layout,
    qmp: Option<PathBuf>,
    agent: Option<AgentAddress>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Layout {
    Go(PathBuf),
    Rust(PathBuf),
    /// Nothing on disk: both sockets were named.
    Nowhere,
}

impl Place {
    /// Finds the sandbox.
    ///
    /// # Errors
    /// An id is not valid, ambiguous or not there, nothing tells the sandbox, or a directory may
    /// not be read.
    pub fn find(search: &Search) -> Result<Self, Error> {
        if let Some(container) = &search.container {
            check_id("container", container)?;
        }
        let roots = match &search.run_dir {
            Some(directory) => vec![directory.clone()],
            None => RUN_DIRS.map(PathBuf::from).to_vec(),
        };
        let (layout, sandbox) = match (&search.sandbox, &search.container) {
            (Some(sandbox), _) => {
                check_id("sandbox", sandbox)?;
                match find_sandbox(&roots, sandbox)? {
                    Some(found) => found,
                    None if search.qmp.is_some() && search.agent.is_some() => {
                        (Layout::Nowhere, sandbox.clone())
                    }
                    None => {
                        return Err(Error::SandboxNotFound {
                            id: sandbox.clone(),
                            searched: roots,
                        });
                    }
                }
            }
            (None, Some(container)) => find_by_container(&roots, container)?,
            (None, None) => return Err(Error::NothingNamed),
        };
        Ok(Self { sandbox, layout, qmp: search.qmp.clone(), agent: search.agent.clone() })
    }

    /// The whole id of the container `prefix`: one that the runtime has noted, or one of
    /// `recorded`, which may be gone.
    ///
    /// # Errors
    /// It is not valid, ambiguous or not there, or it is the sandbox's own.
    pub fn container(&self, prefix: &str, recorded: &[&str]) -> Result<String, Error> {
        check_id("container", prefix)?;
        let container = find_container(&self.layout, &self.sandbox, prefix, recorded)?;
        if container == self.sandbox {
            Err(Error::PauseContainer { container })
        } else {
            Ok(container)
        }
    }

    /// The containers that the runtime has noted, without the sandbox's own.
    ///
    /// # Errors
    /// Its directory may not be read.
    pub fn containers(&self) -> Result<Vec<String>, Error> {
        let Layout::Go(root) = &self.layout else { return Ok(Vec::new()) };
        let mut found = directories(&root.join("sbs").join(&self.sandbox))?;
        found.retain(|id| *id != self.sandbox);
        found.sort_unstable();
        Ok(found)
    }

    /// QEMU's process, as the runtime noted it.
    pub fn qemu_pid(&self) -> Option<i32> {
        let Layout::Go(root) = &self.layout else { return None };
        let noted = shim::state(&root.join("sbs").join(&self.sandbox).join("persist.json")).pid;
        let written = || {
            fs::read_to_string(root.join("vm").join(&self.sandbox).join("pid"))
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        noted.or_else(written).filter(|&pid| holders::is_qemu(pid))
    }

    /// What runs that work on this sandbox lock: `vm/<sid>`, or what there is in its place.
    pub fn lock_directory(&self) -> PathBuf {
        match &self.layout {
            Layout::Go(root) => {
                let directory = root.join("vm").join(&self.sandbox);
                if directory.is_dir() { directory } else { root.join("sbs").join(&self.sandbox) }
            }
            Layout::Rust(root) => root.join(&self.sandbox),
            Layout::Nowhere => {
                let parent = self
                    .qmp
                    .as_deref()
                    .and_then(Path::parent)
                    .filter(|parent| *parent != Path::new(""));
                parent.unwrap_or(Path::new(".")).to_owned()
            }
        }
    }

    /// The agent's address, as named, as the shim tells, or as noted on disk.
    ///
    /// # Errors
    /// None of them tells it.
    pub async fn agent_address(&self, deadline: Deadline) -> Result<AgentAddress, Error> {
        if let Some(address) = &self.agent {
            return Ok(address.clone());
        }
        let directory = match &self.layout {
            Layout::Go(root) => root.join("sbs").join(&self.sandbox),
            Layout::Rust(root) => root.join(&self.sandbox),
            Layout::Nowhere => {
                return Err(Error::AgentUnknown { why: "there is no run directory".into() });
            }
        };
        match shim::agent_url(&directory.join("shim-monitor.sock"), deadline).await {
            Ok(address) => Ok(address),
            Err(why) => shim::state(&directory.join("persist.json"))
                .agent
                .ok_or(Error::AgentUnknown { why }),
        }
    }

    /// What [`agent_address`](Self::agent_address) will most likely say, known at once: the address
    /// that the Go runtime noted.
    pub fn likely_agent_address(&self) -> Option<AgentAddress> {
        match (&self.agent, &self.layout) {
            (None, Layout::Go(root)) => {
                shim::state(&root.join("sbs").join(&self.sandbox).join("persist.json")).agent
            }
            _ => None,
        }
    }

    /// A connection to the sandbox's QEMU.
    ///
    /// # Errors
    /// It is not QEMU, or no socket of it answers.
    pub async fn connect_qmp(&self, deadline: Deadline) -> Result<Qmp, Error> {
        self.connect_qmp_within(deadline, GREETING_TIMEOUT).await
    }

    /// The same with another limit for all greetings together.
    ///
    /// # Errors
    /// As [`connect_qmp`](Self::connect_qmp).
    pub async fn connect_qmp_within(
        &self,
        deadline: Deadline,
        patience: Duration,
    ) -> Result<Qmp, Error> {
        if let Layout::Go(root) = &self.layout {
            let state = shim::state(&root.join("sbs").join(&self.sandbox).join("persist.json"));
            if let Some(hypervisor) = state.hypervisor.filter(|kind| kind != "qemu") {
                return Err(Error::NotQemu { sandbox: self.sandbox.clone(), hypervisor });
            }
        }
        let sockets = match (&self.qmp, &self.layout) {
            (Some(socket), _) => vec![socket.clone()],
            (None, Layout::Go(root)) => {
                let directory = root.join("vm").join(&self.sandbox);
                vec![directory.join("extra-monitor.sock"), directory.join("qmp.sock")]
            }
            (None, Layout::Rust(_) | Layout::Nowhere) => Vec::new(),
        };
        // All greetings together have the time of one.
        let greeting = deadline.within(patience);
        let mut failed = None;
        let mut remaining = u32::try_from(sockets.len()).unwrap_or(1);
        for socket in sockets {
            let share = greeting.within(greeting.remaining() / remaining);
            match Qmp::connect_within(&socket, share, patience).await {
                Ok(mut qmp) => {
                    qmp.set_deadline(deadline);
                    return Ok(qmp);
                }
                Err(QmpError::Connect { source, .. })
                    if source.kind() == io::ErrorKind::NotFound => {}
                Err(e) => failed = Some(e),
            }
            remaining -= 1;
        }
        Err(failed
            .map_or_else(|| Error::NoQmpSocket { sandbox: self.sandbox.clone() }, Error::from))
    }
}

fn check_id(what: &'static str, id: &str) -> Result<(), Error> {
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

/// The directories in `path`, which need not exist.
fn directories(path: &Path) -> Result<Vec<String>, Error> {
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

/// The sandbox of this id below `root`.
fn exact(root: &Path, id: &str) -> Result<Option<Layout>, Error> {
    if is_directory(&root.join("sbs").join(id))? || is_directory(&root.join("vm").join(id))? {
        return Ok(Some(Layout::Go(root.to_owned())));
    }
    let is_rust = is_directory(&root.join(id))? && root.join(id).join("shim-monitor.sock").exists();
    Ok(is_rust.then(|| Layout::Rust(root.to_owned())))
}

/// Every sandbox below `roots`.
pub(crate) fn all(roots: &[PathBuf]) -> Result<Vec<String>, Error> {
    Ok(with_prefix(roots, "")?.into_iter().map(|(_, id)| id).collect())
}

fn find_sandbox(roots: &[PathBuf], prefix: &str) -> Result<Option<(Layout, String)>, Error> {
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
        // Of the VMs that a VM factory keeps, `vm` holds more than there are sandboxes.
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

fn find_container(
    layout: &Layout,
    sandbox: &str,
    prefix: &str,
    recorded: &[&str],
) -> Result<String, Error> {
    let mut found: Vec<String> =
        recorded.iter().filter(|id| id.starts_with(prefix)).map(|&id| id.to_owned()).collect();
    let mut knows_all = false;
    // Only the Go runtime notes the containers; elsewhere the agent knows them by their whole ids.
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

fn find_by_container(roots: &[PathBuf], prefix: &str) -> Result<(Layout, String), Error> {
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
        found.ok_or_else(|| Error::SandboxNeeded { container: prefix.to_owned() })?;
    Ok((layout, sandbox))
}

/// The only one that was found, if any.
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

#[cfg(test)]
#[path = "sandbox_tests.rs"]
mod tests;
