//! The fixture: a VM sandbox with an agent, as a Kata host would have it, and everything that a
//! test does with it.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use block_volume_qmp::Qmp;
use host_trigger::Deadline;
use rand::Rng as _;

use crate::{
    Accelerator, Agent, Container, ContainerOptions, EcrRuntime, Environment, Error, Guest,
    Machine, Observer, Plugged, Process, RunDir, Volume,
    accelerator::Trial,
    agent,
    boot::{Boot, Running},
    environment::variable,
};

/// A booted VM with an agent that answers. Dropping it ends QEMU and its helpers, reaps them, and
/// fails the test if the guest's kernel reported a fault.
#[derive(Debug)]
pub struct Sandbox {
    id: String,
    agent: Agent,
    observer: Observer,
    guest: Arc<Guest>,
    run_dir: RunDir,
    environment: Environment,
    agent_url: String,
    plugin_port: u32,
    cid: u32,
    image: PathBuf,
    booted_in: Duration,
    fault_is_meant: AtomicBool,
}

impl Sandbox {
    /// Boots the default image.
    ///
    /// # Errors
    /// Something is missing, or the guest died, or no agent answered in time.
    pub async fn boot(machine: &Machine) -> Result<Self, Error> {
        Self::boot_image("default", machine).await
    }

    /// Boots the image `image` of this build (`default`, or `fault` with the plugin's fail points).
    ///
    /// # Errors
    /// As [`Sandbox::boot`].
    pub async fn boot_image(image: &str, machine: &Machine) -> Result<Self, Error> {
        Self::boot_in(&Environment::from_variables(), image, machine).await
    }

    /// Boots the image `image` of another environment than the variables'.
    ///
    /// # Errors
    /// As [`Sandbox::boot`].
    pub async fn boot_in(
        environment: &Environment,
        image: &str,
        machine: &Machine,
    ) -> Result<Self, Error> {
        let plugin_port = environment.plugin_port(image)?;
        let image = environment.image(image)?;
        let choice = Accelerator::choose()?;
        let trial = Trial::new(&environment.cache);
        let accelerator = if choice.on_trial && trial.has_failed() {
            Accelerator::Tcg
        } else {
            choice.accelerator
        };
        tracing::info!(%accelerator, reason = choice.reason, "accelerator");
        let boot = |accelerator| {
            let boot = Boot { environment, image: &image, machine, accelerator };
            Self::boot_with(boot, plugin_port)
        };
        match boot(accelerator).await {
            Err(error) if choice.on_trial && accelerator == Accelerator::Kvm => {
                tracing::warn!(error = error.chain(), "KVM failed its trial boot: using TCG");
                trial.failed();
                boot(Accelerator::Tcg).await
            }
            result => result,
        }
    }

