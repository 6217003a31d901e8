//! Where a Kata host keeps the state of a sandbox.
//!
//! | | Go runtime, `/run/vc` | Rust runtime, `/run/kata` |
//! |---|---|---|
//! | QMP | `vm/<sid>/extra-monitor.sock`, then `vm/<sid>/qmp.sock` | `<sid>/extra-monitor.sock` |
//! | agent | `sbs/<sid>/shim-monitor.sock`, else `sbs/<sid>/persist.json` | `<sid>/shim-monitor.sock` |
//! | containers | `sbs/<sid>/<cid>/` | the engine's [bundles](super::bundle) |
//!
//! With a rootless VMM both directories are below `/run/user/UID`, except for `shim-monitor.sock`,
//! which stays where it is.
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

use block_volume_qmp::{Command, GREETING_TIMEOUT, Qmp, QmpError, Replies, Server, Trust};

use super::{
    agent_address::AgentAddress,
    bundle::Bundles,
    layout::{Containers, Layout, check_id, find_sandbox, rust_shim},
    node::runtime_class::Runtime,
    run_file,
    shim::{self, NoUrl},
};
use crate::{Deadline, Error};

pub(crate) use super::layout::all;
pub use super::layout::{has, roots};

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
    /// All IDs that the container has had since its pod began, the newest first, if it was named by
    /// its pod.
    pub attempts: Vec<String>,
    /// QEMU's QMP socket.
    pub qmp: Option<PathBuf>,
    /// The agent's address.
    pub agent: Option<AgentAddress>,
    /// The user that the VMM runs as, if it has directories of its own.
    pub vmm_user: Option<u32>,
    /// Where containers' bundles are.
    pub bundles: Bundles,
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
    bundles: Bundles,
    attempts: Vec<String>,
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
        let roots = roots(search.run_dir.as_deref(), search.vmm_user);
        let trust = Trust::with_vmm_user(search.vmm_user);
        let containers = Containers { bundles: &search.bundles, trust: &trust };
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
            (None, Some(container)) => containers.sandbox_of(&roots, container)?,
            (None, None) => return Err(Error::SandboxNotNamed),
        };
        let agent = search.agent.clone().map(|address| address.trusting(&trust));
        let (qmp, bundles) = (search.qmp.clone(), search.bundles.clone());
        let attempts = search.attempts.clone();
        let found = Self { id: sandbox, layout, qmp, agent, trust, bundles, attempts };
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
        let container = self.known().find(&self.layout, &self.id, prefix, recorded)?;
        if container == self.id { Err(Error::PauseContainer { container }) } else { Ok(container) }
    }

    /// All IDs that the container has had, the newest first, if it was named by its pod.
    pub(crate) fn attempts(&self) -> &[String] {
        &self.attempts
    }

    fn known(&self) -> Containers<'_> {
        Containers { bundles: &self.bundles, trust: &self.trust }
    }

    /// The containers that the runtime or the engine lists, without the pause container.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn containers(&self) -> Result<Vec<String>, Error> {
        let mut found = self.known().of(&self.layout, &self.id, "")?;
        found.retain(|id| *id != self.id);
        found.sort_unstable();
        Ok(found)
    }

    /// The runtime that started it, if its state directory tells.
    pub(crate) fn runtime(&self) -> Option<Runtime> {
        match self.layout {
            Layout::Go(_) => Some(Runtime::Go),
            Layout::Rust(_) => Some(Runtime::Rust),
            Layout::None => None,
        }
    }

    /// An annotation of the pod, if the engine's bundle of the pause container has it.
    pub(crate) fn annotation(&self, name: &str) -> Option<String> {
        self.bundles.annotation(&self.id, name, &self.trust)
    }

    /// QEMU's process ID, as the runtime recorded it. It may be out of date.
    ///
    /// # Errors
    /// A file with it cannot be read, or is not trusted.
    pub fn qemu_pid(&self) -> Result<Option<i32>, Error> {
        let Layout::Go(root) = &self.layout else { return Ok(None) };
        self.pid(root, &self.state(root)?)
    }

    fn pid(&self, root: &Path, state: &shim::State) -> Result<Option<i32>, Error> {
        match state.pid {
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
        let Some(socket) = self.shim_socket() else {
            return Err(Error::AgentUnknown { why: "the sandbox has no state directory".into() });
        };
        match shim::agent_url(&socket, &self.trust, deadline).await {
            Ok(address) => Ok(address),
            Err(NoUrl::Untrusted(why)) => Err(why.into()),
            Err(NoUrl::Failed(why)) => {
                shim::state(&socket.with_file_name("persist.json"), &self.trust)?
                    .agent
                    .ok_or_else(|| self.or_starting(Error::AgentUnknown { why }))
            }
        }
    }

    /// The socket on which the shim answers requests, if the state directory tells.
    pub(crate) fn shim_socket(&self) -> Option<PathBuf> {
        match &self.layout {
            Layout::Go(root) => Some(root.join("sbs").join(&self.id).join("shim-monitor.sock")),
            Layout::Rust(root) => Some(rust_shim(root, &self.id)),
            Layout::None => None,
        }
    }

    /// Replaces an error by [`Error::SandboxStarting`] if that is why a socket of the sandbox's own
    /// does not exist or does not respond yet.
    #[must_use]
    pub(crate) fn or_starting(&self, error: Error) -> Error {
        let is_missing = match &error {
            Error::NoQmpSocket { .. } => self.qmp.is_none(),
            Error::Qmp(QmpError::Connect { source, .. }) => {
                self.qmp.is_none() && source.kind() == io::ErrorKind::ConnectionRefused
            }
            Error::AgentUnknown { .. }
            | Error::AgentUnreachable { .. }
            | Error::AgentNotResponding { .. } => self.agent.is_none(),
            _ => false,
        };
        match is_missing && self.layout.is_starting(&self.id) {
            true => Error::SandboxStarting { sandbox: self.id.clone() },
            false => error,
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
        Ok(self.connect_qmp_within(deadline, GREETING_TIMEOUT, &[]).await?.0)
    }

    /// As [`connect_qmp`](Self::connect_qmp), with another limit for all greetings together. The
    /// queries `first` are sent without waiting for the greeting.
    ///
    /// # Errors
    /// As [`connect_qmp`](Self::connect_qmp).
    pub async fn connect_qmp_within(
        &self,
        deadline: Deadline,
        patience: Duration,
        first: &[Command<'_>],
    ) -> Result<(Qmp, Replies), Error> {
        let mut pid = None;
        if let Layout::Go(root) = &self.layout {
            let state = self.state(root)?;
            if let Some(hypervisor) = state.hypervisor.clone().filter(|kind| kind != "qemu") {
                return Err(Error::NotQemu { sandbox: self.id.clone(), hypervisor });
            }
            pid = self.pid(root, &state)?;
        }
        let sockets = match (&self.qmp, &self.layout) {
            (Some(socket), _) => vec![socket.clone()],
            (None, Layout::Go(root)) => {
                let directory = root.join("vm").join(&self.id);
                let mut sockets = vec![directory.join("extra-monitor.sock")];
                // The shim connects to this one while the sandbox starts, and would wait for us.
                if !self.layout.is_starting(&self.id) {
                    sockets.push(directory.join("qmp.sock"));
                }
                sockets
            }
            // The shim holds qmp.sock from the start.
            (None, Layout::Rust(root)) => vec![root.join(&self.id).join("extra-monitor.sock")],
            (None, Layout::None) => Vec::new(),
        };
        let server = Server::Qemu(pid);
        // All greetings together have the time limit of one.
        let greeting = deadline.capped(patience);
        let mut failed = None;
        let mut remaining = u32::try_from(sockets.len()).unwrap_or(1);
        for socket in sockets {
            let share = greeting.within(greeting.remaining() / remaining);
            let trust = (&self.trust, server);
            match Qmp::connect_trusted(&socket, trust, deadline, share, first).await {
                Ok(connected) => return Ok(connected),
                Err(QmpError::Connect { source, .. })
                    if source.kind() == io::ErrorKind::NotFound => {}
                // Another socket does not make up for it.
                Err(e @ QmpError::Untrusted(_)) => return Err(e.into()),
                Err(e) => failed = Some(e),
            }
            remaining -= 1;
        }
        let none = || Error::NoQmpSocket { sandbox: self.id.clone() };
        Err(self.or_starting(failed.map_or_else(none, Error::from)))
    }
}

#[cfg(test)]
#[path = "sandbox_tests.rs"]
mod tests;
