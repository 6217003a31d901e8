//! `block-volume hot-unplug`: the sequence from a device in a container back to a free volume on
//! the host.
//!
//! 1. Before anything changes: find and lock the sandbox, find the volume in QEMU.
//! 2. The guest detaches it (device node, right, flush, disk), or refuses because it is in use:
//!    then nothing has changed.
//! 3. QEMU's device, block node and descriptors are removed; the descriptors last, because they
//!    carry the record that a repetition needs.
//!
//! A detachment that has begun is completed, also after a signal: half of it is of no use. It has
//! not begun while the guest waits for holders: a signal ends the wait, by a request without
//! waiting, which the guest serves before the one that waits. What an interrupted plug or unplug
//! left is detached in the same way, as far as it exists.

use std::{path::PathBuf, time::Duration};

use block_volume_api::block_volume::Detachment;
use block_volume_qmp::Qmp;
use clap::Args;
use tokio::sync::Notify;

use crate::{
    Deadline, Error,
    cli::{duration::parse_duration, selector::VolumeSelector, target::Target},
    guest_holder::GuestHolder,
    ops::{
        detach::{Detach, Detached},
        inspect::{self, VolumeView},
        select,
        session::{self, Connections, Guest, Session},
        volume::Volume,
    },
    output::{
        envelope::{Envelope, Outcome},
        report::Report,
    },
    stopwatch::Stopwatch,
};

/// Detach a volume from its container, and free it on the host
///
/// A volume that is in use in the guest is not detached (exit status 5), and nothing changes. The
/// holders are listed: processes that have the device open by any device node, mounts in any
/// container or outside, device mapper, md, loop devices, swap. --wait gives them time to release
/// the volume. --force detaches anyway: data that the guest has not written back is written as far
/// as possible, holders get I/O errors from then on, a file system on the volume stays mounted and
/// broken until it is unmounted, and the holders that lost the volume are listed. The container may
/// be gone. A volume that an interrupted run left incomplete is detached as far as it exists. On
/// success the guest has no disk, the container no device node and no right, and QEMU no device,
/// block node or descriptor of the volume: the host can use it again. What the container keeps the
/// guest from removing in its file system is left behind, with a warning on standard error: the
/// volume is detached all the same, and what is left leads to no disk.
///
/// A volume that does not exist is `unchanged`, with exit status 0, if --volume names it: it is as
/// requested. A device path alone does not say which volume was meant, so with --device-path it is
/// not found (exit status 3).
///
/// SIGINT, SIGTERM or SIGHUP ends a wait, with nothing changed. Once the guest was asked to detach,
/// a first signal lets the command complete; a second one ends it immediately. The same command
/// completes a detachment that was interrupted.
#[derive(Debug, Args)]
#[command(before_help = "Example: ecr-runtime block-volume hot-unplug --container 4f1c \
                         --device-path /dev/xvda --wait 30s")]
pub struct HotUnplug {
    /// How to reach the sandbox.
    #[command(flatten)]
    pub target: Target,

    /// Container ID or a unique prefix of it; only a volume of this container is meant
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,

    /// Which volume.
    #[command(flatten)]
    pub selector: VolumeSelector,

    /// Time for holders to release the volume, at most 9m, in addition to --timeout. Other commands
    /// on the sandbox wait as long
    #[arg(long, value_name = "TIME", value_parser = parse_wait)]
    pub wait: Option<Duration>,

    /// Detach anyway, and list the holders that lost the volume
    #[arg(long, conflicts_with = "wait")]
    pub force: bool,

