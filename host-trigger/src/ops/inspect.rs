//! What is known of a volume: from its record and its device in QEMU, and from the guest.

use std::collections::HashMap;

use block_volume_api::block_volume::{Detachment, InspectRequest, Inspected, Reason};
use block_volume_qmp::{Qmp, QmpError};
use serde_json::json;

use super::{
    container_state::ContainerState,
    file_system::FileSystemUse,
    guest_request,
    place::Place,
    session::{self, Connections, Session},
    volume::{Cause, GuestView, ListedVolume, Scsi, State, UnknownCause, Volume},
};
use crate::{
    Deadline, Error,
    error::ErrorBody,
    guest_holder::GuestHolder,
    kata::{agent::Agent, sandbox::Sandbox},
    path_text,
    qemu::{
        inventory::Inventory,
        medium::Drive,
        record::{Access, filter_name},
        throttle::Limits,
        volume_state::{Attachment, KnownVolume},
    },
    sanitize::sanitize,
    volume_id::VolumeId,
};

/// The maximum number of attachments in a request.
const MOST_ATTACHMENTS: usize = 256;
/// The maximum number of leftovers in the guest that are shown of one volume.
const MAX_LEFTOVERS: usize = 16;

/// One attachment of a volume as QEMU has it.
#[derive(Debug, Clone)]
pub(crate) struct VolumeView {
    pub(crate) known: KnownVolume,
    pub(crate) volume: Volume,
    /// What the guest is asked about it; `None` if the guest cannot have anything of it, or if the
    /// record is lost.
    pub(crate) request: Option<Detachment>,
}

impl VolumeView {
    /// Asks QEMU for what the inventory does not contain. The limits are read by the verbs that
    /// show them.
    ///
    /// # Errors
    /// QEMU does not report the disk's address.
    pub(crate) async fn new(
        qmp: &mut Qmp,
        inventory: &Inventory,
        sandbox: &str,
        known: KnownVolume,
    ) -> Result<Self, QmpError> {
        let KnownVolume { id, state, attachment } = &known;
        let intent = attachment.as_ref().map(|known| &known.intent);
        let recorded =
            attachment.as_ref().and_then(|known| known.committed().or(known.commits.first()));
        let commit = recorded.map(|(_, commit)| commit);
        let controller = match commit {
            Some(commit) => commit.controller.clone(),
            None if state.device => controller_of(qmp, &id.device()).await?,
            None => String::new(),
        };
        let mut request = None;
        if let Some(attachment) =
            attachment.as_ref().filter(|_| state.device || commit.is_some() || state.is_abandoned)
        {
            let pci = inventory.pci_address(&controller);
            request = Some(guest_request::detachment(qmp, state, attachment, pci).await?);
        }
        let address = request.as_ref().map(|request| request.attachment.address.clone());
        let address = address.unwrap_or_default().unwrap_or_default();
        let source = intent.map(|intent| path_text::decode(&intent.source)).unwrap_or_default();
        let volume = Volume {
            id: id.to_string(),
            sandbox: sandbox.to_owned(),
            container: intent.map(|intent| intent.container.clone()).unwrap_or_default(),
            place: intent.map(Place::new).unwrap_or_default(),
            source: source.clone(),
            source_device: source,
            size: state.node.or(attachment.as_ref().map(Attachment::size)).unwrap_or_default(),
            read_only: intent.is_some_and(|intent| intent.access == Access::ReadOnly),
            shared: !known.others().is_empty(),
            scsi: Scsi { controller, target: address.target, lun: address.lun },
            throttle: Limits::default(),
            ..Volume::default()
        };
        let volume = match commit {
            Some(commit) => volume.with_commit(commit.clone()),
            None => volume,
        };
        Ok(Self { known, volume, request })
    }

    /// Sets what the volume's device has in QEMU.
    pub(crate) fn set_drive(&mut self, drives: &HashMap<VolumeId, Drive>) {
        let KnownVolume { id, state, .. } = &self.known;
        if let Some(drive) = drives.get(id) {
            self.volume.set_drive(drive, id, state);
        }
    }

