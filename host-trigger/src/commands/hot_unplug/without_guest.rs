//! `hot-unplug --force --without-guest`: the host takes a volume back from a guest that is not
//! asked, because it hangs, lies, or has no agent of ours.
//!
//! 1. Before anything changes: find and lock the sandbox, find the volume in QEMU. The guest is
//!    never contacted.
//! 2. A record of what the guest may still have is written, for `list` and `repair`.
//! 3. QEMU's device, block node and descriptors are removed. `device_del` of a SCSI disk needs no
//!    guest: QEMU ends the requests in flight and removes it by itself.

use block_volume_qmp::Qmp;

use super::HotUnplug;
use crate::{
    Error,
    ops::{
        detach::Detach,
        inspect::VolumeView,
        select::{self, Selection},
        session::{self, Session},
        signals::Signals,
        volume::Volume,
    },
    output::{
        envelope::{Envelope, Outcome},
        report::Report,
    },
    qemu::{
        abandoned,
        inventory::Inventory,
        node_users::NodeUsers,
        record::{CommitRecord, version},
        volume_state::{KnownVolume, VolumeState},
    },
    volume_id::VolumeId,
};

/// Runs the verb.
///
/// # Errors
/// The volume is not freed; if it is [`Error::Incomplete`], the same command continues.
pub(super) async fn run(
    verb: &HotUnplug,
    mut session: Session,
    mut signals: Signals,
) -> Result<Envelope<Report>, Error> {
    let found = signals.unless_caught(find(verb, &session)).await?;
    session.watch.lap("qemu");
    let Some(Found { mut qmp, id, state, views }) = found else {
        return Ok(envelope(verb, Outcome::Unchanged, &[], session));
    };
    if state.is_abandoned {
        return Ok(envelope(verb, Outcome::Unchanged, &views, session));
    }
    if !verb.dry_run {
        let left = || state.describe_parts(&id, true);
        let mut work = std::pin::pin!(take(&mut session, &mut qmp, &id, &state, &views));
        tokio::select! {
            taken = &mut work => taken?,
            // What has begun is completed: half of it is of no use.
            first = signals.next() => tokio::select! {
                taken = &mut work => taken?,
                _ = signals.next() => {
                    let left = vec![format!("a second signal ended the work: {}", left())];
                    return Err(Error::Incomplete { cause: Box::new(first), left });
                }
            }
        }
    }
    Ok(envelope(verb, Outcome::Abandoned, &views, session))
}

/// The whole volume, with all its attachments.
struct Found {
    qmp: Qmp,
    id: VolumeId,
    state: VolumeState,
    views: Vec<VolumeView>,
}

/// Finds the volume. `None`: it is named by its ID and does not exist.
async fn find(verb: &HotUnplug, session: &Session) -> Result<Option<Found>, Error> {
    let sandbox = &session.sandbox;
    let (mut qmp, inventory) = session::connect_qemu(sandbox, session.deadline).await?;
    let all = attachments(verb, session, &inventory)?;
    let Some(KnownVolume { id, state, attachment }) = all.first().cloned() else {
        return Ok(None);
    };
    if attachment.is_none() {
        return Err(Error::RecordLost { volume: id.to_string() });
    }
    if !state.is_abandoned {
        // QEMU would not release its block node after the device has gone.
        NodeUsers::read(&mut qmp).await?.check(&id)?;
    }
    let mut views = Vec::new();
    for known in all {
        views.push(VolumeView::new(&mut qmp, &inventory, &sandbox.id, known).await?);
    }
    Ok(Some(Found { qmp, id, state, views }))
}

/// The attachments of the selected volume. All of them lose it, so a shared one has to be named as
/// a whole.
fn attachments(
    verb: &HotUnplug,
    session: &Session,
    inventory: &Inventory,
) -> Result<Vec<KnownVolume>, Error> {
    let (sandbox, container) = (&session.sandbox, verb.container.as_deref());
    let selection = verb.selector.selection();
    if let (Selection::Id(id), None) = (selection, container) {
        let mut all = inventory.attachments();
        all.retain(|known| known.id == *id);
        return Ok(all);
    }
    let known = match select::one(selection, container, sandbox, inventory) {
        Err(Error::VolumeNotFound { .. }) if verb.selector.volume.is_some() => {
            return Ok(Vec::new());
        }
        found => found?,
    };
    if known.others().is_empty() {
        return Ok(vec![known]);
    }
    let all = known.state.attachments();
    let found = all.iter().map(|one| select::place(&one.intent)).collect();
    Err(Error::WholeVolume { volume: known.id.to_string(), found })
}

