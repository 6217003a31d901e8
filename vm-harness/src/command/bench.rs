//! `vm-harness bench`: hot-plug beside the least that it could take, in the same VM and alternating with it.
//!
//! The floor is a client that is already connected and sends the same three QMP commands (add-fd, blockdev-add, device_add), and a
//! bare program in the guest that has its uevent socket open, writes `0 T L` to the host's `scan` file and answers at the
//! block event. The process's start is measured by itself, with a call that does nothing.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use guest_observer::{Address, Reply, Request};
use host_trigger::qmp::Qmp;
use serde_json::{Value, json};
use vm_harness::{Container, Conversation, Error, Machine, Sandbox, Volume, remove_from_qemu};

use super::step::step;

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Measured rounds of each, after five to warm up
    #[arg(long, default_value_t = 50, value_name = "N")]
    rounds: usize,
    /// A further word of the kernel command line; may be repeated
    #[arg(long, value_name = "WORD")]
    kernel_param: Vec<String>,
}

const WARM_UP: usize = 5;

/// One round of each, in microseconds.
#[derive(Default)]
struct Rounds {
    whole: Vec<u64>,
    start: Vec<u64>,
    floor: Vec<u64>,
    stages: Vec<Value>,
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
        let mut rounds = Rounds::default();
        for round in 0..WARM_UP + self.rounds {
            let (whole, stages) = hot_plug(&sandbox, &container, &volume, &mut monitor).await?;
            let floor = floor(&mut monitor, &mut observer, &volume, round).await?;
            let start = process_start(&sandbox).await;
            if round >= WARM_UP {
                rounds.whole.push(whole);
                rounds.stages.push(stages);
                rounds.floor.push(floor);
                rounds.start.push(start);
            }
        }
        rounds.print(&sandbox);
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

/// The least that a plug could take on this machine: no checks, no node, no filter.
async fn floor(
    monitor: &mut Qmp,
    observer: &mut Conversation,
    volume: &Volume,
    round: usize,
) -> Result<u64, Error> {
    let open = || -> std::io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT | libc::O_EXCL)
            .open(volume.path())
    };
    let file =
        open().map_err(|source| Error::File { action: "open", path: volume.path().to_owned(), source })?;
    let lun = u32::try_from(round % 250 + 1).unwrap_or(1);
    let address = Address { host: 0, target: 100, lun };
    let start = Instant::now();
    let failed = |error: host_trigger::qmp::QmpError| Error::Monitor(error.to_string());
    let set = monitor.add_fd(&file, None, "bench").await.map_err(failed)?.set;
    let node = json!({
        "driver": "raw", "node-name": "bench-node", "cache": { "direct": true },
        "file": {
            "driver": "host_device", "filename": format!("/dev/fdset/{set}"), "aio": "io_uring",
            "cache": { "direct": true },
        },
    });
    monitor.execute("blockdev-add", node).await.map_err(failed)?;
    let device = json!({
        "driver": "scsi-hd", "id": "bench", "bus": "scsi0.0", "channel": 0, "scsi-id": address.target, "lun": lun,
        "drive": "bench-node", "serial": "bench",
    });
    monitor.execute("device_add", device).await.map_err(failed)?;
    match observer.ask(&Request::Scan(address)).await? {
        Reply::Block { .. } => {}
        other => return Err(Error::Observer(format!("unexpected reply {other:?}"))),
    }
    let elapsed = micros(start.elapsed());
    drop(file);
    observer.ask(&Request::Delete(address)).await?;
    monitor.execute("device_del", json!({ "id": "bench" })).await.map_err(failed)?;
    let deadline = host_trigger::Deadline::after(Duration::from_secs(30));
    while let Some(event) = monitor.next_event(deadline).await {
        if event.name == "DEVICE_DELETED" && event.data["device"] == "bench" {
            break;
        }
    }
    monitor.execute("blockdev-del", json!({ "node-name": "bench-node" })).await.map_err(failed)?;
    monitor.execute("remove-fd", json!({ "fdset-id": set })).await.map_err(failed)?;
    Ok(elapsed)
}

/// A call that does nothing: what a process costs to start and to end.
async fn process_start(sandbox: &Sandbox) -> u64 {
    micros(sandbox.ecr_runtime().args(["--version"]).run().await.elapsed)
}

impl Rounds {
    fn print(&self, sandbox: &Sandbox) {
        println!(
            "{} rounds, accelerator {}, milliseconds (minimum / median / 90 %)",
            self.whole.len(),
            sandbox.guest().accelerator()
        );
        row("hot-plug, the process's start to its end", &self.whole);
        row("  a process that does nothing", &self.start);
        row("floor: connected client, bare guest", &self.floor);
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
        let ratio = median(&work) as f64 / median(&self.floor) as f64;
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
