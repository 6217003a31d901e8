//! `block-volume repair`: completes or rolls back what interrupted runs left in a sandbox, volume
//! by volume. Complete volumes are kept, and nothing that `ecr-runtime` does not own is touched.
//! `ops/recovery/plan.rs` has the table of what is done.
//!
//! Like every verb it goes by what QEMU and the guest have now, so it may itself be killed and run
//! again. A first signal lets it finish the current volume; a second one ends it immediately.

use std::{
    cell::{Cell, RefCell},
    path::PathBuf,
};

use block_volume_qmp::Qmp;
use clap::Args;

use crate::{
    Error,
    cli::target::Target,
    error::ErrorBody,
    ops::{
        inspect::{self, VolumeView},
        place::Place,
        recovery::{Action, GuestReport, Recovered, Recovery, RecoveryPlan},
        session::{self, Connections, Guest, Session},
        volume::{ListedVolume, State},
    },
    output::{
        envelope::{Envelope, Outcome},
        repair_report::{Found, RepairReport, RepairedVolume, UnusedDescriptor},
    },
    path_text,
    qemu::{abandoned, removal::remove_descriptor, volume_state::Unused},
    stopwatch::Stopwatch,
};

/// Complete or roll back what interrupted runs left in a sandbox
///
/// Each volume of which anything is left ends attached or gone. An attachment that the guest had
/// completed is committed; any other is rolled back. An interrupted unplug is completed. A device
/// node, a right or a mount that the container lost is made again. A volume whose container is gone
/// is freed. A volume that hot-unplug --without-guest has freed is detached in the guest, and its
/// record removed. Where the guest cannot tell, nothing is done on a guess. Unused descriptors of
/// ours are removed. Complete volumes are kept, and nothing that others own is touched.
///
/// The exit status is 0 if nothing is left to repair, and 8 otherwise: the guest has to be asked
/// and does not reply, the volume is in use, or its record is lost. For each volume, the report
/// says what was found, what was done, and why.
///
/// A first SIGINT, SIGTERM or SIGHUP lets the current volume be finished; a second one ends the
/// command immediately. Either way it can be run again.
#[derive(Debug, Args)]
#[command(before_help = "Example: ecr-runtime block-volume repair --sandbox 7d3a --dry-run")]
pub struct Repair {
    /// How to reach the sandbox.
    #[command(flatten)]
    pub target: Target,

