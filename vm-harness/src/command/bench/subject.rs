//! The VM that is measured: one for all rows of the report. libvirt starts it, if `virsh` is
//! compared, and the commands of `ecr-runtime` use a second monitor of the same QEMU.

use std::{path::Path, time::Duration};

use serde_json::Value;
use vm_harness::{
    Container, ContainerOptions, DeviceFilter, EcrRuntime, Error, Machine, Sandbox, Virsh, Volume,
    mount,
};

use super::samples::Samples;

/// The path of the volume in the container.
pub(super) const PATH: &str = "/dev/bench";
/// The observer, which also measures reads and writes, in the container.
pub(super) const OBSERVER: &str = "/dev/observer";

/// A sandbox with a container of each kind.
pub(super) struct Subject {
    pub(super) sandbox: Sandbox,
    pub(super) virsh: Option<Virsh>,
    /// Without a device filter: nodes come by the bind way.
    pub(super) container: Container,
    pub(super) filtered: Container,
    pub(super) volume: Volume,
}

/// One call of `ecr-runtime`.
pub(super) struct Call {
    /// From start to end of the process.
    pub(super) whole: Duration,
    /// The stages that it reports, and their microseconds.
    pub(super) stages: Value,
}

impl Subject {
    /// Boots `machine` by the harness.
    pub(super) async fn boot(machine: &Machine) -> Result<Self, Error> {
        Self::of(Sandbox::boot(machine).await?, None).await
    }

    /// Boots `machine` by libvirt.
    pub(super) async fn boot_by_libvirt(machine: &Machine) -> Result<Self, Error> {
        let (sandbox, virsh) = Sandbox::boot_by_libvirt(machine).await?;
        Self::of(sandbox, Some(virsh)).await
    }

    async fn of(sandbox: Sandbox, virsh: Option<Virsh>) -> Result<Self, Error> {
        let container = |device_filter| ContainerOptions {
            device_filter,
            mounts: vec![mount(OBSERVER, "bind", "/usr/bin/observer", &["bind", "ro"])],
            ..ContainerOptions::default()
        };
        let filtered = sandbox.try_start_container(&container(DeviceFilter::Bpf)).await?;
        let container = sandbox.try_start_container(&container(DeviceFilter::None)).await?;
        Ok(Self { sandbox, virsh, container, filtered, volume: Volume::loop_device(16 << 20) })
    }

    /// Plugs the volume into a container.
    pub(super) async fn plug(&self, container: &Container) -> Call {
        self.call(&self.plug_command(container)).await
    }

    /// Unplugs it.
    pub(super) async fn unplug(&self, container: &Container) -> Call {
        self.call(&self.unplug_command(container, PATH)).await
    }

    pub(super) fn plug_command(&self, container: &Container) -> EcrRuntime {
        self.sandbox.hot_plug_command(container, &[(&self.volume, PATH)])
    }

    pub(super) fn unplug_command(&self, container: &Container, path: &str) -> EcrRuntime {
        let id = self.sandbox.id();
        let verb = ["block-volume", "hot-unplug", "--output", "json", "--sandbox", id];
        let container = ["--container", container.id(), "--device-path", path];
        self.sandbox.ecr_runtime().args(verb).args(container)
    }

    /// Runs a command that has to succeed.
    pub(super) async fn call(&self, command: &EcrRuntime) -> Call {
        let finished = command.run().await;
        finished.succeeded(self.sandbox.guest());
        Call { whole: finished.elapsed, stages: finished.json()["timings_us"].clone() }
    }

    /// Runs `ecr-runtime` for nothing. Its time is that of its start, and the harness's own part.
    pub(super) async fn start_of_a_process(&self) -> Duration {
        self.sandbox.ecr_runtime().args(["--version"]).run().await.elapsed
    }

    /// Runs `true`. Its time is the harness's own part, and that of the smallest process.
    pub(super) async fn smallest_process(&self) -> Duration {
        self.sandbox.ecr_runtime().program(Path::new("/bin/true")).run().await.elapsed
    }

    /// Makes the sandbox's state complete again: a proxy in front of QEMU has removed QEMU's
    /// process from it.
    pub(super) fn restore_state(&self) -> Result<(), Error> {
        let sandbox = &self.sandbox;
        sandbox.run_directory().write_state(sandbox.agent_url(), sandbox.guest().qemu_id())
    }
}

/// Calls of one command.
#[derive(Default)]
pub(super) struct Calls {
    pub(super) whole: Samples,
    pub(super) stages: Vec<Value>,
}

impl Calls {
    pub(super) fn add(&mut self, call: Call) {
        self.whole.add(call.whole);
        self.stages.push(call.stages);
    }

    /// Returns the names of the stages, in order.
    pub(super) fn stage_names(&self) -> Vec<String> {
        let first = self.stages.first().and_then(Value::as_object);
        first.map(|stages| stages.keys().cloned().collect()).unwrap_or_default()
    }

    /// Returns the times of one stage.
    pub(super) fn stage(&self, name: &str) -> Samples {
        self.stages.iter().filter_map(|stages| stages[name].as_u64()).collect()
    }
}
