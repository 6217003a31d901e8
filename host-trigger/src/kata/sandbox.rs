//! Where a Kata host keeps the state of a sandbox.
//!
//! | | Go runtime, `/run/vc` | Rust runtime, `/run/kata` |
//! |---|---|---|
//! | QMP | `vm/<sid>/extra-monitor.sock`, then `vm/<sid>/qmp.sock` | must be named with `--qmp` |
//! | agent | `sbs/<sid>/shim-monitor.sock`, else `sbs/<sid>/persist.json` | `<sid>/shim-monitor.sock` |
//! | containers | `sbs/<sid>/<cid>/` | – |
//!
//! A descriptor of root's goes to whoever listens on the socket. So nothing is used that anybody
//! but root could have put there ([`Trust`]), and QEMU is the process that the runtime recorded.
//!
//! See [Kata's
//! architecture](https://github.com/kata-containers/kata-containers/blob/main/docs/design/architecture/README.md).

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use block_volume_qmp::{GREETING_TIMEOUT, Qmp, QmpError, Server, Trust};

use super::{
    agent_address::AgentAddress,
    layout::{Layout, check_id, directories, find_by_container, find_container, find_sandbox},
    run_file,
    shim::{self, NoUrl},
};
use crate::{Deadline, Error};

pub(crate) use super::layout::all;

/// The default state directories.
pub(crate) const RUN_DIRS: [&str; 2] = ["/run/vc", "/run/kata"];

/// What the user named of the sandbox.
#[derive(Debug, Clone, Default)]
pub struct Search {
    /// A state directory in place of the default ones.
    pub run_dir: Option<PathBuf>,
    /// The sandbox's ID or a unique prefix of it.
    pub sandbox: Option<String>,
    /// The container's ID or a unique prefix of it; the sandbox is found by it if that is not
    /// named.
    pub container: Option<String>,
    /// QEMU's QMP socket.
    pub qmp: Option<PathBuf>,
    /// The agent's address.
    pub agent: Option<AgentAddress>,
    /// The user that the VMM runs as, if it has directories of its own.
    pub vmm_user: Option<u32>,
}

/// A sandbox, and how to reach its QEMU and its agent.
#[derive(Debug)]
pub struct Sandbox {
    /// The sandbox's full ID.
    pub id: String,
    layout: Layout,
    qmp: Option<PathBuf>,
    agent: Option<AgentAddress>,
    trust: Trust,
}