    /// Check everything that can be checked, and report what would be done; change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Together with the rest of an ordinary time-out, a longer wait does not fit into one request to
/// the guest.
fn parse_wait(text: &str) -> Result<Duration, String> {
    const MAX_WAIT: Duration = Duration::from_secs(540);
    let wait = parse_duration(text)?;
    if wait <= MAX_WAIT { Ok(wait) } else { Err("expected at most 9m".to_owned()) }
}

/// Runs the verb.
///
/// # Errors
/// The volume is not detached; unless it is [`Error::Incomplete`], nothing has changed.
pub async fn run(verb: &HotUnplug, run_dir: Option<PathBuf>) -> Result<Envelope<Report>, Error> {
    verb.selector.check()?;
    let options = verb.target.session(run_dir, verb.container.as_deref())?;
    let (mut session, mut signals) = Session::open(options).await?;

    let prepared = signals.unless_caught(prepare(verb, &mut session)).await?;
    let Some(Prepared { mut qmp, guest, view }) = prepared else {
        return Ok(report(verb, Outcome::Unchanged, None, Vec::new(), session.watch));
    };
    let VolumeView { known, volume, request } = view;
    if verb.dry_run {
        let holders = dry_run(verb, guest.as_ref(), request.as_ref(), session.deadline);
        let holders = signals.unless_caught(holders).await?;
        return Ok(report(verb, Outcome::Detached, Some(volume), holders, session.watch));
    }

    let done = {
        let impatient = Notify::new();
        let wait = verb.wait.unwrap_or_default();
        let mut detach = Detach {
            sandbox: &session.sandbox,
            log: session.log,
            deadline: session.deadline.plus(wait),
            watch: &mut session.watch,
            qmp: &mut qmp,
            id: &known.id,
            guest: guest.as_ref(),
            force: verb.force,
            wait,
        };
        let mut work = std::pin::pin!(detach.run(request, &impatient));
        tokio::select! {
            done = &mut work => done,
            interrupted = signals.next() => {
                session.log.step(|| {
                    "a detachment that has begun is completed; a second signal ends it".to_owned()
                });
                impatient.notify_one();
                tokio::select! {
                    done = &mut work => match done {
                        Err(Error::InUse { .. }) => Err(interrupted),
                        done => done,
                    },
                    _ = signals.next() => {
                        let parts = known.state.describe_parts(&known.id, guest.is_some());
                        let left = vec![format!("a second signal ended the detachment: {parts}")];
                        Err(Error::Incomplete { cause: Box::new(interrupted), left })
                    }
                }
            }
        }
    };
    let Detached { broken_holders, left_behind } = done?;
    let volume = Volume { left_behind, ..volume };
    Ok(report(verb, Outcome::Detached, Some(volume), broken_holders, session.watch))
}

/// What is known before anything changes.
struct Prepared {
    qmp: Qmp,
    /// `None`: the guest cannot have anything of the volume.
    guest: Option<Guest>,
    view: VolumeView,
}

/// Finds the volume, and the guest if it has to be asked. `None`: the volume is named by its ID and
/// does not exist.
async fn prepare(verb: &HotUnplug, session: &mut Session) -> Result<Option<Prepared>, Error> {
    let Session { sandbox, deadline, watch, .. } = session;
    let Connections { mut qmp, inventory, guest } = session::connect(sandbox, *deadline).await?;
    let selection = verb.selector.selection();
    let known = match select::one(selection, verb.container.as_deref(), sandbox, &inventory) {
        Err(Error::VolumeNotFound { .. }) if verb.selector.volume.is_some() => return Ok(None),
        found => found?,
    };
    watch.lap("qemu");
    if known.attachment.is_none() {
        return Err(Error::RecordLost { volume: known.id.to_string() });
    }
    let view = VolumeView::new(&mut qmp, &inventory, &sandbox.id, known).await?;
    let guest = if view.request.is_some() { Some(guest.await?) } else { None };
    watch.lap("prepare");
    Ok(Some(Prepared { qmp, guest, view }))
}

/// Checks whether the guest would detach the volume. Returns the holders that would lose it by
/// force.
async fn dry_run(
    verb: &HotUnplug,
    guest: Option<&Guest>,
    request: Option<&Detachment>,
    deadline: Deadline,
) -> Result<Vec<GuestHolder>, Error> {
    let (Some(guest), Some(request)) = (guest, request) else { return Ok(Vec::new()) };
    let seen = inspect::inspect(&guest.agent, request, true, deadline).await?;
    // If the disk stays, other containers keep using it.
    let container = &request.attachment.container_id;
    let mut holders = seen.holders;
    holders.retain(|holder| !request.keep_disk || holder.container_id == *container);
    let holders = GuestHolder::from_reply(&holders);
    match verb.force || holders.is_empty() {
        true => Ok(holders),
        false => Err(Error::InUse { volume: request.attachment.serial.clone(), holders }),
    }
}

fn report(
    verb: &HotUnplug,
    result: Outcome,
    volume: Option<Volume>,
    broken_holders: Vec<GuestHolder>,
    watch: Stopwatch,
) -> Envelope<Report> {
    let report = Report { volumes: volume.into_iter().collect(), broken_holders };
    Envelope::new("hot-unplug", result, report).with_dry_run(verb.dry_run).with_timings(watch)
}
