//! What checks work on: a sandbox with containers, and `ecr-runtime` for them.

use std::{
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use serde_json::Value;

use super::{Conformance, GuestInfo, Mode};
use crate::{
    Container, ContainerOptions, DeviceFilter, EcrRuntime, Error, Finished, Plugged, Sandbox,
    Snapshot, Volume,
};

/// A sandbox that checks share. Each check restores its state.
#[derive(Debug)]
pub struct Fixture {
    sandbox: Sandbox,
    info: GuestInfo,
    /// A container without device rules.
    pub(super) container: Container,
    /// A container with device rules, if those make a difference; else the same container.
    pub(super) filtered: Container,
    /// A second container with device rules.
    pub(super) sibling: Container,
    /// A container with a user namespace, if the agent creates such containers.
    pub(super) user_namespace: Option<Container>,
    /// QEMU's version.
    pub(super) qemu: String,
    timeout: Duration,
    /// How many disks were added without `ecr-runtime`.
    added: AtomicU32,
}

impl Fixture {
    /// Boots a sandbox, starts the containers, and asks the agent about itself.
    ///
    /// # Errors
    /// The machine lacks something, the guest died, or its agent did not answer or refused a
    /// container.
    pub async fn start(suite: &Conformance, mode: Mode) -> Result<Self, Error> {
        let machine = mode.machine(&suite.kernel_parameters);
        let sandbox = Sandbox::boot_in(&suite.environment, &suite.image, &machine).await?;
        match Self::prepare(&sandbox, mode).await {
            Ok((qemu, info, [container, filtered, sibling], user_namespace)) => {
                let (timeout, added) = (suite.timeout, AtomicU32::new(0));
                Ok(Self {
                    sandbox,
                    info,
                    container,
                    filtered,
                    sibling,
                    user_namespace,
                    qemu,
                    timeout,
                    added,
                })
            }
            Err(error) => {
                // A guest that dies prints a fault of its kernel. The caller gets the error, not a
                // panic for that fault.
                sandbox.expect_kernel_fault();
                Err(error)
            }
        }
    }

    async fn prepare(
        sandbox: &Sandbox,
        mode: Mode,
    ) -> Result<(String, GuestInfo, [Container; 3], Option<Container>), Error> {
        let rules =
            ContainerOptions { device_filter: DeviceFilter::Bpf, ..ContainerOptions::default() };
        let container = sandbox.try_start_container(&ContainerOptions::default()).await?;
        let filtered = match mode {
            // With cgroup v1 the cgroup of every container has an allow-list.
            Mode::V1 => container.clone(),
            Mode::V2 | Mode::V2Scan => sandbox.try_start_container(&rules).await?,
        };
        let sibling = sandbox.try_start_container(&rules).await?;
        // kata-agent 4.1 refuses such a container.
        let options = ContainerOptions { user_namespace: true, ..ContainerOptions::default() };
        let user_namespace = sandbox.try_start_container(&options).await;
        let info = GuestInfo::of(sandbox, mode, &container, &filtered, &user_namespace).await?;
        let containers = [container, filtered, sibling];
        Ok((sandbox.qemu_version().await?, info, containers, user_namespace.ok()))
    }

    /// Returns the sandbox.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Returns what the agent reports about itself.
    pub fn info(&self) -> &GuestInfo {
        &self.info
    }

    /// Returns a call of `ecr-runtime block-volume VERB` for a container of this sandbox.
    pub(super) fn command(&self, verb: &str, container: &Container) -> EcrRuntime {
        let timeout = format!("{}ms", self.timeout.as_millis());
        self.sandbox
            .ecr_runtime()
            .args(["block-volume", verb, "--output", "json", "--timeout", &timeout])
            .args(["--sandbox", self.sandbox.id(), "--container", container.id()])
    }

    /// Returns a hot-plug, to be changed or run.
    pub(super) fn hot_plug(
        &self,
        container: &Container,
        volumes: &[(&Volume, &str)],
    ) -> EcrRuntime {
        self.command("hot-plug", container).volumes("--device-path", volumes)
    }

    /// Returns a hot-unplug, to be changed or run.
    pub(super) fn hot_unplug(&self, container: &Container, path: &str) -> EcrRuntime {
        self.command("hot-unplug", container).args(["--device-path", path])
    }

    /// Returns a hot-plug that mounts the file system of a volume, to be changed or run.
    pub(super) fn mount_command(
        &self,
        container: &Container,
        volume: &Volume,
        path: &str,
    ) -> EcrRuntime {
        self.command("hot-plug", container).volumes("--mount-path", &[(volume, path)])
    }

    /// Mounts the file system of a volume.
    pub(super) async fn mount(&self, container: &Container, volume: &Volume, path: &str) {
        plugged(&self.mount_command(container, volume, path).run().await);
    }

    /// Returns a hot-unplug of the volume that is mounted at `path`, to be changed or run.
    pub(super) fn unmount_command(&self, container: &Container, path: &str) -> EcrRuntime {
        self.command("hot-unplug", container).args(["--mount-path", path])
    }

    /// Hot-unplugs it.
    pub(super) async fn unmount(&self, container: &Container, path: &str) {
        succeeded(&self.unmount_command(container, path).run().await);
    }

    /// Hot-plugs a volume.
    pub(super) async fn plug(&self, container: &Container, volume: &Volume, path: &str) -> Plugged {
        plugged(&self.hot_plug(container, &[(volume, path)]).run().await).remove(0)
    }

    /// Hot-unplugs the volume at `path`.
    pub(super) async fn unplug(&self, container: &Container, path: &str) {
        succeeded(&self.hot_unplug(container, path).run().await);
    }

    /// Takes a snapshot of everything that a hot-plug changes.
    pub(super) async fn snapshot(&self) -> Snapshot {
        Snapshot::of(&self.sandbox, &self.containers()).await
    }

    /// Panics if the current state differs from `before`.
    pub(super) async fn assert_as_before(&self, before: &Snapshot) {
        let changes = before.changes(&self.sandbox, &self.containers()).await;
        let changes = changes.unwrap_or_else(|error| panic!("no snapshot: {}", error.chain()));
        assert!(changes.is_empty(), "something is not as it was before:\n{}", changes.join("\n"));
    }

    fn containers(&self) -> Vec<&Container> {
        let mut containers = vec![&self.container, &self.filtered, &self.sibling];
        containers.dedup_by_key(|container| container.id().to_owned());
        containers
    }

    /// Whether `path` exists in the agent's mount namespace.
    pub(super) async fn guest_has(&self, path: &str) -> bool {
        let listing = self.sandbox.observer().run(&["/bin/busybox", "ls", "-d", path]).await;
        listing.unwrap_or_else(|error| panic!("{}", error.chain())).status == 0
    }

    /// Returns the guest's SCSI hosts, targets and disks.
    pub(super) async fn scsi_devices(&self) -> Vec<String> {
        let list = self.sandbox.observer().shell("ls /sys/bus/scsi/devices").await;
        list.split_whitespace().map(str::to_owned).collect()
    }

    /// Returns a LUN that no other disk of this fixture has.
    pub(super) fn next_lun(&self) -> u32 {
        self.added.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // A check reports a fault of the kernel, and the suite continues after a failure.
        self.sandbox.expect_kernel_fault();
    }
}

/// Returns the JSON output of a call, which has to have succeeded.
pub(super) fn succeeded(finished: &Finished) -> Value {
    assert_eq!(
        finished.status,
        0,
        "ecr-runtime ended with {}: {}{}",
        finished.status,
        finished.stdout.trim(),
        finished.stderr.trim()
    );
    finished.json()
}

/// Returns the volumes of a hot-plug, which has to have succeeded.
pub(super) fn plugged(finished: &Finished) -> Vec<Plugged> {
    let json = succeeded(finished);
    let result = json["result"].as_str().unwrap_or_default().to_owned();
    let volumes = json["volumes"].as_array().cloned().unwrap_or_default();
    assert!(!volumes.is_empty(), "it succeeded and reports no volumes: {json}");
    volumes.into_iter().map(|volume| Plugged { result: result.clone(), volume }).collect()
}

/// Whether `path` exists in `container`.
pub(super) async fn has(container: &Container, path: &str) -> bool {
    let parent = Path::new(path).parent().unwrap_or(Path::new("/")).display().to_string();
    let listing = container.exec(&["ls", "-a", &parent]).await;
    let name = Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned();
    String::from_utf8_lossy(&listing).lines().any(|line| line == name)
}
