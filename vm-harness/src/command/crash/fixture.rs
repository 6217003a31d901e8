//! A sandbox for many cases, and the checks of a volume in it: whether it is attached, gone, or
//! something between.

use serde_json::Value;
use vm_harness::{
    Container, ContainerOptions, EcrRuntime, Error, Finished, Machine, Sandbox, Snapshot, Volume,
};

use super::{fault_point::Verb, volume_kind::VolumeKind, volume_state::VolumeState};

/// A sandbox with one container, and its state after the boot.
pub(super) struct Fixture {
    pub(super) sandbox: Sandbox,
    pub(super) container: Container,
    pub(super) kind: VolumeKind,
    before: Snapshot,
}

impl Fixture {
    pub(super) async fn boot(kind: VolumeKind) -> Result<Self, Error> {
        // In a guest whose QEMU was stopped a processor seems to have stalled, for longer than the
        // kernel's limits (21 s and 20 s) if the time limits are long. Higher limits prevent the
        // reports.
        let limits =
            ["rcupdate.rcu_cpu_stall_timeout=300", "watchdog_thresh=60"].map(str::to_owned);
        let machine = Machine { kernel_parameters: limits.to_vec(), ..Machine::default() };
        let sandbox = Sandbox::boot_image("fault", &machine).await?;
        let container = sandbox.try_start_container(&ContainerOptions::default()).await?;
        let before = Snapshot::try_of(&sandbox, &[&container]).await?;
        Ok(Self { sandbox, container, kind, before })
    }

    /// Returns the command `verb` for one volume, with the fault points `faults`.
    pub(super) fn command(
        &self,
        verb: Verb,
        container: &Container,
        volume: &Volume,
        path: &str,
        faults: &str,
    ) -> EcrRuntime {
        let runtime = self.sandbox.ecr_runtime_with_faults(faults);
        match verb {
            Verb::HotPlug => self.kind.hot_plug(runtime, &self.sandbox, container, (volume, path)),
            Verb::HotUnplug => runtime
                .args([
                    "block-volume",
                    "hot-unplug",
                    "--output",
                    "json",
                    "--sandbox",
                    self.sandbox.id(),
                ])
                .args(["--container", container.id(), self.kind.option(), path]),
        }
    }

    /// Returns `ecr-runtime block-volume repair`, or another verb that needs only the sandbox.
    pub(super) fn sandbox_command(&self, verb: &str) -> EcrRuntime {
        let runtime = self.sandbox.ecr_runtime();
        runtime.args(["block-volume", verb, "--output", "json", "--sandbox", self.sandbox.id()])
    }

    /// Returns the volumes that `list` reports.
    pub(super) async fn listed(&self) -> Result<Vec<Value>, String> {
        let finished = self.sandbox_command("list").run().await;
        let json = succeeded("list", &finished)?;
        if !json["guest_error"].is_null() {
            return Err(format!(
                "list could not ask the guest: {}",
                json["guest_error"]["message"]
            ));
        }
        Ok(json["volumes"].as_array().cloned().unwrap_or_default())
    }

    /// Returns the state of the only volume, as `list` reports it.
    pub(super) async fn state(&self) -> Result<VolumeState, String> {
        let listed = self.listed().await?;
        let [volume] = &listed[..] else {
            return match listed.is_empty() {
                true => Ok(VolumeState::Gone),
                false => Err(format!("list: {}", Value::from(listed))),
            };
        };
        match (volume["state"].as_str(), volume["cause"].as_str()) {
            (Some("attached"), None) => Ok(VolumeState::Attached),
            (Some("incomplete"), None) => Ok(VolumeState::Incomplete),
            (Some("stale"), Some("container_gone")) => Ok(VolumeState::Stale),
            _ => Err(format!("list: {}", Value::from(listed))),
        }
    }

    /// Checks that nothing of `volume` is left, and that the sandbox is as after its boot.
    pub(super) async fn check_gone(&self, volume: &Volume) -> Result<(), String> {
        let listed = self.listed().await?;
        if !listed.is_empty() {
            return Err(format!("list still has {}", Value::from(listed)));
        }
        let changes = self.before.changes(&self.sandbox, &[&self.container]).await;
        let changes = changes.map_err(|error| error.chain())?;
        if !changes.is_empty() {
            return Err(format!("not as after the boot: {}", changes.join("; ")));
        }
        check_claimable(volume)?;
        self.kind.check_volume(volume)
    }

    /// Checks that `volume` is attached, that the container reads its bytes, and that the host
    /// cannot claim it.
    pub(super) async fn check_attached(
        &self,
        container: &Container,
        volume: &Volume,
        path: &str,
    ) -> Result<(), String> {
        let listed = self.listed().await?;
        let entry = listed.iter().find(|listed| listed[self.kind.key()] == path);
        if entry.is_none_or(|entry| entry["state"] != "attached") {
            return Err(format!("list has {}", Value::from(listed)));
        }
        self.kind.check_bytes(container, volume, path).await?;
        match check_claimable(volume) {
            Ok(()) => Err("it is attached, and the host can claim it".to_owned()),
            Err(_) => Ok(()),
        }
    }

    /// Hot-unplugs the volume of a case.
    pub(super) async fn unplug(
        &self,
        container: &Container,
        volume: &Volume,
        path: &str,
    ) -> Result<(), String> {
        let finished = self.command(Verb::HotUnplug, container, volume, path, "").run().await;
        succeeded("hot-unplug", &finished).map(drop)
    }

    /// Sets the plugin's fault points.
    pub(super) async fn set_guest_faults(&self, faults: &str) -> Result<(), String> {
        let written = self.sandbox.observer().write("/run/ecr-fault", faults).await;
        written.map_err(|error| error.chain())
    }
}

/// Returns the JSON output of a command that has succeeded.
pub(super) fn succeeded(what: &str, finished: &Finished) -> Result<Value, String> {
    if finished.status == 0 {
        return Ok(finished.json());
    }
    Err(format!("{what} {}", summary(finished)))
}

/// Returns how a command ended, in a few words.
pub(super) fn summary(finished: &Finished) -> String {
    let json: Value = serde_json::from_str(&finished.stdout).unwrap_or_default();
    match (json["result"].as_str(), json["error"]["reason"].as_str()) {
        (_, Some(reason)) => format!("exit {} ({reason})", finished.status),
        (Some(result), None) => result.to_owned(),
        (None, None) if finished.status > 128 => {
            format!("ended by signal {}", finished.status - 128)
        }
        (None, None) => format!("exit {}: {}", finished.status, finished.stderr.trim()),
    }
}

/// Checks that the host can claim the volume.
pub(super) fn check_claimable(volume: &Volume) -> Result<(), String> {
    volume.check_claimable().map_err(|error| format!("the host cannot claim the volume: {error}"))
}
