//! `block-volume hot-unplug`: the sequence from a device in a container back to a free volume on
//! the host.
//!
//! 1. Before anything changes: find and lock the sandbox, find the volume in QEMU.
//! 2. The guest detaches it (device node, right, flush, disk), or refuses because it is in use:
//!    then nothing has changed. Once it has released the disk, QEMU removes the device at the same
//!    time as the guest removes the disk.
//! 3. QEMU's block node and descriptors are removed; the descriptors last, because they carry the
//!    record that a repetition needs.
//!
//! A detachment that has begun is completed, also after a signal: half of it is of no use. What an
//! interrupted plug or unplug left is detached in the same way, as far as it exists.
//!
//! With `--wait`, a refusal because of holders or of other users in QEMU ends a turn, and not the
//! command (`patience`).

mod patience;
mod without_guest;

use std::{path::PathBuf, time::Duration};

use block_volume_api::block_volume::{Detachment, Reason};
use block_volume_qmp::Qmp;
use clap::Args;

use patience::Patience;

use crate::{
    Deadline, Error,
    cli::{duration::parse_duration, selector::VolumeSelector, target::Target},
    guest_holder::GuestHolder,
    ops::{
        detach::{Detach, Detached},
        holder_wait,
        inspect::{self, Details, VolumeView},
        select,
        session::{self, Connections, Guest, Session},
        signals::Signals,
        volume::Volume,
    },
    output::{
        envelope::{Envelope, Outcome},
        report::Report,
    },
    qemu::{
        medium::Drive,
        node_users::{self, NodeUsers},
        throttle::Limits,
    },
    stopwatch::Stopwatch,
};

/// Detach a volume from its container, and free it on the host
///
/// A volume that is in use in the guest is not detached (exit status 5), and nothing changes. The
/// holders are listed: processes that have the device open by any device node, or a file of what is
/// mounted (--mount-path), mounts in any container or outside, device mapper, md, loop devices,
/// swap. --wait gives them time to release the volume. --force detaches anyway: data that the guest
/// has not written back is written as far as possible, holders get I/O errors from then on, a file
/// system on the volume stays mounted and broken until it is unmounted, and the holders that lost
/// the volume are listed. The container may be gone. A volume that an interrupted run left
/// incomplete is detached as far as it exists. On success the guest has no disk, the container no
/// device node, right or mount, and QEMU no device, block node or descriptor of the volume: the
/// host can use it again. What the container keeps the guest from removing in its file system is
/// left behind, with a warning on standard error: the volume is detached all the same, and what is
/// left leads to no disk.
///
/// A volume that does not exist is `unchanged`, with exit status 0, if --volume names it: it is as
/// requested. A path alone does not say which volume was meant, so with --device-path or
/// --mount-path it is not found (exit status 3).
///
/// --force --without-guest frees the volume on the host alone, and never contacts the guest: for a
/// guest that hangs, that lies, or that has no agent of ours. All attachments of a shared volume
/// lose it, so it is named by --volume alone. The output says what is lost and what the guest may
/// still have. The volume is then `abandoned`: nothing new is plugged into the sandbox (exit status
/// 4) before repair, or hot-unplug without this option, has detached it in the guest. Use it last.
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

    /// Container ID or a unique prefix of it; with --pod, the container's name. Only a volume of
    /// this container is meant
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,

    /// Which volume.
    #[command(flatten)]
    pub selector: VolumeSelector,

    /// Time for holders in the guest, and for block jobs and exports in QEMU, to release the
    /// volume, at most 9m, in addition to --timeout. Other commands on the sandbox go on meanwhile
    #[arg(long, value_name = "TIME", value_parser = parse_wait)]
    pub wait: Option<Duration>,

    /// Detach anyway, and list the holders that lost the volume
    #[arg(long, conflicts_with = "wait")]
    pub force: bool,

    /// Free the volume on the host without asking the guest, which hangs, lies, or has no agent of
    /// ours; list what is lost. Needs --force
    #[arg(long)]
    pub without_guest: bool,

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
    if verb.without_guest && !verb.force {
        let text = "--without-guest takes the volume from a guest that is not asked, and what the \
                    guest has not written is lost: confirm it with --force";
        return Err(Error::Usage { text: text.to_owned() });
    }
    let options = verb.target.session(run_dir, verb.container.as_deref())?;
    let (mut session, mut signals) = Session::open(options).await?;
    if verb.without_guest {
        return without_guest::run(verb, session, signals).await;
    }
    let mut patience = Patience::new(verb.wait);
    loop {
        if let Some(done) = turn(verb, &mut session, &mut signals, &mut patience).await? {
            let Done { result, volume, broken_holders } = done;
            return Ok(report(verb, result, volume, broken_holders, session.watch));
        }
    }
}

/// What came of a turn that ended the command.
struct Done {
    result: Outcome,
    volume: Option<Volume>,
    broken_holders: Vec<GuestHolder>,
}

