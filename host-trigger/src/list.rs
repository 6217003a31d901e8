//! `block-volume list` and `inspect`: what is plugged, as QEMU and the guest have it now. Both only
//! look: they send queries to QEMU and `Inspect` to the guest. Where the guest does not answer,
//! QEMU's part is shown, and that it is only that.

use std::path::PathBuf;

use crate::{
    Deadline, Error, choice,
    cli::{Inspect, List, Target},
    limits::Limits,
    listing::Listing,
    lock,
    output::{Failure, SCHEMA, Timings},
    presence::Known,
    reach::Reached,
    registry::Registry,
    sandbox::Place,
    signals::Signals,
    stopwatch::Stopwatch,
    survey::Subject,
};

/// Runs `list`.
///
/// # Errors
/// The sandbox is not found, or its QEMU cannot be asked.
pub async fn list(verb: &List, run_dir: Option<PathBuf>) -> Result<Listing, Error> {
    let container = verb.container.as_deref();
    let choose = |place: &Place, registry: &Registry| choice::all(container, place, registry);
    look("list", "listed", &verb.target, container, run_dir, choose).await
}

/// Runs `inspect`.
///
/// # Errors
/// As [`list`], or there is no such volume.
pub async fn inspect(verb: &Inspect, run_dir: Option<PathBuf>) -> Result<Listing, Error> {
    choice::check(&verb.which)?;
    let container = verb.container.as_deref();
    let choose = |place: &Place, registry: &Registry| {
        Ok(vec![choice::find(&verb.which, container, place, registry)?])
    };
    look("inspect", "inspected", &verb.target, container, run_dir, choose).await
}

async fn look(
    command: &str,
    result: &str,
    target: &Target,
    container: Option<&str>,
    run_dir: Option<PathBuf>,
    choose: impl FnOnce(&Place, &Registry) -> Result<Vec<Known>, Error>,
) -> Result<Listing, Error> {
    let mut signals = Signals::catch()?;
    tokio::select! {
        listing = look_now(command, target, container, run_dir, choose) => {
            listing.map(|listing| Listing { command: command.to_owned(), result: result.to_owned(), ..listing })
        }
        interrupted = signals.next() => Err(interrupted),
    }
}

async fn look_now(
    command: &str,
    target: &Target,
    container: Option<&str>,
    run_dir: Option<PathBuf>,
    choose: impl FnOnce(&Place, &Registry) -> Result<Vec<Known>, Error>,
) -> Result<Listing, Error> {
    let mut watch = Stopwatch::new();
    let deadline = Deadline::after(target.timeout);
    let place = Place::find(&target.search(run_dir, container)?)?;
    watch.lap("find");
    // QEMU's socket serves one client, and a run in the middle of its work would look half done.
    let _lock = lock::acquire(&place.lock_directory(), deadline).await?;
    watch.lap("lock");
    let (mut qmp, registry, guest) = Reached::new(&place, deadline).await?.split();
    let chosen = choose(&place, &registry)?;
    let limits = Limits::read(&mut qmp).await?;
    let mut subjects = Vec::new();
    for known in chosen {
        let throttle = limits.get(&known.id).copied().unwrap_or_default();
        let mut subject = Subject::new(&mut qmp, &registry, &place.sandbox, known).await?;
        subject.volume.throttle = throttle;
        subjects.push(subject);
    }
    watch.lap("qemu");
    let mut volumes = Vec::new();
    let mut guest_error = None;
    if subjects.iter().any(|subject| subject.question.is_some()) {
        match guest.await {
            Ok(guest) => {
                for subject in &subjects {
                    match subject.ask(&guest.agent, command == "inspect", deadline).await {
                        Ok(listed) => volumes.push(listed),
                        Err(e) => {
                            guest_error = Some(e);
                            break;
                        }
                    }
                }
            }
            Err(e) => guest_error = Some(e),
        }
    }
    let rest = &subjects[volumes.len()..];
    volumes.extend(rest.iter().map(Subject::without_guest));
    watch.lap("guest");
    Ok(Listing {
        schema: SCHEMA,
        command: String::new(),
        result: String::new(),
        volumes,
        guest_error: guest_error.map(|e| Failure::from(&e).error),
        timings_us: Timings(watch.finish()),
    })
}
