//! A container in the guest, started and used through Kata's agent protocol as a shim does.

pub(crate) mod exec;
pub(crate) mod spec;
mod streams;
pub(crate) mod terminal;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

use agent_api::agent::{
    CreateContainerRequest, PauseContainerRequest, RemoveContainerRequest, ResumeContainerRequest,
    SignalProcessRequest, StartContainerRequest, UpdateContainerRequest,
};
use protobuf::MessageField;

use self::spec::{resources, spec};
use crate::{
    Agent, ContainerOptions, DeviceFilter, Error, Guest, environment::AGENT_PORT, vm::vsock::Vsock,
};

/// How long a call of the agent may take with KVM.
const CALL: Duration = Duration::from_secs(15);

/// How long a command of `vm-harness exec` may run.
const EXEC: Duration = Duration::from_secs(24 * 3600);

/// A container. Dropping the value leaves it running; it ends with the sandbox.
#[derive(Debug, Clone)]
pub struct Container {
    id: String,
    agent: Agent,
    guest: Option<Arc<Guest>>,
    /// How many processes were started in it.
    execs: Arc<AtomicU32>,
    /// Capabilities of its processes beside the default ones.
    capabilities: Vec<String>,
}

impl Container {
    /// Creates a container, and does not start it.
    pub(crate) async fn create(
        id: &str,
        options: &ContainerOptions,
        agent: &Agent,
        guest: &Arc<Guest>,
    ) -> Result<Self, Error> {
        let this = Self {
            guest: Some(Arc::clone(guest)),
            capabilities: options.capabilities.clone(),
            ..Self::existing(id, agent)
        };
        let request = CreateContainerRequest {
            container_id: id.to_owned(),
            exec_id: id.to_owned(),
            OCI: MessageField::some(spec(id, options)),
            ..CreateContainerRequest::default()
        };
        this.call("CreateContainer", agent.service().create_container(agent.context(), &request))
            .await?;
        Ok(this)
    }

    /// Finds the container whose ID begins with `id`, in the sandbox of another process with this
    /// run directory.
    ///
    /// # Errors
    /// There is none, or more than one, or the agent does not answer.
    pub async fn find(run_dir: &Path, id: &str) -> Result<Self, Error> {
        let state = only_child(&run_dir.join("sbs"), "")?;
        let container = only_child(&state, id)?;
        let name =
            |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let vsock = Vsock::Hybrid(run_dir.join("vm").join(name(&state)).join("vm.vsock"));
        let limit = Duration::from_secs(10);
        let agent = tokio::time::timeout(limit, Agent::when_it_answers(&vsock, EXEC)).await;
        let agent = agent.map_err(|_| Error::TimedOut {
            awaited: format!("an answer of the agent at {}", vsock.url(AGENT_PORT)),
            limit,
            report: String::new(),
        })?;
        Ok(Self::existing(&name(&container), &agent))
    }

    fn existing(id: &str, agent: &Agent) -> Self {
        Self {
            id: id.to_owned(),
            agent: agent.clone(),
            guest: None,
            execs: Arc::default(),
            capabilities: Vec::new(),
        }
    }

    /// Returns its ID.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Starts it.
    ///
    /// # Errors
    /// The agent refuses, or does not answer.
    pub async fn start(&self) -> Result<(), Error> {
        let request = StartContainerRequest { container_id: self.id.clone(), ..Default::default() };
        self.call(
            "StartContainer",
            self.agent.service().start_container(self.agent.context(), &request),
        )
        .await?;
        Ok(())
    }

    /// Sends `signal` to its first process.
    ///
    /// # Errors
    /// The agent refuses, or does not answer.
    pub async fn signal(&self, signal: i32) -> Result<(), Error> {
        let request = SignalProcessRequest {
            container_id: self.id.clone(),
            exec_id: self.id.clone(),
            signal: signal.unsigned_abs(),
            ..Default::default()
        };
        self.call(
            "SignalProcess",
            self.agent.service().signal_process(self.agent.context(), &request),
        )
        .await?;
        Ok(())
    }

    /// Waits until its first process has ended, and returns the exit status. The agent forgets the
    /// process then: another wait, or a signal, fails.
    ///
    /// # Errors
    /// The agent refuses, or does not answer.
    pub async fn wait(&self) -> Result<i32, Error> {
        self.wait_process(&self.id).await
    }

    /// Kills its first process and waits until it has ended.
    ///
    /// # Errors
    /// The agent refuses, or does not answer.
    pub async fn kill(&self) -> Result<(), Error> {
        self.signal(libc::SIGKILL).await?;
        self.wait().await?;
        Ok(())
    }

    /// Removes it.
    ///
    /// # Errors
    /// The agent refuses, or does not answer.
    pub async fn remove(&self) -> Result<(), Error> {
        let request =
            RemoveContainerRequest { container_id: self.id.clone(), ..Default::default() };
        self.call(
            "RemoveContainer",
            self.agent.service().remove_container(self.agent.context(), &request),
        )
        .await?;
        Ok(())
    }

    /// Changes its device rules (`UpdateContainer`).
    ///
    /// # Errors
    /// The agent refuses, or does not answer.
    pub async fn update(&self, filter: DeviceFilter) -> Result<(), Error> {
        let request = UpdateContainerRequest {
            container_id: self.id.clone(),
            resources: MessageField::some(resources(filter)),
            ..Default::default()
        };
        self.call(
            "UpdateContainer",
            self.agent.service().update_container(self.agent.context(), &request),
        )
        .await?;
        Ok(())
    }

    /// Freezes its processes (`PauseContainer`).
    ///
    /// # Errors
    /// The agent refuses, or does not answer.
    pub async fn pause(&self) -> Result<(), Error> {
        let request = PauseContainerRequest { container_id: self.id.clone(), ..Default::default() };
        let answer = self.agent.service().pause_container(self.agent.context(), &request);
        self.call("PauseContainer", answer).await.map(drop)
    }

    /// Lets its processes go on (`ResumeContainer`).
    ///
    /// # Errors
    /// The agent refuses, or does not answer.
    pub async fn resume(&self) -> Result<(), Error> {
        let request =
            ResumeContainerRequest { container_id: self.id.clone(), ..Default::default() };
        let answer = self.agent.service().resume_container(self.agent.context(), &request);
        self.call("ResumeContainer", answer).await.map(drop)
    }

    async fn call<T>(
        &self,
        call: &'static str,
        answer: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, Error> {
        let answer = match &self.guest {
            Some(guest) => guest.wait_for(call, CALL, answer).await?,
            None => answer.await,
        };
        answer.map_err(|source| Error::Agent { call, source })
    }
}

/// Returns the only directory in `parent` whose name begins with `prefix`.
fn only_child(parent: &Path, prefix: &str) -> Result<PathBuf, Error> {
    let entries = fs::read_dir(parent).map_err(Error::file("read", parent))?;
    let mut children = entries.flatten().map(|entry| entry.path()).filter(|path| {
        path.is_dir()
            && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
    });
    match (children.next(), children.next()) {
        (Some(child), None) => Ok(child),
        (None, _) => Err(Error::Missing {
            what: format!("{}/{prefix}*", parent.display()),
            remedy: "give a run directory and a container that `vm-harness boot` printed",
        }),
        (Some(_), Some(_)) => Err(Error::Missing {
            what: format!("a unique {}/{prefix}*", parent.display()),
            remedy: "several names begin with this: give more of the ID",
        }),
    }
}