    /// Whether the guest has to be asked for the state. Of an abandoned volume nothing of the state
    /// is the guest's to tell.
    pub(crate) fn needs_guest(&self) -> bool {
        self.request.is_some() && !self.known.state.is_abandoned
    }

    /// The volume with what the guest replied about it.
    ///
    /// # Errors
    /// The agent cannot be asked any more.
    fn told(&self, reply: Result<Inspected, Error>, holders: bool) -> Result<ListedVolume, Error> {
        match reply {
            Ok(seen) => Ok(self.with_guest(&seen, holders)),
            Err(e) if is_of_the_volume(&e) => {
                let guest_error = Some(ErrorBody::from(&e));
                let state = self.unless_known(UnknownCause::GuestError);
                Ok(ListedVolume { guest_error, state, ..self.without_guest() })
            }
            Err(e) => Err(e),
        }
    }

    /// The volume as QEMU has it. It is never attached by that alone.
    pub(crate) fn without_guest(&self) -> ListedVolume {
        let state = self.unless_known(UnknownCause::GuestUnreachable);
        ListedVolume { volume: self.volume.clone(), state, guest: None, guest_error: None }
    }

    /// The state that QEMU alone shows. If QEMU has the whole volume, it is unknown by this cause.
    fn unless_known(&self, cause: UnknownCause) -> State {
        match () {
            () if self.known.state.is_abandoned => State::Abandoned,
            () if self.known.is_attached() => State::Unknown { cause },
            () => State::Incomplete,
        }
    }

    fn with_guest(&self, seen: &Inspected, holders: bool) -> ListedVolume {
        let container = ContainerState::from_reply(seen);
        let untold = untold(seen);
        let state = match &untold {
            Some((cause, _)) => self.unless_known(*cause),
            None => self.state(seen, container == ContainerState::Running),
        };
        let mut volume = self.volume.clone();
        if seen.disk_present {
            let device = seen.device.clone().unwrap_or_default();
            volume.guest_device = sanitize(&seen.guest_device);
            volume.device_number = format!("{}:{}", device.major, device.minor);
        }
        // What is mounted needs no right.
        let is_mount = volume.place.mount().is_some();
        if container == ContainerState::Running && untold.is_none() && !is_mount {
            volume.device_filter = filter_name(seen.filter.enum_value_or_default()).to_owned();
        }
        let leftovers = seen.leftovers.iter().take(MAX_LEFTOVERS);
        let guest = GuestView {
            disk_present: seen.disk_present,
            size: seen.size,
            read_only: seen.read_only,
            container_running: container == ContainerState::Running,
            container_state: container,
            node_present: seen.node_present,
            allowed: seen.allowed,
            leftovers: leftovers.map(|name| sanitize(name)).collect(),
            holders: (holders && seen.holders_unknown.is_empty())
                .then(|| GuestHolder::from_reply(&seen.holders)),
            holders_unknown: if holders { sanitize(&seen.holders_unknown) } else { String::new() },
            file_system: seen.file_system.as_ref().map(FileSystemUse::from),
        };
        let guest_error = untold.map(|(_, error)| ErrorBody::from(&error));
        ListedVolume { volume, state, guest: Some(guest), guest_error }
    }

    fn state(&self, seen: &Inspected, is_running: bool) -> State {
        let complete =
            seen.disk_present && seen.node_present && seen.allowed && seen.leftovers.is_empty();
        let committed = self.known.attachment.as_ref().and_then(|known| known.committed());
        let started = committed.map_or(0, |(_, commit)| commit.started);
        match (self.known.is_attached(), is_running) {
            (true, false) => State::Stale { cause: Cause::ContainerGone },
            (true, true) if started != seen.container_started => {
                State::Stale { cause: Cause::ContainerRestarted }
            }
            (true, true) if complete => State::Attached,
            _ => State::Incomplete,
        }
    }
}