/// Takes the volume from the guest. If the guest cannot have anything of it, nothing is recorded.
async fn take(
    session: &mut Session,
    qmp: &mut Qmp,
    id: &VolumeId,
    state: &VolumeState,
    views: &[VolumeView],
) -> Result<(), Error> {
    let commits: Vec<_> = views.iter().filter_map(commit).collect();
    if !commits.is_empty() {
        qmp.set_deadline(session.deadline);
        abandoned::write(qmp, id, state, &commits).await?;
        session.watch.lap("record");
    }
    let mut detach = Detach {
        sandbox: &session.sandbox,
        log: session.log,
        deadline: session.deadline,
        watch: &mut session.watch,
        qmp,
        id,
        guest: None,
        is_abandoned: false,
        force: true,
        left_behind: Vec::new(),
    };
    detach.run(None).await.map(drop)
}

/// What is known of an attachment that the guest may have: its commit record or, if its plug was
/// interrupted, where its disk is.
fn commit(view: &VolumeView) -> Option<CommitRecord> {
    let known = view.known.attachment.as_ref().filter(|_| view.request.is_some())?;
    let recorded = known.committed().or(known.commits.first());
    let begun = || CommitRecord {
        v: version(known.intent.mount.is_some()),
        further: None,
        committed: false,
        controller: view.volume.scsi.controller.clone(),
        target: view.volume.scsi.target,
        lun: view.volume.scsi.lun,
        guest_device: String::new(),
        major: 0,
        minor: 0,
        node: String::new(),
        filter: String::new(),
        mounted: None,
        parents_made: Vec::new(),
        allowed_before: false,
        started: 0,
        errors: 0,
        size: 0,
    };
    Some(recorded.map_or_else(begun, |(_, commit)| commit.clone()))
}

fn envelope(
    verb: &HotUnplug,
    result: Outcome,
    views: &[VolumeView],
    session: Session,
) -> Envelope<Report> {
    let volumes: Vec<_> = views.iter().map(|view| view.volume.clone()).collect();
    let in_guest = views.iter().filter(|view| view.request.is_some());
    let lost = match result {
        Outcome::Abandoned => lost(in_guest.map(|view| &view.volume)),
        _ => Vec::new(),
    };
    let report = Report { lost, ..Report::of(volumes) };
    Envelope::new("hot-unplug", result, report)
        .with_dry_run(verb.dry_run)
        .with_timings(session.watch)
}

/// What is lost, and what the guest may still have.
fn lost<'a>(volumes: impl Iterator<Item = &'a Volume>) -> Vec<String> {
    let mut lines = Vec::new();
    for Volume { container, place, device_number, guest_device, scsi, .. } in volumes {
        if lines.is_empty() {
            lines.push("what the guest has not written yet, and its requests in flight".to_owned());
            let disk = match guest_device.as_str() {
                "" => "the disk".to_owned(),
                name => format!("the disk {name}"),
            };
            lines.push(format!(
                "{disk} at {} {}:{} may remain in the guest, without data: no other volume is \
                 plugged into this sandbox before `ecr-runtime block-volume repair` has detached it",
                scsi.controller, scsi.target, scsi.lun
            ));
        }
        if let Some(mount) = place.mount() {
            lines.push(format!(
                "the file system may remain mounted at {} in container {container}, with I/O errors \
                 for every use",
                mount.mount_path
            ));
            continue;
        }
        let number = match device_number.as_str() {
            "" => "its number".to_owned(),
            number => format!("the number {number}"),
        };
        lines.push(format!(
            "the device node {} may remain in container {container}, with the right to use {number}",
            place.path()
        ));
    }
    lines
}
