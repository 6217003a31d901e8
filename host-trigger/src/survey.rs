//! What is known of a volume that is plugged, or was begun to be: from its record and its device in
//! QEMU, and from the guest.

use block_volume_api::block_volume::{Detachment, InspectRequest, Inspected};
use serde_json::json;

use crate::{
    Deadline, Error,
    agent::Agent,
    guest_holder::GuestHolder,
    limits::Limits,
    listing::{GuestView, Listed, State},
    output::{Failure, Scsi, Volume},
    presence::Known,
    printable::printable,
    record::{Access, filter_name},
    registry::Registry,
    undo,
};
use block_volume_qmp::{Qmp, QmpError};

/// The most leftovers in the guest that are shown of one volume.
const MOST_LEFTOVERS: usize = 16;

/// One use of a volume as QEMU has it.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) known: Known,
    pub(crate) volume: Volume,
    /// What the guest is asked about it; `None` if it cannot have anything of it, or if nobody
    /// knows where.
    pub(crate) question: Option<Detachment>,
}

impl Subject {
    /// Asks QEMU for what the registry does not tell. The limits are left to those verbs that show
    /// them.
    ///
    /// # Errors
    /// QEMU does not tell the disk's address.
    pub(crate) async fn new(
        qmp: &mut Qmp,
        registry: &Registry,
        sandbox: &str,
        known: Known,
    ) -> Result<Self, QmpError> {
        let Known { id, presence, used } = &known;
        let intent = used.as_ref().map(|used| &used.intent);
        let noted = used.as_ref().and_then(|used| used.committed().or(used.placements.first()));
        let placement = noted.map(|(_, placement)| placement);
        let controller = match placement {
            Some(placement) => placement.controller.clone(),
            None if presence.device => controller_of(qmp, &id.device()).await?,
            None => String::new(),
        };
        let mut question = None;
        if let Some(used) = used.as_ref().filter(|_| presence.device || placement.is_some()) {
            let pci = registry.pci_address(&controller);
            question = Some(undo::detachment(qmp, presence, used, pci).await?);
        }
        let address = question.as_ref().map(|question| question.attachment.address.clone());
        let address = address.unwrap_or_default().unwrap_or_default();
        let source = intent.map(|intent| intent.source.clone()).unwrap_or_default();
        let volume = Volume {
            id: id.to_string(),
            sandbox: sandbox.to_owned(),
            container: intent.map(|intent| intent.container.clone()).unwrap_or_default(),
            device_path: intent.map(|intent| intent.path.clone()).unwrap_or_default(),
            source: source.clone().into(),
            source_device: source.into(),
            size: presence.node.or(intent.map(|intent| intent.size)).unwrap_or_default(),
            read_only: intent.is_some_and(|intent| intent.access == Access::ReadOnly),
            shared: !known.others().is_empty(),
            scsi: Scsi { controller, target: address.target, lun: address.lun },
            guest_device: placement
                .map(|placement| placement.guest_device.clone())
                .unwrap_or_default(),
            device_number: placement
                .map(|p| format!("{}:{}", p.major, p.minor))
                .unwrap_or_default(),
            device_filter: placement.map(|placement| placement.filter.clone()).unwrap_or_default(),
            node: placement.map(|placement| placement.node.clone()).unwrap_or_default(),
            throttle: Limits::default(),
        };
        Ok(Self { known, volume, question })
    }

    /// The volume with what the guest says of it, where it is asked, and with who holds it there if
    /// that is of interest.
    ///
    /// # Errors
    /// The agent cannot be asked any more; what it refuses is told with the volume.
    pub(crate) async fn ask(
        &self,
        agent: &Agent,
        holders: bool,
        deadline: Deadline,
    ) -> Result<Listed, Error> {
        let Some(question) = &self.question else { return Ok(self.without_guest()) };
        match inspect(agent, question, holders, deadline).await {
            Ok(seen) => Ok(self.with_guest(&seen, holders)),
            Err(refused @ Error::Guest { .. }) => {
                let guest_error = Some(Failure::from(&refused).error);
                Ok(Listed { guest_error, ..self.without_guest() })
            }
            Err(e) => Err(e),
        }
    }

    /// The volume as QEMU has it.
    pub(crate) fn without_guest(&self) -> Listed {
        let state = if self.known.is_plugged() { State::Attached } else { State::Incomplete };
        Listed { volume: self.volume.clone(), state, guest: None, guest_error: None }
    }

    fn with_guest(&self, seen: &Inspected, holders: bool) -> Listed {
        let committed = self.known.is_plugged();
        let whole =
            seen.disk_present && seen.node_present && seen.allowed && seen.leftovers.is_empty();
        let noted = self.known.used.as_ref().and_then(|used| used.committed());
        let noted = noted.map_or(0, |(_, placement)| placement.started);
        let state = match (committed, seen.container_running) {
            (true, false) => State::ContainerGone,
            (true, true) if noted != seen.container_started => State::ContainerRestarted,
            (true, true) if whole => State::Attached,
            _ => State::Incomplete,
        };
        let mut volume = self.volume.clone();
        if seen.disk_present {
            let device = seen.device.clone().unwrap_or_default();
            volume.guest_device = printable(&seen.guest_device);
            volume.device_number = format!("{}:{}", device.major, device.minor);
        }
        if seen.container_running {
            volume.device_filter = filter_name(seen.filter.enum_value_or_default()).to_owned();
        }
        let guest = GuestView {
            disk_present: seen.disk_present,
            size: seen.size,
            read_only: seen.read_only,
            container_running: seen.container_running,
            node_present: seen.node_present,
            allowed: seen.allowed,
            leftovers: seen
                .leftovers
                .iter()
                .take(MOST_LEFTOVERS)
                .map(|name| printable(name))
                .collect(),
            holders: holders.then(|| GuestHolder::all(&seen.holders)),
        };
        Listed { volume, state, guest: Some(guest), guest_error: None }
    }
}

/// What the guest says of one volume.
///
/// # Errors
/// It refuses, does not answer, or tells of something else.
pub(crate) async fn inspect(
    agent: &Agent,
    question: &Detachment,
    holders: bool,
    deadline: Deadline,
) -> Result<Inspected, Error> {
    let request =
        InspectRequest { attachments: vec![question.clone()], holders, ..Default::default() };
    let mut reply = agent.inspect(&request, deadline).await?;
    match (reply.inspected.pop(), reply.inspected.len()) {
        (Some(seen), 0) if seen.serial == question.attachment.serial => Ok(seen),
        _ => {
            let what = "another volume, or another number of them".to_owned();
            Err(Error::AgentAnswer { method: "Inspect", what })
        }
    }
}

/// QEMU's id of the controller that the device `id` is on.
async fn controller_of(qmp: &mut Qmp, id: &str) -> Result<String, QmpError> {
    let device = format!("/machine/peripheral/{id}");
    let bus: String =
        qmp.query("qom-get", json!({"path": device, "property": "parent_bus"})).await?;
    let controller =
        bus.strip_prefix("/machine/peripheral/").and_then(|rest| rest.split('/').next());
    Ok(controller.unwrap_or_default().to_owned())
}