impl Sandbox {
    /// Finds the sandbox.
    ///
    /// # Errors
    /// An ID is invalid, ambiguous or unknown, no sandbox is named, or a directory cannot be read
    /// or is not trusted.
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
                        (Layout::None, sandbox.clone())
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
            (None, None) => return Err(Error::SandboxNotNamed),
        };
        let trust = Trust::with_vmm_user(search.vmm_user);
        let agent = search.agent.clone().map(|address| address.trusting(&trust));
        let found = Self { id: sandbox, layout, qmp: search.qmp.clone(), agent, trust };
        // Whoever owns the directory could hold its lock, too.
        run_file::check_directory(&found.lock_directory(), &found.trust)?;
        Ok(found)
    }

    /// Completes the container ID `prefix` from the containers that the runtime lists and from
    /// `recorded` ones, which may be gone.
    ///
    /// # Errors
    /// It is invalid, ambiguous or unknown, or the sandbox's pause container.
    pub fn container(&self, prefix: &str, recorded: &[&str]) -> Result<String, Error> {
        check_id("container", prefix)?;
        let container = find_container(&self.layout, &self.id, prefix, recorded)?;
        if container == self.id { Err(Error::PauseContainer { container }) } else { Ok(container) }
    }

    /// The containers that the runtime lists, without the pause container.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn containers(&self) -> Result<Vec<String>, Error> {
        let Layout::Go(root) = &self.layout else { return Ok(Vec::new()) };
        let mut found = directories(&root.join("sbs").join(&self.id))?;
        found.retain(|id| *id != self.id);
        found.sort_unstable();
        Ok(found)
    }

    /// QEMU's process ID, as the runtime recorded it. It may be out of date.
    ///
    /// # Errors
    /// A file with it cannot be read, or is not trusted.
    pub fn qemu_pid(&self) -> Result<Option<i32>, Error> {
        let Layout::Go(root) = &self.layout else { return Ok(None) };
        match self.state(root)?.pid {
            Some(recorded) => Ok(Some(recorded)),
            None => shim::pidfile(&root.join("vm").join(&self.id).join("pid"), &self.trust),
        }
    }

    /// What the Go runtime recorded.
    fn state(&self, root: &Path) -> Result<shim::State, Error> {
        shim::state(&root.join("sbs").join(&self.id).join("persist.json"), &self.trust)
    }

    /// The directory that each run on this sandbox locks: `vm/<sid>`, or the one in its place.
    pub fn lock_directory(&self) -> PathBuf {
        match &self.layout {
            Layout::Go(root) => {
                let directory = root.join("vm").join(&self.id);
                if directory.is_dir() { directory } else { root.join("sbs").join(&self.id) }
            }
            Layout::Rust(root) => root.join(&self.id),
            Layout::None => {
                let parent = self
                    .qmp
                    .as_deref()
                    .and_then(Path::parent)
                    .filter(|parent| *parent != Path::new(""));
                parent.unwrap_or(Path::new(".")).to_owned()
            }
        }
    }

    /// The agent's address: as named, as the shim reports, or as recorded on disk.
    ///
    /// # Errors
    /// It is not known, or its source is not trusted.
    pub async fn agent_address(&self, deadline: Deadline) -> Result<AgentAddress, Error> {
        if let Some(address) = &self.agent {
            return Ok(address.clone());
        }
        let directory = match &self.layout {
            Layout::Go(root) => root.join("sbs").join(&self.id),
            Layout::Rust(root) => root.join(&self.id),
            Layout::None => {
                return Err(Error::AgentUnknown {
                    why: "the sandbox has no state directory".into(),
                });
            }
        };
        let socket = directory.join("shim-monitor.sock");
        match shim::agent_url(&socket, &self.trust, deadline).await {
            Ok(address) => Ok(address),
            Err(NoUrl::Untrusted(why)) => Err(why.into()),
            Err(NoUrl::Failed(why)) => shim::state(&directory.join("persist.json"), &self.trust)?
                .agent
                .ok_or(Error::AgentUnknown { why }),
        }
    }

    /// The address that [`agent_address`](Self::agent_address) will most likely return: the one
    /// that the Go runtime recorded. It is known without waiting for the shim.
    pub fn likely_agent_address(&self) -> Option<AgentAddress> {
        match (&self.agent, &self.layout) {
            (None, Layout::Go(root)) => self.state(root).ok()?.agent,
            _ => None,
        }
    }

    /// Connects to the sandbox's QEMU.
    ///
    /// # Errors
    /// The hypervisor is not QEMU, or none of its sockets responds, or the path to one, or its
    /// server, is not trusted.
    pub async fn connect_qmp(&self, deadline: Deadline) -> Result<Qmp, Error> {
        self.connect_qmp_within(deadline, GREETING_TIMEOUT).await
    }

    /// As [`connect_qmp`](Self::connect_qmp), with another limit for all greetings together.
    ///
    /// # Errors
    /// As [`connect_qmp`](Self::connect_qmp).
    pub async fn connect_qmp_within(
        &self,
        deadline: Deadline,
        patience: Duration,
    ) -> Result<Qmp, Error> {
        if let Layout::Go(root) = &self.layout {
            let hypervisor = self.state(root)?.hypervisor;
            if let Some(hypervisor) = hypervisor.filter(|kind| kind != "qemu") {
                return Err(Error::NotQemu { sandbox: self.id.clone(), hypervisor });
            }
        }
        let sockets = match (&self.qmp, &self.layout) {
            (Some(socket), _) => vec![socket.clone()],
            (None, Layout::Go(root)) => {
                let directory = root.join("vm").join(&self.id);
                vec![directory.join("extra-monitor.sock"), directory.join("qmp.sock")]
            }
            (None, Layout::Rust(_) | Layout::None) => Vec::new(),
        };
        let server = Server::Qemu(self.qemu_pid()?);
        // All greetings together have the time limit of one.
        let greeting = deadline.capped(patience);
        let mut failed = None;
        let mut remaining = u32::try_from(sockets.len()).unwrap_or(1);
        for socket in sockets {
            let share = greeting.within(greeting.remaining() / remaining);
            match Qmp::connect_trusted(&socket, (&self.trust, server), share, patience).await {
                Ok(mut qmp) => {
                    qmp.set_deadline(deadline);
                    return Ok(qmp);
                }
                Err(QmpError::Connect { source, .. })
                    if source.kind() == io::ErrorKind::NotFound => {}
                // Another socket does not make up for it.
                Err(e @ QmpError::Untrusted(_)) => return Err(e.into()),
                Err(e) => failed = Some(e),
            }
            remaining -= 1;
        }
        Err(failed.map_or_else(|| Error::NoQmpSocket { sandbox: self.id.clone() }, Error::from))
    }
}

#[cfg(test)]
#[path = "sandbox_tests.rs"]
mod tests;
