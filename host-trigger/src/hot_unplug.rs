//! `block-volume hot-unplug`: the sequence from a device in a container back to a free volume on
//! the host.
//!
//! 1. Before anything changes: find the sandbox, lock it, find the volume in QEMU.
//! 2. The guest lets go of it (node, right, flush, disk), or refuses, because it is in use: then
//!    nothing has changed.
//! 3. QEMU's device, node and descriptors; the descriptors last, as they carry the record that a
//!    repetition needs.
//!
//! A removal that has begun is completed, also after a signal: what is half gone is of use to
//! nobody. A wait for those who hold the volume is no beginning: a signal ends it, by a request
//! without patience, which the guest lets in before the patient one. What a killed run left of a
//! plug or an unplug is taken away in the same way, as far as it is there.

use std::path::PathBuf;

use block_volume_api::block_volume::Detachment;
use tokio::sync::Notify;

use crate::{
    Deadline, Error, choice,
    cli::HotUnplug,
    guest_holder::GuestHolder,
    lock,
    output::{self, Outcome, Report, SCHEMA, Timings, Volume},
    printable::printable,
    reach::{Guest, Reached},
    removal::Removal,
    sandbox::Place,
    signals::Signals,
    stopwatch::Stopwatch,
    survey::{self, Subject},
};
use block_volume_qmp::Qmp;

/// Runs the verb.
///
/// # Errors
/// The volume is not unplugged; unless it is [`Error::Incomplete`], nothing has changed.
pub async fn run(verb: &HotUnplug, run_dir: Option<PathBuf>) -> Result<Report, Error> {
    let mut watch = Stopwatch::new();
    let deadline = Deadline::after(verb.target.timeout);
    let mut signals = Signals::catch()?;
    choice::check(&verb.which)?;
    let place = Place::find(&verb.target.search(run_dir, verb.container.as_deref())?)?;
    watch.lap("find");
    let _lock = signals.unless_caught(lock::acquire(&place.lock_directory(), deadline)).await?;
    watch.lap("lock");

    let prepared = signals.unless_caught(prepare(verb, &place, deadline, &mut watch)).await?;
    let Some(Prepared { mut qmp, guest, subject }) = prepared else {
        return Ok(report(Outcome::Unchanged, None, watch));
    };
    let Subject { known, volume, question } = subject;
    if verb.dry_run {
        let broke = signals
            .unless_caught(rehearse(verb, guest.as_ref(), question.as_ref(), deadline))
            .await?;
        return Ok(Report { broke, ..report(Outcome::WouldDetach, Some(volume), watch) });
    }

    let done = {
        let impatient = Notify::new();
        let mut removal = Removal {
            place: &place,
            verbose: verb.target.verbose,
            deadline: deadline.plus(verb.wait.unwrap_or_default()),
            watch: &mut watch,
            qmp: &mut qmp,
            id: &known.id,
            guest: guest.as_ref(),
            force: verb.force,
            wait: verb.wait.unwrap_or_default(),
        };
        let mut work = std::pin::pin!(removal.run(question, &impatient));
        tokio::select! {
            done = &mut work => done,
            interrupted = signals.next() => {
                note(verb, || "a removal that has begun is completed; a second signal ends it".to_owned());
                impatient.notify_one();
                tokio::select! {
                    done = &mut work => match done {
                        Err(Error::InUse { .. }) => Err(interrupted),
                        done => done,
                    },
                    _ = signals.next() => Err(Error::Incomplete {
                        cause: Box::new(interrupted),
                        left: vec![format!(
                            "a second signal ended the removal: {}",
                            known.presence.parts(&known.id, guest.is_some()),
                        )],
                    }),
                }
            }
        }
    };
    let broke = done?;
    Ok(Report { broke, ..report(Outcome::Detached, Some(volume), watch) })
}

fn note(verb: &HotUnplug, text: impl FnOnce() -> String) {
    if verb.target.verbose {
        output::note(&printable(&text()));
    }
}

/// What is known before anything changes.
struct Prepared {
    qmp: Qmp,
    /// `None`: it cannot have anything of the volume.
    guest: Option<Guest>,
    subject: Subject,
}

/// Finds the volume, and the guest if it has to be asked. `None`: a volume that is named by its id
/// is not there.
async fn prepare(
    verb: &HotUnplug,
    place: &Place,
    deadline: Deadline,
    watch: &mut Stopwatch,
) -> Result<Option<Prepared>, Error> {
    let (mut qmp, registry, guest) = Reached::new(place, deadline).await?.split();
    let known = match choice::find(&verb.which, verb.container.as_deref(), place, &registry) {
        Err(Error::VolumeNotFound { .. }) if verb.which.volume.is_some() => return Ok(None),
        found => found?,
    };
    watch.lap("qemu");
    if known.used.is_none() {
        return Err(Error::RecordLost { volume: known.id.to_string() });
    }
    let subject = Subject::new(&mut qmp, &registry, &place.sandbox, known).await?;
    let guest = if subject.question.is_some() { Some(guest.await?) } else { None };
    watch.lap("prepare");
    Ok(Some(Prepared { qmp, guest, subject }))
}

/// What the guest would be asked to let go of: may it? Returns who would lose it by force.
async fn rehearse(
    verb: &HotUnplug,
    guest: Option<&Guest>,
    question: Option<&Detachment>,
    deadline: Deadline,
) -> Result<Vec<GuestHolder>, Error> {
    let (Some(guest), Some(question)) = (guest, question) else { return Ok(Vec::new()) };
    let seen = survey::inspect(&guest.agent, question, true, deadline).await?;
    // What another container does with the disk goes on.
    let mut holders = seen.holders;
    holders.retain(|holder| {
        !question.keep_disk || holder.container_id == question.attachment.container_id
    });
    let holders = GuestHolder::all(&holders);
    match verb.force || holders.is_empty() {
        true => Ok(holders),
        false => Err(Error::InUse { volume: question.attachment.serial.clone(), holders }),
    }
}

fn report(result: Outcome, volume: Option<Volume>, watch: Stopwatch) -> Report {
    Report {
        schema: SCHEMA,
        command: "hot-unplug".to_owned(),
        result,
        volumes: volume.into_iter().collect(),
        broke: Vec::new(),
        timings_us: Timings(watch.finish()),
    }
}