/// One turn: everything is read, and the volume detached. `None`: it was in use, the wait was not
/// in vain, and everything has to be read anew.
async fn turn(
    verb: &HotUnplug,
    session: &mut Session,
    signals: &mut Signals,
    patience: &mut Patience,
) -> Result<Option<Done>, Error> {
    patience.begin_turn(session)?;
    let prepared = signals.unless_caught(prepare(verb, session, patience)).await;
    let Some(prepared) = prepared.map_err(|e| patience.failed(e))? else {
        return Ok(Some(patience.gone()));
    };
    let Prepared { mut qmp, guest, view, node } = prepared;
    patience.same(&view)?;
    if let Err(in_use) = node {
        if verb.dry_run {
            return Err(in_use);
        }
        patience.wait_for_node(session, signals, qmp, &view, in_use).await?;
        return Ok(None);
    }
    let VolumeView { known, volume, request } = &view;
    if verb.dry_run {
        let holders = dry_run(verb, guest.as_ref(), request.as_ref(), session.deadline);
        let broken_holders = signals.unless_caught(holders).await?;
        let volume = Some(volume.clone());
        return Ok(Some(Done { result: Outcome::Detached, volume, broken_holders }));
    }
    if !patience.asks_before_it_waits() {
        qmp.close();
        patience.wait_for_holders(session, signals, guest.as_ref(), &view).await?;
        return Ok(None);
    }

    let done = {
        let mut detach = Detach {
            sandbox: &session.sandbox,
            log: session.log,
            deadline: session.deadline,
            watch: &mut session.watch,
            qmp: &mut qmp,
            id: &known.id,
            guest: guest.as_ref(),
            is_abandoned: known.state.is_abandoned,
            force: verb.force,
            left_behind: patience.left_behind(),
        };
        let mut work = std::pin::pin!(detach.run(request.clone()));
        tokio::select! {
            done = &mut work => done,
            interrupted = signals.next() => {
                session.log.step(|| {
                    "a detachment that has begun is completed; a second signal ends it".to_owned()
                });
                tokio::select! {
                    done = &mut work => match done {
                        Err(e) if holder_wait::is_busy(&e) => Err(interrupted),
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
    match done {
        Err(busy) if holder_wait::is_busy(&busy) => {
            qmp.close();
            patience.busy(busy)?;
            patience.wait_for_holders(session, signals, guest.as_ref(), &view).await?;
            Ok(None)
        }
        done => {
            let Detached { broken_holders, left_behind, .. } =
                done.map_err(|e| patience.failed(e))?;
            let volume = Some(Volume { left_behind, ..view.volume });
            Ok(Some(Done { result: Outcome::Detached, volume, broken_holders }))
        }
    }
}

/// What is known before anything changes.
struct Prepared {
    qmp: Qmp,
    /// `None`: the guest cannot have anything of the volume.
    guest: Option<Guest>,
    view: VolumeView,
    /// Whether QEMU would release the block node.
    node: Result<(), Error>,
}

/// Finds the volume, and the guest if it has to be asked. `None`: the volume does not exist, and
/// that is what was asked for.
async fn prepare(
    verb: &HotUnplug,
    session: &mut Session,
    patience: &Patience,
) -> Result<Option<Prepared>, Error> {
    let Session { sandbox, deadline, watch, .. } = session;
    let users = NodeUsers::queries();
    let (connections, mut replies) = session::connect_asking(sandbox, *deadline, &users).await?;
    let Connections { mut qmp, mut inventory, guest } = connections;
    // They grow by kilobytes with each volume.
    let mut all = inventory.attachments();
    if select::needs_nodes(verb.selector.selection(), &all) {
        inventory.read_nodes(&mut qmp).await?;
        all = inventory.attachments();
    }
    let known = match patience.find(&all) {
        Some(found) => found,
        None => {
            let selection = verb.selector.selection();
            let container = verb.container.as_deref();
            match select::one_of(selection, container, sandbox, all) {
                Err(Error::VolumeNotFound { .. }) if verb.selector.volume.is_some() => None,
                found => Some(found?),
            }
        }
    };
    let Some(known) = known else { return Ok(None) };
    watch.lap("qemu");
    if known.attachment.is_none() {
        return Err(Error::RecordLost { volume: known.id.to_string() });
    }
    let mut view = VolumeView::new(&mut qmp, &inventory, &sandbox.id, known).await?;
    if node_users::is_covered(&mut qmp, &view.known.id, view.known.state.device).await? {
        view.set_drive(&Drive::read(&mut qmp).await?);
        view.volume.throttle = Limits::default();
    }
    let node = match view.request.as_ref().is_some_and(|request| request.keep_disk) {
        true => Ok(()),
        false => {
            let users = NodeUsers::from_replies(&mut qmp, &mut replies).await?;
            users.check(&view.known.id)
        }
    };
    let is_asked = node.is_ok() && view.request.is_some();
    let guest = if is_asked { Some(guest.await?) } else { None };
    watch.lap("prepare");
    Ok(Some(Prepared { qmp, guest, view, node }))
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
    let seen = inspect::inspect(&guest.agent, request, Details::Holders, deadline).await?;
    if !seen.holders_unknown.is_empty() {
        let (reason, message) = (Reason::REASON_SYSTEM, seen.holders_unknown);
        return Err(Error::guest(reason, message));
    }
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
    let volumes = volume.into_iter().collect();
    let report = Report { broken_holders, ..Report::of(volumes) };
    Envelope::new("hot-unplug", result, report).with_dry_run(verb.dry_run).with_timings(watch)
}
