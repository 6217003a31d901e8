//! `vm-harness bench`: hot-plug beside the least that it could take, in the same VM and alternating with it.
//!
//! The floor is a client that is already connected and sends the same three QMP commands (add-fd, blockdev-add, device_add,
//! as a recording of ours has them), and a bare program in the guest that has its uevent socket open, writes `0 T L` to the
//! host's `scan` file and answers at the block event. The process's start is measured by itself, with a call that does nothing.
//! So is what comes on top of the floor whatever the code is like: a connection to the agent, and an empty call on it.

use std::{
    ffi::OsStr,
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt as _,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use guest_observer::{Address, Reply, Request};
use host_trigger::qmp::Qmp;
use serde_json::Value;
use vm_harness::{Container, Conversation, Error, Machine, QmpProxy, Sandbox, Volume, remove_from_qemu};

use super::{empty_call::empty_call, share::Share, step::step};

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Measured rounds of each, after five to warm up
    #[arg(long, default_value_t = 50, value_name = "N")]
    rounds: usize,
    /// A further word of the kernel command line; may be repeated
    #[arg(long, value_name = "WORD")]
    kernel_param: Vec<String>,
    #[command(flatten)]
    share: Share,
}

const WARM_UP: usize = 5;

/// One round of each, in microseconds.
#[derive(Default)]
struct Rounds {
    whole: Vec<u64>,
    start: Vec<u64>,
    floor: Vec<Vec<(&'static str, u64)>>,
    stages: Vec<Value>,
    connect: Vec<u64>,
    empty_call: Vec<u64>,
}

impl Bench {
    pub(crate) async fn run(self) -> Result<ExitCode, Error> {
        let machine = Machine { kernel_parameters: self.kernel_param.clone(), ..Machine::default() };
        let sandbox = step("boot a sandbox", Sandbox::boot(&machine)).await?;
        let container = sandbox.try_start_container(&vm_harness::ContainerOptions::default()).await?;
        let volume = Volume::loop_device(16 << 20);
        let mut monitor = sandbox.monitor().await?;
        let mut observer = sandbox.observer().open().await?;
        observer.ask(&Request::OpenUevents).await?;
        let commands = Commands::record(&sandbox, &container, &volume, &mut monitor).await?;
        let mut rounds = Rounds::default();
        for round in 0..WARM_UP + self.rounds {
            let (whole, stages) = hot_plug(&sandbox, &container, &volume, &mut monitor).await?;
            let floor = floor(&mut monitor, &mut observer, &volume, &commands, round).await?;
            let start = process_start(&sandbox).await;
            let (connect, call) = empty_call(&sandbox).await?;
            if round >= WARM_UP {
                rounds.whole.push(whole);
                rounds.stages.push(stages);
                rounds.floor.push(floor);
                rounds.start.push(start);
                rounds.connect.push(micros(connect));
                rounds.empty_call.push(micros(call));
            }
        }
        rounds.print(&sandbox);
        self.share.print(&sandbox).await?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Our command, from the process's start to its end, and its own account of the time.
async fn hot_plug(
    sandbox: &Sandbox,
    container: &Container,
    volume: &Volume,
    monitor: &mut Qmp,
) -> Result<(u64, Value), Error> {
    let finished = sandbox.hot_plug_command(container, &[(volume, "/dev/bench")]).run().await;
    let plugged = finished.succeeded(sandbox.guest()).remove(0);
    sandbox.detach(&plugged).await?;
    remove_from_qemu(monitor, plugged.id()).await;
    Ok((micros(finished.elapsed), finished.json()["timings_us"].clone()))
}

/// The three commands that a plug gives to QEMU, word for word.
struct Commands {
    volume_id: String,
    opaque: String,
    node: Value,
    device: Value,
}

impl Commands {
    /// Records those of one plug.
    async fn record(
        sandbox: &Sandbox,
        container: &Container,
        volume: &Volume,
        monitor: &mut Qmp,
    ) -> Result<Self, Error> {
        let proxy = QmpProxy::start(&sandbox.qmp_socket())?;
        let command = sandbox.hot_plug_command(container, &[(volume, "/dev/bench")]);
        let finished = command.args([OsStr::new("--qmp"), proxy.path().as_os_str()]).run().await;
        let plugged = finished.succeeded(sandbox.guest()).remove(0);
        sandbox.detach(&plugged).await?;
        remove_from_qemu(monitor, plugged.id()).await;
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

/// The least that a plug could take on this machine: no checks, no node, no filter.
async fn floor(
    monitor: &mut Qmp,
    observer: &mut Conversation,
    volume: &Volume,
    commands: &Commands,
    round: usize,
) -> Result<Vec<(&'static str, u64)>, Error> {
    let open = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT | libc::O_EXCL)
        .open(volume.path());
    let file =
        open.map_err(|source| Error::File { action: "open", path: volume.path().to_owned(), source })?;
    let address = Address { host: 0, target: 100, lun: u32::try_from(round % 250 + 1).unwrap_or(1) };
    let (mut node, mut device) = (commands.node.clone(), commands.device.clone());
    device["scsi-id"] = address.target.into();
    device["lun"] = address.lun.into();
    let failed = |error: host_trigger::qmp::QmpError| Error::Monitor(error.to_string());

    let start = Instant::now();
    let set = monitor.add_fd(&file, None, &commands.opaque).await.map_err(failed)?.set;
    let added_fd = start.elapsed();
    node["file"]["filename"] = format!("/dev/fdset/{set}").into();
    monitor.execute("blockdev-add", node).await.map_err(failed)?;
    let added_node = start.elapsed();
    monitor.execute("device_add", device).await.map_err(failed)?;
    let added_device = start.elapsed();
    match observer.ask(&Request::Scan(address)).await? {
        Reply::Block { .. } => {}
        other => return Err(Error::Observer(format!("unexpected reply {other:?}"))),
    }
    let total = start.elapsed();

    drop(file);
    observer.ask(&Request::Delete(address)).await?;
    remove_from_qemu(monitor, &commands.volume_id).await;
    Ok(vec![
        ("add_fd", micros(added_fd)),
        ("blockdev_add", micros(added_node - added_fd)),
        ("device_add", micros(added_device - added_node)),
        ("guest", micros(total - added_device)),
        ("total", micros(total)),
    ])
}

/// A call that does nothing: what a process costs to start and to end.
async fn process_start(sandbox: &Sandbox) -> u64 {
    micros(sandbox.ecr_runtime().args(["--version"]).run().await.elapsed)
}

impl Rounds {
    /// The times of one stage of the floor.
    fn floor(&self, stage: &str) -> Vec<u64> {
        let stages = self.floor.iter().flatten();
        stages.filter(|(name, _)| *name == stage).map(|(_, time)| *time).collect()
    }

    fn print(&self, sandbox: &Sandbox) {
        println!(
            "{} rounds, accelerator {}, milliseconds (minimum / median / 90 %)",
            self.whole.len(),
            sandbox.guest().accelerator()
        );
        row("hot-plug, the process's start to its end", &self.whole);
        row("  a process that does nothing", &self.start);
        row("floor: connected client, bare guest", &self.floor("total"));
        let work: Vec<u64> =
            self.whole.iter().zip(&self.start).map(|(whole, start)| whole.saturating_sub(*start)).collect();
        row("hot-plug without the process", &work);
        println!("\nstages of the command, as it reports them");
        let names: Option<Vec<String>> =
            self.stages.first().and_then(Value::as_object).map(|stages| stages.keys().cloned().collect());
        for name in names.unwrap_or_default() {
            let times: Vec<u64> = self.stages.iter().filter_map(|stages| stages[&name].as_u64()).collect();
            row(&format!("  {name}"), &times);
        }
        println!("\nstages of the floor");
        for name in ["add_fd", "blockdev_add", "device_add", "guest"] {
            row(&format!("  {name}"), &self.floor(name));
        }
        println!("\na question to the agent that does nothing");
        row("  connect", &self.connect);
        row("  call", &self.empty_call);
        let ratio = median(&work) as f64 / median(&self.floor("total")) as f64;
        println!("\nhot-plug without the process, beside the floor: {ratio:.2} at the median");
    }
}

fn row(name: &str, times: &[u64]) {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = |share: usize| sorted.get(sorted.len() * share / 100).map_or(0.0, |&time| time as f64 / 1000.0);
    println!("{name:<42} {:7.2} / {:7.2} / {:7.2}", at(0), median(times) as f64 / 1000.0, at(90));
}

fn median(times: &[u64]) -> u64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
