//! `block-volume stats`: the counters of volumes. It changes nothing. If the guest does not reply,
//! QEMU's counters are shown, with a note that says so.

use std::path::PathBuf;

use clap::Args;

use crate::{
    Error,
    cli::{
        selector::{VolumeSelector, parse_volume},
        target::Target,
    },
    error::ErrorBody,
    ops::{
        container_state::ContainerState,
        file_system::FileSystemUse,
        guest_stats::GuestStats,
        inspect::{self, Details, VolumeView},
        select,
        session::{self, Connections, Session},
    },
    output::{
        envelope::{Envelope, Outcome},
        stats_report::{StatsReport, VolumeStats},
    },
    qemu::block_stats::QemuStats,
    volume_id::VolumeId,
};

/// Show the number of operations, bytes and errors of volumes, and their times
///
/// Changes nothing. The counters begin when the volume is attached. QEMU counts what reached the
/// disk. The guest counts what its kernel requested; its times include waiting for a limit. Of a
/// volume that is mounted, the guest also tells how much of the file system is in use. If the guest
/// does not reply, QEMU's counters are shown, with a note that says so.
#[derive(Debug, Args)]
#[command(before_help = "Example: ecr-runtime block-volume stats --sandbox 7d3a --prometheus")]
pub struct Stats {
    /// How to reach the sandbox.
    #[command(flatten)]
    pub target: Target,

    /// Container ID or a unique prefix of it; with --pod, the container's name [default: all
    /// containers]
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,

    /// Path of the device in the container [default: all volumes]
    #[arg(long, value_name = "PATH", conflicts_with_all = ["volume", "mount_path"])]
    pub device_path: Option<String>,

    /// Path in the container that the volume is mounted at [default: all volumes]
    #[arg(long, value_name = "PATH", conflicts_with = "volume")]
    pub mount_path: Option<String>,

    /// Volume ID, as hot-plug and list print it [default: all volumes]
    #[arg(long, value_name = "ID", value_parser = parse_volume)]
    pub volume: Option<VolumeId>,

    /// Print Prometheus' text format, for a scrape or the node exporter's textfile collector
    #[arg(long, conflicts_with = "output")]
    pub prometheus: bool,

    /// Write Prometheus' text format to this file, which is replaced as a whole
    #[arg(long, value_name = "PATH", requires = "prometheus", conflicts_with = "output")]
    pub output_file: Option<PathBuf>,
}

/// Runs the verb.
///
/// # Errors
/// The sandbox or the volume is not found, or QEMU cannot be asked.
pub async fn run(verb: &Stats, run_dir: Option<PathBuf>) -> Result<Envelope<StatsReport>, Error> {
    let Stats { device_path, mount_path, volume, .. } = verb;
    let is_one = device_path.is_some() || mount_path.is_some() || volume.is_some();
    let selector = is_one.then(|| VolumeSelector {
        device_path: device_path.clone(),
        mount_path: mount_path.clone(),
        volume: volume.clone(),
    });
    selector.as_ref().map_or(Ok(()), VolumeSelector::check)?;
    let options = verb.target.session(run_dir, verb.container.as_deref())?;
    let (mut session, mut signals) = Session::open(options).await?;
    let counted = count(&mut session, selector.as_ref(), verb.container.as_deref());
    let report = signals.unless_caught(counted).await?;
    Ok(Envelope::new("stats", Outcome::Counted, report).with_timings(session.watch))
}

async fn count(
    session: &mut Session,
    selector: Option<&VolumeSelector>,
    container: Option<&str>,
) -> Result<StatsReport, Error> {
    let Session { sandbox, deadline, watch, .. } = session;
    let Connections { mut qmp, inventory, guest } = session::connect(sandbox, *deadline).await?;
    let chosen = match selector {
        Some(selector) => {
            vec![select::one(selector.selection(), container, sandbox, &inventory)?]
        }
        None => select::all(container, sandbox, &inventory)?,
    };
    let of_qemu = QemuStats::read(&mut qmp).await?;
    let (mut volumes, mut requests) = (Vec::new(), Vec::new());
    for known in chosen {
        let qemu = of_qemu.get(&known.id).copied();
        let VolumeView { volume, request, .. } =
            VolumeView::new(&mut qmp, &inventory, &sandbox.id, known).await?;
        requests.push(request);
        volumes.push(VolumeStats {
            id: volume.id,
            sandbox: volume.sandbox,
            container: volume.container,
            pod: None,
            place: volume.place,
            size: volume.size,
            qemu,
            container_state: None,
            file_system: None,
            guest: None,
            guest_error: None,
        });
    }
    watch.lap("qemu");
    let mut guest_error = None;
    if requests.iter().any(Option::is_some) {
        let asked = async {
            let guest = guest.await?;
            let asked: Vec<_> = requests.iter().flatten().collect();
            let replies =
                inspect::inspect_all(&guest.agent, &asked, Details::Stats, *deadline).await;
            let asked = volumes.iter_mut().zip(&requests).filter(|(_, request)| request.is_some());
            for ((volume, _), reply) in asked.zip(replies) {
                match reply {
                    Ok(seen) => {
                        volume.container_state = Some(ContainerState::from_reply(&seen));
                        volume.guest = seen.stats.as_ref().map(GuestStats::from);
                        volume.file_system = seen.file_system.as_ref().map(FileSystemUse::from);
                        let untold = inspect::untold(&seen).filter(|_| !seen.disk_present);
                        volume.guest_error = untold.map(|(_, error)| ErrorBody::from(&error));
                    }
                    Err(e) if inspect::is_of_the_volume(&e) => {
                        volume.guest_error = Some(ErrorBody::from(&e));
                    }
                    Err(e) => return Err(e),
                }
            }
            Ok(())
        };
        guest_error = asked.await.err().map(|e| ErrorBody::from(&e));
    }
    watch.lap("guest");
    Ok(StatsReport { volumes, guest_error })
}