/// What the guest could not tell of an attachment: the cause and the error; `None` if it told
/// everything.
pub(crate) fn untold(seen: &Inspected) -> Option<(UnknownCause, Error)> {
    let (cause, reason, default) = match ContainerState::from_reply(seen) {
        ContainerState::Paused => (
            UnknownCause::ContainerPaused,
            Reason::REASON_CONTAINER_NOT_RUNNING,
            "the container is paused",
        ),
        ContainerState::Unreachable => (
            UnknownCause::ContainerUnreachable,
            Reason::REASON_SYSTEM,
            "the agent cannot reach the container",
        ),
        _ if seen.unknown.is_empty() => return None,
        _ => (UnknownCause::GuestError, Reason::REASON_SYSTEM, ""),
    };
    let message = if seen.unknown.is_empty() { default } else { &seen.unknown };
    Some((cause, Error::guest(reason, message.to_owned())))
}

/// Whether an agent that replies so may still tell of other volumes.
pub(crate) fn is_of_the_volume(error: &Error) -> bool {
    matches!(error, Error::Guest { .. } | Error::AgentTimedOut { .. } | Error::AgentReply { .. })
}

/// Inspects the volumes that `choose` selects, in QEMU and in the guest; with `holders`, also their
/// holders in the guest. If the guest cannot be asked, the volumes are unknown, and the error is
/// returned beside them.
///
/// # Errors
/// QEMU cannot be asked, or `choose` fails.
pub(crate) async fn inspect_volumes(
    session: &mut Session,
    choose: impl FnOnce(&Sandbox, &Inventory) -> Result<Vec<KnownVolume>, Error>,
    holders: bool,
) -> Result<(Vec<ListedVolume>, Option<ErrorBody>), Error> {
    let Session { sandbox, deadline, watch, .. } = session;
    let Connections { mut qmp, inventory, guest } = session::connect(sandbox, *deadline).await?;
    let chosen = choose(sandbox, &inventory)?;
    let mut views = Vec::new();
    for known in chosen {
        views.push(VolumeView::new(&mut qmp, &inventory, &sandbox.id, known).await?);
    }
    watch.lap("qemu");
    let told = async {
        if !views.iter().any(VolumeView::needs_guest) {
            return (Vec::new(), None);
        }
        match guest.await {
            Ok(guest) => ask_all(&views, &guest.agent, holders, *deadline).await,
            Err(e) => (Vec::new(), Some(e)),
        }
    };
    // QEMU lists the drives while the guest looks.
    let (drives, (mut volumes, guest_error)) = tokio::join!(Drive::read(&mut qmp), told);
    let drives = drives?;
    let rest = &views[volumes.len()..];
    volumes.extend(rest.iter().map(VolumeView::without_guest));
    for (listed, view) in volumes.iter_mut().zip(&views) {
        let KnownVolume { id, state, .. } = &view.known;
        if let Some(drive) = drives.get(id) {
            listed.volume.set_drive(drive, id, state);
        }
    }
    watch.lap("guest");
    Ok((volumes, guest_error.map(|e| ErrorBody::from(&e))))
}

/// Asks the guest about volumes, in their order, if it can have anything of them; with `holders`,
/// also for their holders there. What it cannot tell of a volume is a part of the result. An agent
/// that cannot be asked any more leaves the rest out, and its error is returned.
pub(crate) async fn ask_all(
    views: &[VolumeView],
    agent: &Agent,
    holders: bool,
    deadline: Deadline,
) -> (Vec<ListedVolume>, Option<Error>) {
    let asked = views.iter().filter(|view| view.needs_guest());
    let requests: Vec<_> = asked.filter_map(|view| view.request.as_ref()).collect();
    let details = if holders { Details::Holders } else { Details::None };
    let mut replies = inspect_all(agent, &requests, details, deadline).await.into_iter();
    let mut volumes = Vec::with_capacity(views.len());
    for view in views {
        let reply = if view.needs_guest() { replies.next() } else { None };
        match reply.map(|reply| view.told(reply, holders)) {
            None => volumes.push(view.without_guest()),
            Some(Ok(listed)) => volumes.push(listed),
            Some(Err(e)) => return (volumes, Some(e)),
        }
    }
    (volumes, None)
}

