//! The floor: the minimum time that a hot-plug and a hot-unplug could take. A client that is
//! already connected sends the QMP commands of `ecr-runtime`, from a recording. A minimal program
//! in the guest has its uevent socket open, writes `0 TARGET LUN` to the SCSI host's `scan` file
//! and answers at the block event; to unplug it writes to the device's `delete` file. For a file
//! system it also mounts and unmounts it.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    time::{Duration, Instant},
};

use block_volume_qmp::Deadline;
use block_volume_qmp::{Qmp, QmpError};
use guest_observer::{Address, Reply, Request};
use serde_json::{Value, json};
use vm_harness::{EcrRuntime, Error, ObserverConnection, QmpProxy, Volume, remove_from_qemu};

use super::{samples::Samples, subject::Subject};

/// How long QEMU may take for one round, or for the queries of a list.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

/// The three QMP commands of a hot-plug, literally.
pub(super) struct Commands {
    volume_id: String,
    opaque: String,
    node: Value,
    device: Value,
}

impl Commands {
    /// Records the commands of one hot-plug, and undoes it.
    pub(super) async fn record(
        subject: &Subject,
        plug: EcrRuntime,
        unplug: &EcrRuntime,
    ) -> Result<Self, Error> {
        let proxy = QmpProxy::start(&subject.sandbox.qmp_socket())?;
        let finished = plug.args([OsStr::new("--qmp"), proxy.path().as_os_str()]).run().await;
        let plugged = finished.succeeded(subject.sandbox.guest()).remove(0);
        subject.call(unplug).await;
        subject.restore_state()?;
        let lines = proxy.lines();
        let arguments = |name: &str| {
            // The first blockdev-add only asks whether the descriptor set is free.
            let is_it =
                |line: &&Value| line["execute"] == name && line["arguments"]["driver"] != "file";
            let line = lines.iter().map(|line| &line["line"]).find(is_it);
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

    /// Returns the arguments of `blockdev-add` and of `device_add`.
    fn at(&self, set: u64, address: Address) -> (Value, Value) {
        let (mut node, mut device) = (self.node.clone(), self.device.clone());
        node["file"]["filename"] = format!("/dev/fdset/{set}").into();
        device["scsi-id"] = address.target.into();
        device["lun"] = address.lun.into();
        (node, device)
    }
}

/// The times of the stages of one round.
type Stages = Vec<(&'static str, Duration)>;

/// The times of one direction, plug or unplug.
#[derive(Default)]
pub(super) struct FloorTimes {
    pub(super) total: Samples,
    stages: Vec<(&'static str, Samples)>,
}

impl FloorTimes {
    fn add(&mut self, round: Stages) {
        self.total.add(round.iter().map(|(_, time)| *time).sum());
        for (name, time) in round {
            match self.stages.iter_mut().find(|(known, _)| *known == name) {
                Some((_, samples)) => samples.add(time),
                None => self.stages.push((name, std::iter::once(time).collect())),
            }
        }
    }

    pub(super) fn stages(&self) -> &[(&'static str, Samples)] {
        &self.stages
    }
}

/// The times of both.
#[derive(Default)]
pub(super) struct FloorRounds {
    pub(super) plug: FloorTimes,
    pub(super) unplug: FloorTimes,
}

impl FloorRounds {
    fn add(&mut self, (plug, unplug): (Stages, Stages)) {
        self.plug.add(plug);
        self.unplug.add(unplug);
    }
}

/// A client that stays connected to QEMU and to the guest.
pub(super) struct Floor<'a> {
    pub(super) monitor: &'a mut Qmp,
    pub(super) observer: &'a mut ObserverConnection,
    pub(super) commands: &'a Commands,
    /// Whether the guest also mounts the ext4 file system of the disk.
    pub(super) mounts: bool,
}

impl Floor<'_> {
    /// Runs one round: a plug and an unplug.
    pub(super) async fn round(
        &mut self,
        rounds: &mut FloorRounds,
        volume: &Volume,
        round: usize,
    ) -> Result<(), Error> {
        self.monitor.set_deadline(Deadline::after(LIMIT));
        // Another address in each round, as ecr-runtime uses.
        let lun = u32::try_from(round % 250 + 1).unwrap_or(1);
        let address = Address { host: 0, target: 100, lun };
        let (set, plug) = self.plug(volume, address).await?;
        let unplug = self.unplug(address).await?;
        self.execute("remove-fd", json!({ "fdset-id": set })).await?;
        rounds.add((plug, unplug));
        Ok(())
    }

    /// Plugs in the minimum time: without checks, device node, and device filter.
    async fn plug(&mut self, volume: &Volume, address: Address) -> Result<(u64, Stages), Error> {
        let file = open(volume)?;
        let mut watch = StageTimer::start();
        let set =
            self.monitor.add_fd(&file, None, &self.commands.opaque).await.map_err(failed)?.set;
        watch.lap("add_fd");
        let (node, device) = self.commands.at(set, address);
        self.execute("blockdev-add", node).await?;
        watch.lap("blockdev_add");
        self.execute("device_add", device).await?;
        watch.lap("device_add");
        let request = if self.mounts { Request::Mount(address) } else { Request::Scan(address) };
        match self.observer.ask(&request).await? {
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
        let request =
            if self.mounts { Request::Unmount(address) } else { Request::Delete(address) };
        self.observer.ask(&request).await?;
        watch.lap("guest");
        self.execute("device_del", json!({ "id": device })).await?;
        watch.lap("device_del");
        let deadline = Deadline::after(LIMIT);
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

/// Attaches the volume at target 0, LUN 1, and looks no further.
pub(super) async fn attach(
    monitor: &mut Qmp,
    commands: &Commands,
    volume: &Volume,
) -> Result<(), Error> {
    let file = open(volume)?;
    let set = monitor.add_fd(&file, None, &commands.opaque).await.map_err(failed)?.set;
    let (node, device) = commands.at(set, Address { host: 0, target: 0, lun: 1 });
    monitor.execute("blockdev-add", node).await.map_err(failed)?;
    monitor.execute("device_add", device).await.map_err(failed)?;
    Ok(())
}

/// Detaches it without the guest.
pub(super) async fn detach(monitor: &mut Qmp, commands: &Commands) {
    remove_from_qemu(monitor, &commands.volume_id).await;
}

fn open(volume: &Volume) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT | libc::O_EXCL);
    let path = volume.path();
    options.open(path).map_err(|source| Error::File {
        action: "open",
        path: path.to_owned(),
        source,
    })
}

fn failed(error: QmpError) -> Error {
    Error::Monitor(error.to_string())
}

/// Measures the stages of a round.
struct StageTimer {
    last: Instant,
    stages: Stages,
}

impl StageTimer {
    fn start() -> Self {
        let now = Instant::now();
        Self { last: now, stages: Vec::new() }
    }

    fn lap(&mut self, stage: &'static str) {
        let now = Instant::now();
        self.stages.push((stage, now - self.last));
        self.last = now;
    }

    fn end(self) -> Stages {
        self.stages
    }
}
