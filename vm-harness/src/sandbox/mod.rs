//! The fixture of a test: a sandbox with an agent, as on a Kata host, and what a test does with it.

pub(crate) mod agent_snapshot;
mod calls;
mod containers;
pub(crate) mod ecr_runtime;
pub(crate) mod footprint;
pub(crate) mod plug_client;
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
    Agent, Environment, Error, Guest, Machine, Observer, Process, RunDir, Virsh,
    environment::{AGENT_PORT, variable},
    vm::{BootOptions, accelerator::with_accelerator, boot::BootedVm, vsock::Vsock},
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
    vsock: Vsock,
    wrapped: bool,
    /// The user of a rootless VMM.
    vmm_user: Option<u32>,
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

    /// Boots the default image, as the sandbox with this ID: that of a pod, for example.
    ///
    /// # Errors
    /// As [`Sandbox::boot`].
    pub async fn boot_as(id: &str, machine: &Machine) -> Result<Self, Error> {
        Self::boot_as_in(&Environment::from_variables(), id, machine).await
    }

    /// The same in the given environment.
    ///
    /// # Errors
    /// As [`Sandbox::boot`].
    pub async fn boot_as_in(
        environment: &Environment,
        id: &str,
        machine: &Machine,
    ) -> Result<Self, Error> {
        Self::boot_with_id(environment, "default", machine, id).await
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
        Self::boot_with_id(environment, image, machine, &random_id()).await
    }

    /// Boots the default image by libvirt, and returns `virsh` for that VM, too. A machine is
    /// supported as far as it has only a memory size, CPUs and kernel parameters of its own.
    ///
    /// # Errors
    /// As [`Sandbox::boot`], or libvirt refuses.
    pub async fn boot_by_libvirt(machine: &Machine) -> Result<(Self, Virsh), Error> {
        let environment = Environment::from_variables();
        let plugin_port = environment.plugin_port("default")?;
        let image = environment.image("default")?;
        // libvirt needs a monitor of its own: there is no wrapper.
        let machine = Machine { wrapped: false, ..machine.clone() };
        let machine = &machine.in_environment(&environment)?;
        let id = random_id();
        with_accelerator(&environment.cache, async |accelerator| {
            let start = Instant::now();
            let boot =
                BootOptions { environment: &environment, image: &image, machine, accelerator };
            let (vm, virsh) = boot.run_by_libvirt(&id).await?;
            Ok((Self::of(boot, vm, plugin_port, &id, start).await?, virsh))
        })
        .await
    }

    async fn boot_with_id(
        environment: &Environment,
        image: &str,
        machine: &Machine,
        id: &str,
    ) -> Result<Self, Error> {
        let plugin_port = environment.plugin_port(image)?;
        let image = environment.image(image)?;
        let machine = &machine.in_environment(environment)?;
        with_accelerator(&environment.cache, async |accelerator| {
            let start = Instant::now();
            let boot = BootOptions { environment, image: &image, machine, accelerator };
            let vm = boot.run(id).await?;
            Self::of(boot, vm, plugin_port, id, start).await
        })
        .await
    }

    /// Makes a sandbox of a VM whose boot began at `start`.
    async fn of(
        boot: BootOptions<'_>,
        vm: BootedVm,
        plugin_port: u32,
        id: &str,
        start: Instant,
    ) -> Result<Self, Error> {
        let BootedVm { cid, mut run_dir, guest, agent, observer, vsock } = vm;
        let agent_url = vsock.url(AGENT_PORT);
        run_dir.write_state(&agent_url, guest.qemu_id)?;
        run_dir.serve_shim(agent_url.clone())?;
        // A shim creates the sandbox before its containers, too.
        let request = agent_api::agent::CreateSandboxRequest {
            hostname: "sandbox".to_owned(),
            sandbox_id: id.to_owned(),
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
            id: id.to_owned(),
            agent,
            observer,
            guest,
            run_dir,
            environment: boot.environment.clone(),
            agent_url,
            plugin_port,
            cid,
            vsock,
            wrapped: boot.machine.wrapped,
            vmm_user: boot.machine.user.filter(|_| boot.machine.rootless),
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
        let name = if self.wrapped { "extra-monitor.sock" } else { "qmp.sock" };
        self.run_dir.vm().join(name)
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
        self.vsock.url(self.plugin_port)
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