    /// Report what would be done; change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Runs the verb. What could not be repaired is a part of the result.
///
/// # Errors
/// The sandbox is not found, its QEMU cannot be asked, or a second signal ended the work.
pub async fn run(verb: &Repair, run_dir: Option<PathBuf>) -> Result<Envelope<RepairReport>, Error> {
    let (mut session, mut signals) = Session::open(verb.target.session(run_dir, None)?).await?;
    let mut found = signals.unless_caught(find(&session)).await?;
    session.watch.lap("find_volumes");

    let progress = Progress::default();
    let mut interrupted = None;
    let volumes = {
        let mut work = std::pin::pin!(recover(verb, &session, &mut found, &progress));
        loop {
            tokio::select! {
                volumes = &mut work => break volumes,
                signal = signals.next() => {
                    if let Some(first) = interrupted {
                        let current = progress.current.borrow();
                        let left = vec![format!("a second signal ended the repair: {current}")];
                        return Err(Error::Incomplete { cause: Box::new(first), left });
                    }
                    interrupted = Some(signal);
                    progress.stop.set(true);
                    session.log.step(|| {
                        "the current volume is finished; a second signal ends it".to_owned()
                    });
                }
            }
        }
    };
    session.watch.lap("recover");
    Ok(report(verb, volumes, interrupted, session.watch))
}

/// How far the work is.
#[derive(Debug, Default)]
struct Progress {
    /// Set after a signal: the current volume is the last one.
    stop: Cell<bool>,
    /// The current volume and its parts.
    current: RefCell<String>,
}

/// What was found.
struct FoundVolumes {
    qmp: Qmp,
    /// `None`: no volume requires that the guest is asked.
    guest: Option<Result<Guest, ErrorBody>>,
    views: Vec<VolumeView>,
    unused: Vec<Unused>,
}

/// Finds everything, and changes nothing. The guest is only awaited if it may have something.
async fn find(session: &Session) -> Result<FoundVolumes, Error> {
    let Session { sandbox, deadline, .. } = session;
    let Connections { mut qmp, inventory, guest } = session::connect(sandbox, *deadline).await?;
    let mut views = Vec::new();
    for known in inventory.attachments() {
        views.push(VolumeView::new(&mut qmp, &inventory, &sandbox.id, known).await?);
    }
    let unused = inventory.unused();
    let guest = match views.iter().any(|view| view.request.is_some()) {
        true => Some(guest.await.map_err(|e| ErrorBody::from(&e))),
        false => None,
    };
    Ok(FoundVolumes { qmp, guest, views, unused })
}

async fn recover(
    verb: &Repair,
    session: &Session,
    found: &mut FoundVolumes,
    progress: &Progress,
) -> Vec<RepairedVolume> {
    let FoundVolumes { qmp, guest, views, unused } = found;
    let guest = guest.as_ref().map(Result::as_ref);
    let mut recovery = Recovery {
        sandbox: &session.sandbox,
        log: session.log,
        deadline: session.deadline,
        qmp,
        guest: guest.and_then(Result::ok),
        detached: Vec::new(),
    };
    let reports = ask(views, guest, session).await;
    let mut volumes = Vec::new();
    for (view, (state, reported)) in views.iter().zip(reports) {
        let parts = view.known.state.describe_parts(&view.known.id, view.request.is_some());
        progress.current.replace(parts);
        if progress.stop.get() {
            let recovered = Recovered::failed("a signal arrived before its turn");
            volumes.push(row(view, view.without_guest().state, recovered));
            continue;
        }
        let plan = RecoveryPlan::new(&view.known, &reported);
        session.log.step(|| format!("volume {}: {}: {plan:?}", view.volume.id, state.text()));
        let recovered = match verb.dry_run {
            true => recovery.dry_run(view, &plan).await,
            false => recovery.run(view, &plan).await,
        };
        volumes.push(row(view, state, recovered));
    }
    for unused in unused.iter().filter(|_| !progress.stop.get()) {
        let what = format!("descriptor set {}", unused.set);
        progress.current.replace(what.clone());
        let recovered = match verb.dry_run {
            true => Recovered::rolled_back(what),
            false => match remove_unused(recovery.qmp, unused).await {
                Ok(()) => Recovered::rolled_back(what),
                Err(e) => Recovered::failed(format!("{what}: {}", e.message())),
            },
        };
        volumes.push(RepairedVolume {
            id: unused.id.as_ref().map(ToString::to_string).unwrap_or_default(),
            container: String::new(),
            pod: None,
            place: Place::default(),
            source: String::new(),
            found: Found::Descriptor(UnusedDescriptor::UnusedDescriptor),
            action: recovered.action,
            state_after: recovered.after,
            detail: recovered.detail,
        });
    }
    volumes
}

async fn remove_unused(qmp: &mut Qmp, unused: &Unused) -> Result<(), Error> {
    match &unused.id {
        Some(id) if unused.is_abandoned => abandoned::remove(qmp, id, None).await,
        _ => Ok(remove_descriptor(qmp, unused.set, unused.fd).await?),
    }
}

/// Asks the guest about all volumes, before anything is changed: the state of each, and what is
/// known of it for its plan.
async fn ask(
    views: &[VolumeView],
    guest: Option<Result<&Guest, &ErrorBody>>,
    session: &Session,
) -> Vec<(State, GuestReport)> {
    let (mut told, error) = match guest {
        // It leaves time for the recovery.
        Some(Ok(guest)) => {
            let deadline = session.deadline.within(session.deadline.remaining() / 2);
            let (told, error) = inspect::ask_all(views, &guest.agent, false, deadline).await;
            (told.into_iter(), error.map(|e| ErrorBody::from(&e)))
        }
        Some(Err(error)) => (Vec::new().into_iter(), Some(error.clone())),
        None => (Vec::new().into_iter(), None),
    };
    let report = |view: &VolumeView| {
        let listed = told.next();
        match (&view.request, listed, &error) {
            (Some(_), Some(ListedVolume { guest_error: Some(error), state, .. }), _) => {
                (state, GuestReport::Unavailable(error))
            }
            (Some(_), Some(listed), _) => (listed.state, GuestReport::Reported(Box::new(listed))),
            (Some(_), None, Some(error)) => {
                (view.without_guest().state, GuestReport::Unavailable(error.clone()))
            }
            _ => (view.without_guest().state, GuestReport::NotAsked),
        }
    };
    views.iter().map(report).collect()
}

fn row(view: &VolumeView, state: State, recovered: Recovered) -> RepairedVolume {
    let volume = &view.volume;
    RepairedVolume {
        id: volume.id.clone(),
        container: volume.container.clone(),
        pod: None,
        place: volume.place.clone(),
        source: path_text::encode(&volume.source_device),
        found: Found::Volume(state),
        action: recovered.action,
        state_after: recovered.after,
        detail: recovered.detail,
    }
}

fn report(
    verb: &Repair,
    volumes: Vec<RepairedVolume>,
    interrupted: Option<Error>,
    watch: Stopwatch,
) -> Envelope<RepairReport> {
    let failed = volumes.iter().filter(|volume| volume.action == Action::Failed);
    let left: Vec<_> =
        failed.map(|volume| format!("volume {}: {}", volume.id, volume.detail)).collect();
    let changes =
        |volume: &RepairedVolume| matches!(volume.action, Action::Completed | Action::RolledBack);
    let result = match volumes.iter().any(changes) {
        true => Outcome::Repaired,
        false => Outcome::Unchanged,
    };
    let error = match interrupted {
        Some(signal) => Some(signal),
        None if left.is_empty() => None,
        None => Some(Error::Unrepaired { left }),
    };
    Envelope::new("repair", result, RepairReport { volumes })
        .with_dry_run(verb.dry_run)
        .with_error(error.as_ref())
        .with_timings(watch)
}
