//! The fixture of a test: a sandbox with an agent, as on a Kata host, and what a test does with it.

mod calls;
mod containers;
pub(crate) mod ecr_runtime;
pub(crate) mod footprint;
pub(crate) mod plugin_client;
pub(crate) mod snapshot;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use block_volume_qmp::Deadline;
use block_volume_qmp::Qmp;

use crate::{
    Accelerator, Agent, Environment, Error, Guest, Machine, Observer, Process, RunDir,
    environment::{AGENT_PORT, variable},
    vm::{BootOptions, accelerator::KvmTrial, boot::BootedVm},
};

/// A running VM with an agent that answers. Dropping it ends and reaps QEMU and the servers of its
/// devices, and fails the test if the guest's kernel reported a fault.
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
    boot_time: Duration,
    expects_kernel_fault: AtomicBool,
}

impl Sandbox {
    /// Boots the default image.
    ///
    /// # Errors
    /// The machine lacks something, or the guest died, or no agent answered in time.
    pub async fn boot(machine: &Machine) -> Result<Self, Error> {
        Self::boot_image("default", machine).await
    }

    /// Boots the image `image` of this build (`default`, or `fault` with the plugin's fault
    /// points).
    ///
    /// # Errors
    /// As [`Sandbox::boot`].
    pub async fn boot_image(image: &str, machine: &Machine) -> Result<Self, Error> {
        Self::boot_in(&Environment::from_variables(), image, machine).await
    }

    /// Boots the image `image` of the given environment.
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
        let trial = KvmTrial::new(&environment.cache);
        let accelerator = if choice.needs_trial && trial.has_failed() {
            Accelerator::Tcg
        } else {
            choice.accelerator
        };
        tracing::info!(%accelerator, reason = choice.reason, "accelerator");
        let boot = |accelerator| {
            let boot = BootOptions { environment, image: &image, machine, accelerator };
            Self::boot_with(boot, plugin_port)
        };
        match boot(accelerator).await {
            Err(error) if choice.needs_trial && accelerator == Accelerator::Kvm => {
                tracing::warn!(error = error.chain(), "the trial boot with KVM failed: using TCG");
                trial.record_failure();
                boot(Accelerator::Tcg).await
            }
            result => result,
        }
    }

    async fn boot_with(boot: BootOptions<'_>, plugin_port: u32) -> Result<Self, Error> {
        let start = Instant::now();
        let id = random_id();
        let BootedVm { cid, mut run_dir, guest, agent, observer, hybrid } = boot.run(&id).await?;
        let agent_url = format!("hvsock://{}:{AGENT_PORT}", hybrid.display());
        run_dir.write_state(&agent_url, guest.qemu.id())?;
        run_dir.serve_shim(agent_url.clone())?;
        // A shim creates the sandbox before its containers, too.
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
            boot_time: start.elapsed(),
            expects_kernel_fault: AtomicBool::new(false),
        })
    }

    /// Returns its ID.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the path for `--run-dir`.
    pub fn run_dir(&self) -> &Path {
        self.run_dir.path()
    }

    /// Returns the run directory, which has Kata's layout.
    pub fn run_directory(&self) -> &RunDir {
        &self.run_dir
    }

    /// Returns the QMP socket for `ecr-runtime`.
    pub fn qmp_socket(&self) -> PathBuf {
        self.run_dir.vm().join("qmp.sock")
    }

    /// Returns the agent's address, as the shim reports it.
    pub fn agent_url(&self) -> &str {
        &self.agent_url
    }

    /// Returns the vsock port on which the agent serves the plugin: the agent's own, unless the
    /// environment has another one.
    pub fn plugin_port(&self) -> u32 {
        self.plugin_port
    }

    /// Whether that is not the agent's own port, so that the shim does not report it.
    pub fn has_own_plugin_port(&self) -> bool {
        self.plugin_port != AGENT_PORT
    }

    /// Returns the address for `ecr-runtime --agent`.
    pub fn plugin_url(&self) -> String {
        format!("hvsock://{}:{}", self.vsock().display(), self.plugin_port)
    }

    /// Returns the socket of the guest's hybrid vsock.
    pub(crate) fn vsock(&self) -> PathBuf {
        self.run_dir.vm().join("vm.vsock")
    }

    /// Returns the guest's vsock context ID.
    pub fn guest_cid(&self) -> u32 {
        self.cid
    }

    /// Returns the guest: QEMU's process, the console.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Returns the observer, which shows the guest's state independently of the agent.
    pub fn observer(&self) -> &Observer {
        &self.observer
    }

    /// Returns the client of Kata's agent protocol.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Returns the directory of the image that it was booted from.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Returns the environment that it was booted in.
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// From now on, dropping the sandbox does not fail the test if the guest's kernel reported a
    /// fault.
    pub fn expect_kernel_fault(&self) {
        self.expects_kernel_fault.store(true, Ordering::Relaxed);
    }

    /// Returns the time from the call that booted it to the agent's answer.
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// Opens a QMP connection on the harness's own socket, beside the one for `ecr-runtime`.
    ///
    /// # Errors
    /// QEMU does not answer.
    pub async fn monitor(&self) -> Result<Qmp, Error> {
        let deadline = Deadline::after(self.guest.scaled(Duration::from_secs(10)));
        let connection = Qmp::connect(self.run_dir.vm().join("harness.sock"), deadline).await;
        connection.map_err(|error| Error::Monitor(error.to_string()))
    }

    /// Returns the version that QEMU reports.
    ///
    /// # Errors
    /// QEMU does not answer.
    pub async fn qemu_version(&self) -> Result<String, Error> {
        Ok(self.monitor().await?.version().to_owned())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let panicking = std::thread::panicking();
        if panicking {
            eprintln!("{}", self.guest.report());
            if let Some(artifacts) = variable("VM_HARNESS_ARTIFACTS") {
                match self.run_dir.keep_logs(Path::new(&artifacts)) {
                    Ok(kept) => eprintln!("--- the complete logs are in {}", kept.display()),
                    Err(error) => eprintln!("--- cannot keep the logs: {}", error.chain()),
                }
            }
        }
        let expected = self.expects_kernel_fault.load(Ordering::Relaxed);
        let splat = self.guest.console.splat().filter(|_| !expected);
        // QEMU first, so that it does not lose its back ends while it runs.
        self.guest.qemu.kill();
        self.guest.servers().for_each(Process::kill);
        if let (false, Some(line)) = (panicking, splat) {
            panic!("the guest's kernel reported a fault: {line}\n{}", self.guest.report());
        }
    }
}

/// Returns a new ID for a sandbox or a container: 32 hexadecimal digits.
fn random_id() -> String {
    format!("{:032x}", fastrand::u128(..))
}
