//! `block-volume stats`: what the volumes of a sandbox were asked for. It only looks. Where the
//! guest does not answer, QEMU's part is shown, and that it is only that.

use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::{
    Deadline, Error,
    block_stats::{GuestStats, Operations, QemuStats},
    choice,
    cli::Target,
    lock,
    output::{Failure, FailureBody, SCHEMA, Timings},
    printable::printable,
    reach::Reached,
    sandbox::Place,
    signals::Signals,
    size::human_size,
    stopwatch::Stopwatch,
    survey::{self, Subject},
    table::table,
    volume::VolumeId,
};

/// Shows how many operations, bytes and errors a volume had, and how long they took
///
/// Changes nothing. The counters begin when the volume is plugged: QEMU's count what reached the
/// disk, the guest's what its kernel asked for, with the time that a limit made it wait. Where the
/// guest does not answer, QEMU's part is shown, and that it is only that.
#[derive(Debug, Args)]
pub struct Stats {
    /// How to reach the sandbox.
    #[command(flatten)]
    pub target: Target,

    /// The container's id, or the start of it [default: all containers]
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,

    /// Path of the device in the container [default: all volumes]
    #[arg(long, value_name = "PATH", conflicts_with = "volume")]
    pub device_path: Option<String>,

    /// The volume's id, as hot-plug and list tell it [default: all volumes]
    #[arg(long, value_name = "ID", value_parser = crate::cli::parse_volume)]
    pub volume: Option<VolumeId>,

    /// Prints Prometheus' text format, for a scrape or the node exporter's textfile collector
    #[arg(long, conflicts_with = "output")]
    pub prometheus: bool,
}

/// The counters of volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// [`SCHEMA`].
    pub schema: u32,
    /// `stats`
    pub command: String,
    /// `counted`
    pub result: String,
    /// By container and path.
    pub volumes: Vec<VolumeStats>,
    /// Why the guest could not be asked; the volumes then have QEMU's part alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_error: Option<FailureBody>,
    /// How long the stages took.
    pub timings_us: Timings,
}

/// The counters of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStats {
    /// The volume's id.
    pub id: String,
    /// The sandbox's id.
    pub sandbox: String,
    /// The container's id.
    pub container: String,
    /// The path there.
    pub device_path: String,
    /// In bytes.
    pub size: u64,
    /// Absent where QEMU has no such disk, of a volume that is half plugged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu: Option<QemuStats>,
    /// Absent where the guest was not asked, or has no such disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestStats>,
    /// Why the guest does not tell of this volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_error: Option<FailureBody>,
}

/// Runs the verb.
///
/// # Errors
/// The sandbox or the volume is not found, or QEMU cannot be asked.
pub async fn run(verb: &Stats, run_dir: Option<PathBuf>) -> Result<Counted, Error> {
    let mut signals = Signals::catch()?;
    signals.unless_caught(count(verb, run_dir)).await
}

async fn count(verb: &Stats, run_dir: Option<PathBuf>) -> Result<Counted, Error> {
    let mut watch = Stopwatch::new();
    let deadline = Deadline::after(verb.target.timeout);
    let which = (verb.device_path.is_some() || verb.volume.is_some()).then(|| crate::cli::Which {
        device_path: verb.device_path.clone(),
        volume: verb.volume.clone(),
    });
    which.as_ref().map_or(Ok(()), choice::check)?;
    let container = verb.container.as_deref();
    let place = Place::find(&verb.target.search(run_dir, container)?)?;
    watch.lap("find");
    let _lock = lock::acquire(&place.lock_directory(), deadline).await?;
    watch.lap("lock");

    let (mut qmp, registry, guest) = Reached::new(&place, deadline).await?.split();
    let chosen = match &which {
        Some(which) => vec![choice::find(which, container, &place, &registry)?],
        None => choice::all(container, &place, &registry)?,
    };
    let of_qemu = QemuStats::read(&mut qmp).await?;
    let (mut volumes, mut questions) = (Vec::new(), Vec::new());
    for known in chosen {
        let qemu = of_qemu.get(&known.id).cloned();
        let Subject { volume, question, .. } =
            Subject::new(&mut qmp, &registry, &place.sandbox, known).await?;
        questions.push(question);
        volumes.push(VolumeStats {
            id: volume.id,
            sandbox: volume.sandbox,
            container: volume.container,
            device_path: volume.device_path,
            size: volume.size,
            qemu,
            guest: None,
            guest_error: None,
        });
    }
    watch.lap("qemu");
    let mut guest_error = None;
    if questions.iter().any(Option::is_some) {
        let asked = async {
            let guest = guest.await?;
            for (volume, question) in volumes.iter_mut().zip(&questions) {
                let Some(question) = question else { continue };
                match survey::inspect(&guest.agent, question, false, deadline).await {
                    Ok(seen) => volume.guest = seen.stats.as_ref().map(GuestStats::from),
                    Err(refused @ Error::Guest { .. }) => {
                        volume.guest_error = Some(Failure::from(&refused).error);
                    }
                    Err(e) => return Err(e),
                }
            }
            Ok(())
        };
        guest_error = asked.await.err().map(|e| Failure::from(&e).error);
    }
    watch.lap("guest");
    Ok(Counted {
        schema: SCHEMA,
        command: "stats".to_owned(),
        result: "counted".to_owned(),
        volumes,
        guest_error,
        timings_us: Timings(watch.finish()),
    })
}

const HEAD: [&str; 11] = [
    "VOLUME",
    "CONTAINER",
    "PATH",
    "BY",
    "READS",
    "READ",
    "TIME EACH",
    "WRITES",
    "WRITTEN",
    "TIME EACH",
    "ERRORS",
];

/// For people: two lines a volume, one as QEMU counts and one as the guest does.
pub(crate) fn human(counted: &Counted) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    for volume in &counted.volumes {
        let row = |by: &str, read: &Operations, write: &Operations, errors: u64| {
            [
                volume.id.clone(),
                printable(&volume.container).chars().take(12).collect(),
                printable(&volume.device_path),
                by.to_owned(),
                read.operations.to_string(),
                human_size(read.bytes.unwrap_or_default()),
                time_each(read),
                write.operations.to_string(),
                human_size(write.bytes.unwrap_or_default()),
                time_each(write),
                errors.to_string(),
            ]
        };
        rows.extend(
            volume.qemu.map(|stats| row("qemu", &stats.read, &stats.write, stats.errors())),
        );
        rows.extend(
            volume.guest.map(|stats| row("guest", &stats.read, &stats.write, stats.scsi_errors)),
        );
    }
    let mut lines = table(rows);
    if counted.volumes.is_empty() {
        lines = vec!["no volumes are plugged".to_owned()];
    }
    lines.extend(
        counted
            .guest_error
            .iter()
            .map(|error| format!("the guest was not asked: {}", error.message)),
    );
    lines.extend(counted.volumes.iter().filter_map(|volume| {
        let error = volume.guest_error.as_ref()?;
        Some(format!("the guest does not tell of volume {}: {}", volume.id, error.message))
    }));
    lines.join("\n")
}

fn time_each(operations: &Operations) -> String {
    match operations.average_time_ns {
        Some(nanos) if operations.operations > 0 => format!("{:.3} ms", nanos as f64 / 1e6),
        _ => String::new(),
    }
}

#[cfg(test)]
#[path = "stats_tests.rs"]
pub(crate) mod tests;
