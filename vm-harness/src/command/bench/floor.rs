//! The floor: the minimum time that a hot-plug and a hot-unplug could take. A client that is
//! already connected sends the QMP commands of `ecr-runtime`, from a recording. A minimal program
//! in the guest has its uevent socket open, writes `0 TARGET LUN` to the SCSI host's `scan` file
//! and answers at the block event; to unplug it writes to the device's `delete` file.

use std::{
    ffi::OsStr,
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt as _,
    time::{Duration, Instant},
};

use block_volume_qmp::Deadline;
use block_volume_qmp::{Qmp, QmpError};
use guest_observer::{Address, Reply, Request};
use serde_json::{Value, json};
use vm_harness::{Container, Error, ObserverConnection, QmpProxy, Sandbox, Volume};

use super::times::micros;

/// The three QMP commands of a hot-plug, literally.
pub(super) struct Commands {
    volume_id: String,
    opaque: String,
    node: Value,
    device: Value,
}

impl Commands {
    /// Records the commands of one hot-plug.
    pub(super) async fn record(
        sandbox: &Sandbox,
        container: &Container,
        volume: &Volume,
    ) -> Result<Self, Error> {
        let proxy = QmpProxy::start(&sandbox.qmp_socket())?;
        let command = sandbox.hot_plug_command(container, &[(volume, "/dev/bench")]);
        let finished = command.args([OsStr::new("--qmp"), proxy.path().as_os_str()]).run().await;
        let plugged = finished.succeeded(sandbox.guest()).remove(0);
        sandbox.unplug(&plugged).await;
        let lines = proxy.lines();
        let arguments = |name: &str| {
            let line = lines.iter().map(|line| &line["line"]).find(|line| line["execute"] == name);
            line.map(|line| line["arguments"].clone())
                .ok_or_else(|| Error::Monitor(format!("the recording has no {name}")))
        };
        Ok(Self {
            volume_id: plugged.id().to_owned(),
            opaque: arguments("add-fd")?["opaque"].as_str().unwrap_or_default().to_owned(),
            node: arguments("blockdev-add")?,
            device: arguments("device_add")?,
        })
    }
}

/// The stages of one round, in microseconds.
pub(super) type Stages = Vec<(&'static str, u64)>;

/// A client that stays connected to QEMU and to the guest.
pub(super) struct Floor<'a> {
    pub(super) monitor: &'a mut Qmp,
    pub(super) observer: &'a mut ObserverConnection,
    pub(super) commands: &'a Commands,
}

impl Floor<'_> {
    /// Runs one round, and returns the stages of a plug and of an unplug.
    pub(super) async fn round(
        &mut self,
        volume: &Volume,
        round: usize,
    ) -> Result<(Stages, Stages), Error> {
        // Another address in each round, as ecr-runtime uses.
        let lun = u32::try_from(round % 250 + 1).unwrap_or(1);
        let address = Address { host: 0, target: 100, lun };
        let (set, plug) = self.plug(volume, address).await?;
        let unplug = self.unplug(address).await?;
        self.execute("remove-fd", json!({ "fdset-id": set })).await?;
        Ok((plug, unplug))
    }

    /// Plugs in the minimum time: without checks, device node, and device filter.
    async fn plug(&mut self, volume: &Volume, address: Address) -> Result<(u64, Stages), Error> {
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT | libc::O_EXCL)
            .open(volume.path());
        let file = open.map_err(|source| Error::File {
            action: "open",
            path: volume.path().to_owned(),
            source,
        })?;
        let (mut node, mut device) = (self.commands.node.clone(), self.commands.device.clone());
        device["scsi-id"] = address.target.into();
        device["lun"] = address.lun.into();

        let mut watch = StageTimer::start();
        let set =
            self.monitor.add_fd(&file, None, &self.commands.opaque).await.map_err(failed)?.set;
        watch.lap("add_fd");
        node["file"]["filename"] = format!("/dev/fdset/{set}").into();
        self.execute("blockdev-add", node).await?;
        watch.lap("blockdev_add");
        self.execute("device_add", device).await?;
        watch.lap("device_add");
        match self.observer.ask(&Request::Scan(address)).await? {
            Reply::Block { .. } => {}
            other => return Err(Error::Observer(format!("unexpected reply {other:?}"))),
        }
        watch.lap("guest");
        Ok((set, watch.end()))
    }

    /// Unplugs in the minimum time: without a search for holders, device node, device filter, and
    /// flush.
    async fn unplug(&mut self, address: Address) -> Result<Stages, Error> {
        let device = format!("ecrblk-{}", self.commands.volume_id);
        // Discard the events of ecr-runtime's hot-unplug before this round.
        while self.monitor.next_event(Deadline::after(Duration::ZERO)).await.is_some() {}
        let mut watch = StageTimer::start();
        self.observer.ask(&Request::Delete(address)).await?;
        watch.lap("guest");
        self.execute("device_del", json!({ "id": device })).await?;
        watch.lap("device_del");
        let deadline = Deadline::after(Duration::from_secs(30));
        loop {
            let event = self.monitor.next_event(deadline).await;
            let event =
                event.ok_or_else(|| Error::Monitor(format!("{device} was never deleted")))?;
            if event.name == "DEVICE_DELETED" && event.data["device"] == device.as_str() {
                break;
            }
        }
        watch.lap("event");
        self.execute("blockdev-del", json!({ "node-name": format!("{device}-n") })).await?;
        watch.lap("blockdev_del");
        Ok(watch.end())
    }

    async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        self.monitor.execute(command, arguments).await.map_err(failed)
    }
}

fn failed(error: QmpError) -> Error {
    Error::Monitor(error.to_string())
}

/// Measures the stages of a round.
struct StageTimer {
    start: Instant,
    last: Instant,
    stages: Stages,
}

impl StageTimer {
    fn start() -> Self {
        let now = Instant::now();
        Self { start: now, last: now, stages: Vec::new() }
    }

    fn lap(&mut self, stage: &'static str) {
        let now = Instant::now();
        self.stages.push((stage, micros(now - self.last)));
        self.last = now;
    }

    fn end(mut self) -> Stages {
        self.stages.push(("total", micros(self.last - self.start)));
        self.stages
    }
}