    async fn boot_with(boot: Boot<'_>, plugin_port: u32) -> Result<Self, Error> {
        let start = Instant::now();
        let id = format!("{:032x}", rand::rng().random::<u128>());
        let Running { cid, mut run_dir, guest, agent, observer, hybrid } = boot.run(&id).await?;
        let agent_url = format!("hvsock://{}:{}", hybrid.display(), agent::PORT);
        run_dir.write_state(&agent_url, guest.qemu.id())?;
        run_dir.serve_shim(agent_url.clone())?;
        // As a shim does: the sandbox itself comes before its containers.
        let request = agent_api::agent::CreateSandboxRequest {
            hostname: "sandbox".to_owned(),
            sandbox_id: id.clone(),
            ..Default::default()
        };
        let created = guest
            .wait_for(
                "CreateSandbox",
                Duration::from_secs(10),
                agent.service().create_sandbox(agent.context(), &request),
            )
            .await?;
        created.map_err(|source| Error::Agent { call: "CreateSandbox", source })?;
        Ok(Self {
            id,
            agent,
            observer,
            guest,
            run_dir,
            environment: boot.environment.clone(),
            agent_url,
            plugin_port,
            cid,
            image: boot.image.to_owned(),
            booted_in: start.elapsed(),
            fault_is_meant: AtomicBool::new(false),
        })
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What `--run-dir` wants.
    pub fn run_dir(&self) -> &Path {
        self.run_dir.path()
    }

    /// The Kata-shaped run directory itself.
    pub fn run_directory(&self) -> &RunDir {
        &self.run_dir
    }

    /// The QMP socket that is meant for `ecr-runtime`.
    pub fn qmp_socket(&self) -> PathBuf {
        self.run_dir.vm().join("qmp.sock")
    }

    /// The address that the shim gives for the agent.
    pub fn agent_url(&self) -> &str {
        &self.agent_url
    }

    /// The vsock port on which the agent serves the plugin; on its own server, unless the
    /// environment says otherwise.
    pub fn plugin_port(&self) -> u32 {
        self.plugin_port
    }

    /// Whether that is a port of the plugin's own, of which the shim's address does not tell.
    pub fn has_own_plugin_port(&self) -> bool {
        self.plugin_port != agent::PORT
    }

    /// The address for `ecr-runtime --agent`.
    pub fn plugin_url(&self) -> String {
        format!("hvsock://{}:{}", self.vsock().display(), self.plugin_port)
    }

    /// The guest's hybrid vsock.
    pub(crate) fn vsock(&self) -> PathBuf {
        self.run_dir.vm().join("vm.vsock")
    }

    /// The guest's vsock context id.
    pub fn guest_cid(&self) -> u32 {
        self.cid
    }

    /// The machine below: QEMU's process, the console.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// A second pair of eyes in the guest.
    pub fn observer(&self) -> &Observer {
        &self.observer
    }

    /// Kata's agent protocol.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// The directory of the image that it was booted from.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// The builds of this environment.
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// From now on a fault of the guest's kernel is what the caller wants.
    pub fn fault_is_meant(&self) {
        self.fault_is_meant.store(true, Ordering::Relaxed);
    }

    /// From the wish for it to the agent's answer.
    pub fn booted_in(&self) -> Duration {
        self.booted_in
    }

    /// A QMP connection of the harness's own, beside the one that `ecr-runtime` uses.
    ///
    /// # Errors
    /// QEMU doesn't answer.
    pub async fn monitor(&self) -> Result<Qmp, Error> {
        let deadline = Deadline::after(self.guest.scaled(Duration::from_secs(10)));
        let connection = Qmp::connect(self.run_dir.vm().join("harness.sock"), deadline).await;
        connection.map_err(|error| Error::Monitor(error.to_string()))
    }

    /// QEMU's version, as it gives it.
    ///
    /// # Errors
    /// QEMU doesn't answer.
    pub async fn qemu_version(&self) -> Result<String, Error> {
        Ok(self.monitor().await?.version().to_owned())
    }

    /// Creates and starts a container.
    ///
    /// # Errors
    /// The agent refuses, or doesn't answer.
    pub async fn try_start_container(
        &self,
        options: &ContainerOptions,
    ) -> Result<Container, Error> {
        let container = self.create_container(options).await?;
        container.start().await?;
        Ok(container)
    }

    /// Creates a container, and doesn't start it.
    ///
    /// # Errors
    /// The agent refuses, or doesn't answer.
    pub async fn create_container(&self, options: &ContainerOptions) -> Result<Container, Error> {
        let id = format!("{:032x}", rand::rng().random::<u128>());
        let container = Container::create(&id, options, &self.agent, &self.guest).await?;
        self.run_dir.add_container(&id)?;
        Ok(container)
    }

    /// Removes `container` and starts a new one of the same id.
    ///
    /// # Errors
    /// The agent refuses, or doesn't answer.
    pub async fn start_anew(&self, container: &Container) -> Result<Container, Error> {
        container.remove().await?;
        let anew = Container::create(
            container.id(),
            &ContainerOptions::default(),
            &self.agent,
            &self.guest,
        )
        .await?;
        anew.start().await?;
        Ok(anew)
    }

    /// Creates and starts a container with the default options.
    ///
    /// # Panics
    /// The agent refuses, or doesn't answer.
    pub async fn start_container(&self) -> Container {
        self.start_container_with(&ContainerOptions::default()).await
    }

    /// Creates and starts a container.
    ///
    /// # Panics
    /// The agent refuses, or doesn't answer.
    pub async fn start_container_with(&self, options: &ContainerOptions) -> Container {
        self.try_start_container(options)
            .await
            .unwrap_or_else(|error| panic!("no container: {}", error.chain()))
    }

    /// `ecr-runtime` as it ships, on this sandbox's run directory.
    ///
    /// # Panics
    /// It was not built.
    pub fn ecr_runtime(&self) -> EcrRuntime {
        let program =
            self.environment.ecr_runtime().unwrap_or_else(|error| panic!("{}", error.chain()));
        self.calling(program)
    }

    /// `ecr-runtime` with the fail points `faults` (`name=action,…`).
    ///
    /// # Panics
    /// It was not built.
    pub fn ecr_runtime_with_faults(&self, faults: &str) -> EcrRuntime {
        let program = self
            .environment
            .ecr_runtime_with_faults()
            .unwrap_or_else(|error| panic!("{}", error.chain()));
        self.calling(program).env("ECR_RUNTIME_FAULT", faults)
    }

    fn calling(&self, program: PathBuf) -> EcrRuntime {
        EcrRuntime::new(
            program,
            self.run_dir(),
            self.has_own_plugin_port().then(|| self.plugin_url()),
        )
    }

    /// The command that this project exists for, ready to be varied or run.
    pub fn hot_plug_command(
        &self,
        container: &Container,
        volumes: &[(&Volume, &str)],
    ) -> EcrRuntime {
        self.ecr_runtime().hot_plug(&self.id, container.id(), volumes)
    }

    /// Hot-plugs `volume` into `container` at `path`.
    ///
    /// # Panics
    /// It fails.
    pub async fn hot_plug(&self, container: &Container, volume: &Volume, path: &str) -> Plugged {
        let finished = self.hot_plug_command(container, &[(volume, path)]).run().await;
        finished.succeeded(&self.guest).remove(0)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let panicking = std::thread::panicking();
        if panicking {
            eprintln!("{}", self.guest.report());
            if let Some(artifacts) = variable("VM_HARNESS_ARTIFACTS") {
                match self.run_dir.keep_logs(Path::new(&artifacts)) {
                    Ok(kept) => eprintln!("--- all of it is in {}", kept.display()),
                    Err(error) => eprintln!("--- it could not be kept: {}", error.chain()),
                }
            }
        }
        let meant = self.fault_is_meant.load(Ordering::Relaxed);
        let splat = self.guest.console.splat().filter(|_| !meant);
        // QEMU first: its back ends should not vanish under it.
        self.guest.qemu.kill();
        self.guest.servers().for_each(Process::kill);
        if let (false, Some(line)) = (panicking, splat) {
            panic!("the guest's kernel reported a fault: {line}\n{}", self.guest.report());
        }
    }
}
