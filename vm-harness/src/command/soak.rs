//! `vm-harness soak`: one volume is plugged and unplugged many times while another, the neighbour,
//! is written and read continuously.
//!
//! Each cycle writes new bytes to the volume on the host and reads them in the container, which
//! detects a stale disk or page. The neighbour's load writes random blocks, reads them from the
//! disk again, and compares them. It writes with many SCSI commands at the same time, as a file
//! system does: only this triggers QEMU's bug `reported-luns-changed` (`qemu_bug.rs` in
//! `host-trigger`).
//!
//! The guest's kernel reports when it [recovers from an
//! error](https://docs.kernel.org/scsi/scsi_eh.html), which has no other visible effect.

use std::{
    io::{Seek as _, SeekFrom, Write as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use vm_harness::{
    Container, ContainerOptions, Error, Footprint, Machine, Sandbox, Snapshot, Volume, random_bytes,
};

use super::progress::step;

/// How long to run.
#[derive(Debug, Args)]
#[command(before_help = "Example: vm-harness soak --cycles 100")]
pub(crate) struct Soak {
    /// How often the volume is plugged and unplugged
    #[arg(long, default_value_t = 1000, value_name = "N")]
    cycles: usize,
}

const PATH: &str = "/dev/soak";
const NEIGHBOUR: &str = "/dev/neighbour";
/// Bytes that are compared in each cycle.
const COMPARED: u64 = 4096;
/// Lines of figures during the run.
const REPORTS: usize = 10;
/// Makes the kernel log that it recovers from a SCSI error.
const LOG_RECOVERY: &str = "scsi_mod.scsi_logging_level=2";
/// The kernel's message when it recovers.
const RECOVERY: &str = ": waking up";
/// The kernel's log is read and emptied after this many cycles: it has space for some hundred.
const LOG_EVERY: usize = 25;

/// Writes and compares until the file `stop` exists. The pieces have gaps between them, and the
/// last one flushes them together: eight commands at the same time. After that no process has the
/// device open: the last close drops the page cache, so the bytes are read from the disk.
const LOAD: &str = r#"
mkdir /dev/load && cd /dev/load && round=0 && pieces="0 1 2 3 4 5 6 7"
while [ ! -e stop ]; do
  dd if=/dev/urandom of=block bs=4k count=8 2>/dev/null
  at=$(( round % 16 * 16 )); >read
  { for piece in $pieces; do
    [ $piece = 7 ] && flush=,fsync || flush=
    dd if=block of=/dev/neighbour bs=4k count=1 skip=$piece seek=$(( at + 2 * piece )) conv=notrunc$flush 2>>errors ||
      echo "write $round" >>errors
  done; } 3<>/dev/neighbour
  for piece in $pieces; do
    dd if=/dev/neighbour bs=4k count=1 skip=$(( at + 2 * piece )) 2>/dev/null >>read || echo "read $round" >>errors
  done
  cmp block read >>errors 2>&1 || echo "other bytes $round" >>errors
  round=$(( round + 1 )); echo $round >rounds
done
grep -v records errors | grep -v copied >wrong
touch over
"#;

impl Soak {
    pub(crate) async fn run(self) -> Result<ExitCode, Error> {
        let machine =
            Machine { kernel_parameters: vec![LOG_RECOVERY.to_owned()], ..Machine::default() };
        let sandbox = step("boot a sandbox", Sandbox::boot(&machine)).await?;
        let container = sandbox.try_start_container(&ContainerOptions::default()).await?;
        let busy = sandbox.try_start_container(&ContainerOptions::default()).await?;
        let (volume, neighbour) = (Volume::loop_device(4 << 20), Volume::loop_device(4 << 20));
        plug(&sandbox, &busy, &neighbour, NEIGHBOUR).await;
        // In its own session with its own streams, so that the call that starts it ends.
        let load = format!("setsid sh -c '{LOAD}' </dev/null >/dev/null 2>&1 &");
        busy.try_exec(&["sh", "-c", &load], b"").await?;
        let before = Snapshot::try_of(&sandbox, &[&container]).await?;

        let report_every = (self.cycles / REPORTS).max(1);
        let (mut plugs, mut unplugs, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
        let mut reports: Vec<Footprint> = Vec::new();
        let mut log = KernelLog::default();
        let start = Instant::now();
        for cycle in 1..=self.cycles {
            let bytes = refresh(&volume)?;
            plugs.push(plug(&sandbox, &container, &volume, PATH).await);
            let read =
                container.try_exec(&["dd", &format!("if={PATH}"), "bs=4k", "count=1"], b"").await?;
            if read.stdout != bytes {
                wrong.push(format!("cycle {cycle}: the container reads other bytes"));
            }
            unplugs.push(unplug(&sandbox, &container).await);
            if cycle % LOG_EVERY == 0 || cycle == self.cycles {
                log.read(&sandbox, cycle).await?;
            }
            if cycle % report_every == 0 {
                let now = Footprint::of(&sandbox).await?;
                let rounds = busy.try_exec(&["cat", "/dev/load/rounds"], b"").await?;
                println!(
                    "{cycle:>6} cycles: plug {:.1} ms, unplug {:.1} ms, {now}, \
                     neighbour compared {} times",
                    median_ms(&plugs[cycle - report_every..]),
                    median_ms(&unplugs[cycle - report_every..]),
                    rounds.text().trim()
                );
                reports.push(now);
            }
        }
        println!("{} cycles in {:.1?}", self.cycles, start.elapsed());
        wrong.extend(before.changes(&sandbox, &[&container]).await?);
        wrong.extend(end_load(&sandbox, &busy).await?);
        // By the second report all caches are filled.
        if let (Some(early), Some(late)) = (reports.get(1), reports.last()) {
            wrong.extend(late.growth_since(early));
        }
        wrong.extend(log.wrong());
        wrong.iter().for_each(|line| println!("WRONG: {line}"));
        Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

async fn plug(sandbox: &Sandbox, container: &Container, volume: &Volume, path: &str) -> Duration {
    let finished = sandbox.hot_plug_command(container, &[(volume, path)]).run().await;
    finished.succeeded(sandbox.guest());
    finished.elapsed
}

async fn unplug(sandbox: &Sandbox, container: &Container) -> Duration {
    let verb = ["block-volume", "hot-unplug", "--output", "json", "--sandbox", sandbox.id()];
    let command = sandbox.ecr_runtime().args(verb);
    let finished = command.args(["--container", container.id(), "--device-path", PATH]).run().await;
    finished.succeeded(sandbox.guest());
    finished.elapsed
}

/// Writes new bytes to the volume, through the device on the host.
fn refresh(volume: &Volume) -> Result<Vec<u8>, Error> {
    let bytes = random_bytes(usize::try_from(COMPARED).unwrap_or(usize::MAX));
    let write = || {
        let mut device = std::fs::OpenOptions::new().write(true).open(volume.path())?;
        device.seek(SeekFrom::Start(0))?;
        device.write_all(&bytes)?;
        device.sync_all()
    };
    match write() {
        Ok(()) => Ok(bytes),
        Err(source) => {
            Err(Error::File { action: "write to", path: volume.path().to_owned(), source })
        }
    }
}

/// Stops the neighbour's load, and returns its errors.
async fn end_load(sandbox: &Sandbox, busy: &Container) -> Result<Vec<String>, Error> {
    let script = "touch /dev/load/stop; until test -e /dev/load/over; do sleep 0.1; done; \
                  cat /dev/load/rounds /dev/load/wrong";
    let command = ["sh", "-c", script];
    let over = busy.try_exec(&command, b"");
    let over = sandbox
        .guest()
        .wait_for("the end of the neighbour's load", Duration::from_secs(30), over)
        .await??;
    let text = over.text();
    let mut lines = text.lines().map(str::to_owned);
    println!("the neighbour was written and compared {} times", lines.next().unwrap_or_default());
    Ok(lines.map(|line| format!("the neighbour: {line}")).collect())
}

/// What the guest's kernel reports about disks.
#[derive(Debug, Default)]
struct KernelLog {
    /// How often it recovered from an error.
    recoveries: usize,
    /// The cycle after which the first recovery was read.
    first: usize,
    errors: Vec<String>,
}

impl KernelLog {
    /// Reads the messages since the last call.
    async fn read(&mut self, sandbox: &Sandbox, cycle: usize) -> Result<(), Error> {
        let log = sandbox.observer().run(&["/bin/busybox", "dmesg", "-c"]).await?.stdout;
        let words = ["I/O error", "timing out", "rejecting I/O", "Abort", "offlined"];
        let errors = log
            .lines()
            .filter(|line| line.contains("sd") && words.iter().any(|word| line.contains(word)));
        self.errors.extend(errors.map(|line| format!("the guest's kernel: {line}")));
        self.recoveries += log.lines().filter(|line| line.contains(RECOVERY)).count();
        if self.recoveries > 0 && self.first == 0 {
            self.first = cycle;
        }
        Ok(())
    }

    fn wrong(self) -> Vec<String> {
        let mut wrong = self.errors;
        if self.recoveries > 0 {
            let Self { recoveries, first, .. } = self;
            wrong.push(format!(
                "the guest's kernel recovered from SCSI errors {recoveries} times, the first time \
                 within {first} cycles"
            ));
        }
        wrong
    }
}

fn median_ms(times: &[Duration]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default().as_secs_f64() * 1000.0
}
