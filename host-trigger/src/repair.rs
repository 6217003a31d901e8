//! `block-volume repair`: whatever killed runs left in a sandbox is completed or undone, volume by
//! volume; what is well is kept, and nothing that is not ours is touched. `mend.rs` says which way
//! each volume goes.
//!
//! It goes by what QEMU and the guest have now, as every verb does, so that it may itself be killed
//! and run again. A first signal lets it finish the volume that it works on; a second one ends it
//! at once.

use std::{
    cell::{Cell, RefCell},
    path::PathBuf,
};

use crate::{
    Deadline, Error,
    cli::Repair,
    listing::{Listed, State},
    lock,
    mend::{Answer, Plan, Workshop},
    output::{self, Failure, FailureBody, SCHEMA, Timings},
    presence::Unused,
    printable::printable,
    reach::{Guest, Reached},
    repaired::{Did, Found, Mended, Now, Repaired, UnusedDescriptor, Whole},
    sandbox::Place,
    signals::Signals,
    stopwatch::Stopwatch,
    survey::Subject,
    undo,
};
use block_volume_qmp::Qmp;

/// Runs the verb. What could not be repaired is told in the result.
///
/// # Errors
/// The sandbox is not found, its QEMU cannot be asked, or a second signal ended the work.
pub async fn run(verb: &Repair, run_dir: Option<PathBuf>) -> Result<Repaired, Error> {
    let mut watch = Stopwatch::new();
    let deadline = Deadline::after(verb.target.timeout);
    let mut signals = Signals::catch()?;
    let place = Place::find(&verb.target.search(run_dir, None)?)?;
    watch.lap("find");
    let _lock = signals.unless_caught(lock::acquire(&place.lock_directory(), deadline)).await?;
    watch.lap("lock");
    let mut found = signals.unless_caught(look(&place, deadline)).await?;
    watch.lap("look");

    let progress = Progress::default();
    let mut interrupted = None;
    let volumes = {
        let mut work = std::pin::pin!(mend(verb, &place, deadline, &mut found, &progress));
        loop {
            tokio::select! {
                volumes = &mut work => break volumes,
                signal = signals.next() => {
                    if let Some(first) = interrupted {
                        let left = vec![format!("a second signal ended the repair: {}", progress.at.borrow())];
                        return Err(Error::Incomplete { cause: Box::new(first), left });
                    }
                    interrupted = Some(signal);
                    progress.stop.set(true);
                    note(verb, || "the volume that is worked on is finished; a second signal ends it".to_owned());
                }
            }
        }
    };
    watch.lap("mend");
    Ok(report(volumes, interrupted, watch))
}

fn note(verb: &Repair, text: impl FnOnce() -> String) {
    if verb.target.verbose {
        output::note(&printable(&text()));
    }
}

/// How far the work is; told and asked from both sides of it.
#[derive(Debug, Default)]
struct Progress {
    stop: Cell<bool>,
    at: RefCell<String>,
}

/// All that there is to mend.
struct Inventory {
    qmp: Qmp,
    guest: Option<Result<Guest, FailureBody>>,
    subjects: Vec<Subject>,
    unused: Vec<Unused>,
}

/// Looks at everything, and changes nothing. The guest is only waited for where it may have
/// something.
async fn look(place: &Place, deadline: Deadline) -> Result<Inventory, Error> {
    let (mut qmp, registry, guest) = Reached::new(place, deadline).await?.split();
    let mut subjects = Vec::new();
    for known in registry.uses() {
        subjects.push(Subject::new(&mut qmp, &registry, &place.sandbox, known).await?);
    }
    let unused = registry.unused();
    let guest = match subjects.iter().any(|subject| subject.question.is_some()) {
        true => Some(guest.await.map_err(|e| Failure::from(&e).error)),
        false => None,
    };
    Ok(Inventory { qmp, guest, subjects, unused })
}

