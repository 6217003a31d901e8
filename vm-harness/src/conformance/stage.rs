//! Where checks run: a sandbox with containers in it, and `ecr-runtime` for them.

use std::{
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use serde_json::Value;

use super::{Conformance, Facts, Mode};
use crate::{
    Container, ContainerOptions, DeviceFilter, EcrRuntime, Error, Finished, Plugged, Sandbox,
    Snapshot, Volume,
};

/// A sandbox that checks share. Each leaves it as it found it.
#[derive(Debug)]
pub struct Stage {
    sandbox: Sandbox,
    facts: Facts,
    /// Without device rules.
    pub(super) container: Container,
    /// With device rules, where those make a difference; else the same.
    pub(super) ruled: Container,
    /// Another one, with device rules.
    pub(super) sibling: Container,
    /// With a user namespace, where the agent makes such containers.
    pub(super) own_users: Option<Container>,
    /// QEMU's version.
    pub(super) qemu: String,
    timeout: Duration,
    /// Counts the disks that were added beside `ecr-runtime`.
    pub(super) added: AtomicU32,
}

impl Stage {
    /// Boots a sandbox, starts the containers, and asks the agent what it is.
    ///
    /// # Errors
    /// Something is missing, the guest died, or its agent did not answer or makes no container.
    pub async fn start(suite: &Conformance, mode: Mode) -> Result<Self, Error> {
        let machine = mode.machine(&suite.kernel_parameters);
        let sandbox = Sandbox::boot_in(&suite.environment, &suite.image, &machine).await?;
        match Self::prepare(&sandbox, mode).await {
            Ok((qemu, facts, [container, ruled, sibling], own_users)) => {
                let (timeout, added) = (suite.timeout, AtomicU32::new(0));
                Ok(Self {
                    sandbox,
                    facts,
                    container,
                    ruled,
                    sibling,
                    own_users,
                    qemu,
                    timeout,
                    added,
                })
            }
            Err(error) => {
                // A guest that dies prints a fault of its kernel, and its end is what the caller
                // hears of.
                sandbox.fault_is_meant();
                Err(error)
            }
        }
    }

    async fn prepare(
        sandbox: &Sandbox,
        mode: Mode,
    ) -> Result<(String, Facts, [Container; 3], Option<Container>), Error> {
        let rules =
            ContainerOptions { device_filter: DeviceFilter::Bpf, ..ContainerOptions::default() };
        let container = sandbox.try_start_container(&ContainerOptions::default()).await?;
        let ruled = match mode {
            // There every container is in a group with a list.
            Mode::V1 => container.clone(),
            Mode::V2 | Mode::V2Scan => sandbox.try_start_container(&rules).await?,
        };
        let sibling = sandbox.try_start_container(&rules).await?;
        // kata-agent 4.1 refuses it.
        let own_users = ContainerOptions { user_namespace: true, ..ContainerOptions::default() };
        let own_users = sandbox.try_start_container(&own_users).await;
        let facts = Facts::of(sandbox, mode, &container, &ruled, &own_users).await?;
        Ok((sandbox.qemu_version().await?, facts, [container, ruled, sibling], own_users.ok()))
    }

    /// The VM.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// What the agent says of itself.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// `ecr-runtime block-volume VERB` on this sandbox.
    pub(super) fn command(&self, verb: &str, container: &Container) -> EcrRuntime {
        let timeout = format!("{}ms", self.timeout.as_millis());
        self.sandbox
            .ecr_runtime()
            .args(["block-volume", verb, "--output", "json", "--timeout", &timeout])
            .args(["--sandbox", self.sandbox.id(), "--container", container.id()])
    }

    /// A hot-plug, ready to be varied or run.
    pub(super) fn hot_plug(
        &self,
        container: &Container,
        volumes: &[(&Volume, &str)],
    ) -> EcrRuntime {
        volumes.iter().fold(self.command("hot-plug", container), |command, (volume, path)| {
            command.args(["--block-volume", volume.name(), "--device-path", path])
        })
    }

    /// A hot-unplug, ready to be varied or run.
    pub(super) fn hot_unplug(&self, container: &Container, path: &str) -> EcrRuntime {
        self.command("hot-unplug", container).args(["--device-path", path])
    }

    /// Plugs a volume.
    pub(super) async fn plug(&self, container: &Container, volume: &Volume, path: &str) -> Plugged {
        plugged(&self.hot_plug(container, &[(volume, path)]).run().await).remove(0)
    }

    /// Unplugs it.
    pub(super) async fn unplug(&self, container: &Container, path: &str) {
        succeeded(&self.hot_unplug(container, path).run().await);
    }

    /// Everything that a plug touches.
    pub(super) async fn snapshot(&self) -> Snapshot {
        Snapshot::of(&self.sandbox, &self.containers()).await
    }

    /// Panics where something differs from `before`.
    pub(super) async fn assert_as_before(&self, before: &Snapshot) {
        let changes = before.changes(&self.sandbox, &self.containers()).await;
        let changes = changes.unwrap_or_else(|error| panic!("no snapshot: {}", error.chain()));
        assert!(changes.is_empty(), "something is not as it was before:\n{}", changes.join("\n"));
    }

    fn containers(&self) -> Vec<&Container> {
        let mut containers = vec![&self.container, &self.ruled, &self.sibling];
        containers.dedup_by_key(|container| container.id().to_owned());
        containers
    }

    /// Whether there is something at `path` where the agent itself is.
    pub(super) async fn guest_has(&self, path: &str) -> bool {
        let ran = self.sandbox.observer().run(&["/bin/busybox", "ls", "-d", path]).await;
        ran.unwrap_or_else(|error| panic!("{}", error.chain())).status == 0
    }

    /// The guest's SCSI hosts, targets and disks.
    pub(super) async fn scsi_devices(&self) -> Vec<String> {
        let list = self.sandbox.observer().shell("ls /sys/bus/scsi/devices").await;
        list.split_whitespace().map(str::to_owned).collect()
    }

    /// A number that no other disk of this stage has.
    pub(super) fn next(&self) -> u32 {
        self.added.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // There is a check for it, and a suite goes on after a failure.
        self.sandbox.fault_is_meant();
    }
}

/// The document of a call that has succeeded.
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

/// The volumes of a hot-plug that has succeeded.
pub(super) fn plugged(finished: &Finished) -> Vec<Plugged> {
    let json = succeeded(finished);
    let result = json["result"].as_str().unwrap_or_default().to_owned();
    let volumes = json["volumes"].as_array().cloned().unwrap_or_default();
    assert!(!volumes.is_empty(), "a success names its volumes: {json}");
    volumes.into_iter().map(|volume| Plugged { result: result.clone(), volume }).collect()
}

/// Whether `container` has something at `path`.
pub(super) async fn has(container: &Container, path: &str) -> bool {
    let parent = Path::new(path).parent().unwrap_or(Path::new("/")).display().to_string();
    let listing = container.exec(&["ls", "-a", &parent]).await;
    let name = Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned();
    String::from_utf8_lossy(&listing).lines().any(|line| line == name)
}