/// What the guest is asked beside the state of attachments. Each costs time for each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Details {
    None,
    /// The counters of their disks.
    Stats,
    /// The holders of their disks.
    Holders,
}

/// Asks the guest about attachments, in their order: in one request, which lets it look into each
/// container once. If it refuses them together, or the reply is lost, each is asked about alone,
/// because one of them may be the reason. If the agent cannot be asked any more, its error is the
/// last of the results.
pub(crate) async fn inspect_all(
    agent: &Agent,
    attachments: &[&Detachment],
    details: Details,
    deadline: Deadline,
) -> Vec<Result<Inspected, Error>> {
    let mut results = Vec::with_capacity(attachments.len());
    for (index, part) in attachments.chunks(MOST_ATTACHMENTS).enumerate() {
        let left = attachments.len() - index * MOST_ATTACHMENTS;
        match inspect_together(agent, part, details, share(deadline, left)).await {
            Ok(seen) => results.extend(seen.into_iter().map(Ok)),
            Err(e) if part.len() > 1 && is_of_the_volume(&e) => {
                for (index, attachment) in part.iter().enumerate() {
                    let deadline = share(deadline, left - index);
                    results.push(inspect(agent, attachment, details, deadline).await);
                    if results.last().is_some_and(ends_the_connection) {
                        return results;
                    }
                }
            }
            Err(e) => {
                results.push(Err(e));
                if results.last().is_some_and(ends_the_connection) {
                    return results;
                }
            }
        }
    }
    results
}

fn ends_the_connection(result: &Result<Inspected, Error>) -> bool {
    result.as_ref().is_err_and(|e| !is_of_the_volume(e))
}

/// The time for the first of `left` volumes that are still to be inspected: one that never gets a
/// reply leaves time for the others.
fn share(deadline: Deadline, left: usize) -> Deadline {
    if left > 1 { deadline.within(deadline.remaining() / 2) } else { deadline }
}

/// Asks the guest about one attachment.
///
/// # Errors
/// It refuses, does not reply, or reports something else.
pub(crate) async fn inspect(
    agent: &Agent,
    attachment: &Detachment,
    details: Details,
    deadline: Deadline,
) -> Result<Inspected, Error> {
    let mut seen = inspect_together(agent, &[attachment], details, deadline).await?;
    Ok(seen.swap_remove(0))
}

/// Asks the guest about attachments in one request. Each has its reply, in the order of the
/// request.
///
/// # Errors
/// As [`inspect`].
async fn inspect_together(
    agent: &Agent,
    attachments: &[&Detachment],
    details: Details,
    deadline: Deadline,
) -> Result<Vec<Inspected>, Error> {
    let request = InspectRequest {
        attachments: attachments.iter().map(|&attachment| attachment.clone()).collect(),
        holders: details == Details::Holders,
        without_stats: details != Details::Stats,
        ..Default::default()
    };
    let reply = agent.inspect(&request, deadline).await?;
    let serials = attachments.iter().map(|attachment| &attachment.attachment.serial);
    if reply.inspected.iter().map(|seen| &seen.serial).eq(serials) {
        return Ok(reply.inspected);
    }
    let what = "another volume, or another number of volumes".to_owned();
    Err(Error::AgentReply { method: "Inspect", what })
}

/// Returns QEMU's ID of the controller of the device `id`.
async fn controller_of(qmp: &mut Qmp, id: &str) -> Result<String, QmpError> {
    let device = format!("/machine/peripheral/{id}");
    let bus: String =
        qmp.query("qom-get", json!({"path": device, "property": "parent_bus"})).await?;
    let controller =
        bus.strip_prefix("/machine/peripheral/").and_then(|rest| rest.split('/').next());
    Ok(controller.unwrap_or_default().to_owned())
}