async fn mend(
    verb: &Repair,
    place: &Place,
    deadline: Deadline,
    found: &mut Inventory,
    progress: &Progress,
) -> Vec<Mended> {
    let Inventory { qmp, guest, subjects, unused } = found;
    let guest = guest.as_ref().map(Result::as_ref);
    let with = guest.and_then(Result::ok);
    let verbose = verb.target.verbose;
    let mut workshop = Workshop { place, verbose, deadline, qmp, guest: with, gone: Vec::new() };
    let mut volumes = Vec::new();
    for subject in subjects.iter() {
        let named = describe(subject);
        progress.at.replace(named);
        if progress.stop.get() {
            let why = "a signal came before its turn".to_owned();
            volumes.push(row(
                subject,
                subject.without_guest().state,
                (Did::Failed, Now::Unknown, why),
            ));
            continue;
        }
        let answer = ask(subject, guest, deadline).await;
        let state = match &answer {
            Answer::Told(listed) => listed.state,
            _ => subject.without_guest().state,
        };
        let plan = Plan::new(&subject.known, &answer);
        note(verb, || format!("volume {}: {}: {plan:?}", subject.volume.id, state.text()));
        let done = if verb.dry_run { plan.outlook() } else { workshop.mend(subject, &plan).await };
        volumes.push(row(subject, state, done));
    }
    for unused in unused.iter().filter(|_| !progress.stop.get()) {
        progress.at.replace(format!("descriptor set {}", unused.set));
        let why = format!("descriptor set {}", unused.set);
        let (did, now, why) = match verb.dry_run {
            true => (Did::WouldUndo, Now::Gone, why),
            false => match undo::remove_descriptor(workshop.qmp, unused.set, unused.fd).await {
                Ok(()) => (Did::Undone, Now::Gone, why),
                Err(e) => {
                    (Did::Failed, Now::Unknown, format!("{why}: {}", Error::from(e).message()))
                }
            },
        };
        volumes.push(Mended {
            id: unused.id.as_ref().map(ToString::to_string).unwrap_or_default(),
            container: String::new(),
            device_path: String::new(),
            source: String::new(),
            was: Found::Descriptor(UnusedDescriptor::Unused),
            did,
            now,
            why,
        });
    }
    volumes
}

/// A volume and its parts, for whoever is told what a repair left.
fn describe(subject: &Subject) -> String {
    subject.known.presence.parts(&subject.known.id, subject.question.is_some())
}

async fn ask(
    subject: &Subject,
    guest: Option<Result<&Guest, &FailureBody>>,
    deadline: Deadline,
) -> Answer {
    match (&subject.question, guest) {
        (Some(_), Some(Ok(guest))) => match subject.ask(&guest.agent, false, deadline).await {
            Ok(Listed { guest_error: Some(error), .. }) => Answer::Silent(error),
            Ok(listed) => Answer::Told(Box::new(listed)),
            Err(e) => Answer::Silent(Failure::from(&e).error),
        },
        (Some(_), Some(Err(error))) => Answer::Silent(error.clone()),
        _ => Answer::NotAsked,
    }
}

fn row(subject: &Subject, state: State, (did, now, why): (Did, Now, String)) -> Mended {
    let volume = &subject.volume;
    Mended {
        id: volume.id.clone(),
        container: volume.container.clone(),
        device_path: volume.device_path.clone(),
        source: volume.source_device.to_string_lossy().into_owned(),
        was: Found::Volume(state),
        did,
        now,
        why,
    }
}

fn report(volumes: Vec<Mended>, interrupted: Option<Error>, watch: Stopwatch) -> Repaired {
    let did = |what: &[Did]| volumes.iter().any(|mended| what.contains(&mended.did));
    let left = volumes.iter().filter(|mended| mended.did == Did::Failed);
    let left: Vec<_> = left.map(|mended| format!("volume {}: {}", mended.id, mended.why)).collect();
    let result = match () {
        () if !left.is_empty() => Whole::Incomplete,
        () if did(&[Did::WouldComplete, Did::WouldUndo]) => Whole::WouldRepair,
        () if did(&[Did::Completed, Did::Undone]) => Whole::Repaired,
        () => Whole::Unchanged,
    };
    let error = match interrupted {
        Some(signal) => Some(signal),
        None if left.is_empty() => None,
        None => Some(Error::Unrepaired { left }),
    };
    Repaired {
        schema: SCHEMA,
        command: "repair".to_owned(),
        result,
        volumes,
        error: error.map(|e| Failure::from(&e).error),
        timings_us: Timings(watch.finish()),
    }
}
