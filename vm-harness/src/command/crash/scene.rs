//! A sandbox in which one trial follows the other, and the judgement of what there is in it: a
//! volume that is fully attached, one that is fully gone, or something between.

use std::{fmt, os::unix::fs::OpenOptionsExt as _, time::Duration};

use serde_json::Value;
use vm_harness::{
    Container, ContainerOptions, EcrRuntime, Error, Finished, Machine, Sandbox, Snapshot, Volume,
};

use super::step::Verb;

/// Where every trial's volume goes.
pub(super) const PATH: &str = "/dev/xvda";

/// What there is of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Gone,
    Incomplete,
    Attached,
    Stale,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gone => "gone",
            Self::Incomplete => "incomplete",
            Self::Attached => "attached",
            Self::Stale => "stale",
        })
    }
}

/// A booted sandbox with one container, and how it was at first.
pub(super) struct Scene {
    pub(super) sandbox: Sandbox,
    pub(super) witness: Container,
    before: Snapshot,
}

impl Scene {
    pub(super) async fn boot() -> Result<Self, Error> {
        // A QEMU that was stopped lets its guest believe that a processor stood still: for longer
        // than the kernel takes for a fault (21 and 20 s) where time-outs are long.
        let patience =
            ["rcupdate.rcu_cpu_stall_timeout=300", "watchdog_thresh=60"].map(str::to_owned);
        let machine = Machine { kernel_parameters: patience.to_vec(), ..Machine::default() };
        let sandbox = Sandbox::boot_image("fault", &machine).await?;
        let witness = sandbox.try_start_container(&ContainerOptions::default()).await?;
        let before = Snapshot::try_of(&sandbox, &[&witness]).await?;
        Ok(Self { sandbox, witness, before })
    }

    /// `verb` for one volume, with the fail points `faults`.
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
            Verb::HotPlug => runtime.hot_plug(self.sandbox.id(), container.id(), &[(volume, path)]),
            Verb::HotUnplug => runtime
                .args([
                    "block-volume",
                    "hot-unplug",
                    "--output",
                    "json",
                    "--sandbox",
                    self.sandbox.id(),
                ])
                .args(["--container", container.id(), "--device-path", path]),
        }
    }

    /// `ecr-runtime block-volume repair`, or another verb that wants nothing but the sandbox.
    pub(super) fn of_sandbox(&self, verb: &str) -> EcrRuntime {
        let runtime = self.sandbox.ecr_runtime();
        runtime.args(["block-volume", verb, "--output", "json", "--sandbox", self.sandbox.id()])
    }

    /// The volumes of `list`.
    pub(super) async fn listed(&self) -> Result<Vec<Value>, String> {
        let finished = self.of_sandbox("list").run().await;
        let json = succeeded("list", &finished)?;
        if !json["guest_error"].is_null() {
            return Err(format!(
                "list could not ask the guest: {}",
                json["guest_error"]["message"]
            ));
        }
        Ok(json["volumes"].as_array().cloned().unwrap_or_default())
    }

    /// What `list` says of the only volume.
    pub(super) async fn state(&self) -> Result<State, String> {
        let listed = self.listed().await?;
        match (listed.first().map(|volume| volume["state"].as_str()), listed.len()) {
            (None, _) => Ok(State::Gone),
            (Some(Some("attached")), 1) => Ok(State::Attached),
            (Some(Some("incomplete")), 1) => Ok(State::Incomplete),
            (Some(Some("stale: container gone")), 1) => Ok(State::Stale),
            _ => Err(format!("list: {}", Value::from(listed))),
        }
    }

    /// Is there nothing of `volume` anywhere, and is all as it was at first?
    pub(super) async fn is_gone(&self, volume: &Volume) -> Result<(), String> {
        let listed = self.listed().await?;
        if !listed.is_empty() {
            return Err(format!("list still has {}", Value::from(listed)));
        }
        let changes = self.before.changes(&self.sandbox, &[&self.witness]).await;
        let changes = changes.map_err(|error| error.chain())?;
        if !changes.is_empty() {
            return Err(format!("not as it was: {}", changes.join("; ")));
        }
        claim_is_free(volume)
    }

    /// Is `volume` whole, and are its bytes right in the container?
    pub(super) async fn is_attached(
        &self,
        container: &Container,
        volume: &Volume,
        path: &str,
    ) -> Result<(), String> {
        let listed = self.listed().await?;
        let ours = listed.iter().find(|listed| listed["device_path"] == path);
        if ours.is_none_or(|ours| ours["state"] != "attached") {
            return Err(format!("list has {}", Value::from(listed)));
        }
        let read =
            container.try_exec(&["dd", &format!("if={path}"), "bs=64k", "count=1"], b"").await;
        let read = read.map_err(|error| error.chain())?;
        if read.stdout != volume.bytes(0..65536) {
            return Err(format!("the container reads other bytes: {}", read.error_text()));
        }
        match claim_is_free(volume) {
            Ok(()) => Err("it is attached, and the host can claim it".to_owned()),
            Err(_) => Ok(()),
        }
    }

    /// Removes what a trial has attached, and makes sure that nothing of it is left.
    pub(super) async fn clean(
        &self,
        container: &Container,
        volume: &Volume,
        path: &str,
    ) -> Result<(), String> {
        let finished = self.command(Verb::HotUnplug, container, volume, path, "").run().await;
        succeeded("hot-unplug", &finished).map(drop)
    }

    /// Sets the plugin's fail points.
    pub(super) async fn guest_faults(&self, faults: &str) -> Result<(), String> {
        let written = self.sandbox.observer().write("/run/ecr-fault", faults).await;
        written.map_err(|error| error.chain())
    }

    /// Waits until `process` is as `/proc/PID/stat` calls `state`, or has ended.
    pub(super) async fn until(&self, process: i32, state: char) -> Result<(), String> {
        let deadline =
            tokio::time::Instant::now() + self.sandbox.guest().scaled(Duration::from_secs(20));
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
            let found = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
            if found == Some(state) {
                return Ok(());
            }
            if found.is_none_or(|found| found == 'Z') {
                return Err(format!("process {process} ended before it was in state {state}"));
            }
            if tokio::time::Instant::now() > deadline {
                return Err(format!("process {process} never was in state {state}: {stat}"));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Its JSON output.
pub(super) fn succeeded(what: &str, finished: &Finished) -> Result<Value, String> {
    if finished.status == 0 {
        return Ok(finished.json());
    }
    Err(format!("{what} {}", told(finished)))
}

/// How a command ended, in a few words.
pub(super) fn told(finished: &Finished) -> String {
    let json: Value = serde_json::from_str(&finished.stdout).unwrap_or_default();
    match (json["result"].as_str(), json["error"]["reason"].as_str()) {
        (Some(result), _) => result.to_owned(),
        (None, Some(reason)) => format!("exit {} ({reason})", finished.status),
        (None, None) if finished.status > 128 => {
            format!("ended by signal {}", finished.status - 128)
        }
        (None, None) => format!("exit {}: {}", finished.status, finished.stderr.trim()),
    }
}

/// Can the host open the volume for itself alone?
pub(super) fn claim_is_free(volume: &Volume) -> Result<(), String> {
    let opened =
        std::fs::OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(volume.path());
    opened.map(drop).map_err(|error| format!("the host cannot claim the volume: {error}"))
}
