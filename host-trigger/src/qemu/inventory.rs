//! The inventory: descriptor sets, block nodes, devices and controllers as QEMU reports them. QEMU
//! is the only registry of volumes. See the [QMP
//! reference](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html) for the queries.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use block_volume_qmp::{Command, Qmp, QmpError, Replies};
use serde::Deserialize;
use serde_json::json;

use super::{
    controller::{self, Controller, PciAddresses},
    descriptor_sets::{self, DescriptorSets, Kind, Recorded},
    record::Record,
    volume_state::{KnownVolume, Unused, VolumeState},
};
use crate::{Error, volume_id::VolumeId};

/// QEMU's replies at one time.
#[derive(Debug)]
pub struct Inventory {
    pub(super) sets: DescriptorSets,
    /// Sizes by node name; read only where they are needed, because the reply grows by kilobytes
    /// with each volume.
    nodes: Option<HashMap<String, u64>>,
    /// QOM types by device ID.
    devices: HashMap<String, String>,
    pci: PciAddresses,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Node {
    node_name: Option<String>,
    image: Image,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Image {
    virtual_size: u64,
}

#[derive(Deserialize)]
struct Property {
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

impl Inventory {
    /// The queries of everything but the block nodes.
    pub(crate) fn queries() -> [Command<'static>; 3] {
        [
            Command::new(descriptor_sets::QUERY, json!({})),
            Command::new("qom-list", json!({"path": "/machine/peripheral"})),
            PciAddresses::query(),
        ]
    }

    /// The query of the block nodes.
    pub(crate) fn node_query() -> Command<'static> {
        Command::new("query-named-block-nodes", json!({"flat": true}))
    }

    /// Reads everything but the block nodes.
    ///
    /// # Errors
    /// QEMU does not reply, or not in the documented form.
    pub async fn read(qmp: &mut Qmp) -> Result<Self, QmpError> {
        Self::from_replies(&mut qmp.send_all(&Self::queries()).await)
    }

    /// Reads the replies to [`queries`](Self::queries).
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(crate) fn from_replies(replies: &mut Replies) -> Result<Self, QmpError> {
        let sets = replies.read()?;
        let devices: Vec<Property> = replies.read()?;
        let devices = devices.into_iter().map(|device| (device.name, device.kind)).collect();
        Ok(Self { sets, nodes: None, devices, pci: PciAddresses::from_reply(replies)? })
    }

    /// Reads the block nodes.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn read_nodes(&mut self, qmp: &mut Qmp) -> Result<(), QmpError> {
        match self.nodes {
            Some(_) => Ok(()),
            None => self.nodes_from_replies(&mut qmp.send_all(&[Self::node_query()]).await),
        }
    }

    /// Reads the reply to [`node_query`](Self::node_query).
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(crate) fn nodes_from_replies(&mut self, replies: &mut Replies) -> Result<(), QmpError> {
        let nodes: Vec<Node> = replies.read()?;
        let sizes =
            nodes.into_iter().filter_map(|node| Some((node.node_name?, node.image.virtual_size)));
        self.nodes = Some(sizes.collect());
        Ok(())
    }

    /// What is recorded of the abandoned volume `id`.
    pub fn abandoned(&self, id: &VolumeId) -> VolumeState {
        let mut state = VolumeState { is_abandoned: true, ..VolumeState::default() };
        let records = self.sets.records(Kind::Abandoned);
        state.extend(records.filter(|(_, intent, _)| intent.id == id.as_str()));
        state
    }

    /// Whether there is an abandoned volume.
    pub(crate) fn has_abandoned(&self) -> bool {
        self.sets.records(Kind::Abandoned).next().is_some()
    }

    /// What QEMU has of the volume `id`; its block node only after
    /// [`read_nodes`](Self::read_nodes).
    pub fn volume(&self, id: &VolumeId) -> VolumeState {
        self.assemble(id, self.recorded().filter(|(_, intent, _)| intent.id == id.as_str()))
    }

    /// Checks that the descriptor set of the volume `id`, which QEMU does not have, is free.
    ///
    /// # Errors
    /// It has descriptors of others.
    pub(crate) fn check_set(&self, id: &VolumeId) -> Result<(), Error> {
        self.sets.conflict(id, "").map_or(Ok(()), Err)
    }

    fn assemble<'a>(
        &self,
        id: &VolumeId,
        records: impl IntoIterator<Item = Recorded<'a>>,
    ) -> VolumeState {
        let mut state = VolumeState {
            node: self.nodes.as_ref().and_then(|nodes| nodes.get(&id.node()).copied()),
            device: self.devices.contains_key(&id.device()),
            ..VolumeState::default()
        };
        state.extend(records);
        state
    }

    /// All intent records of volumes that QEMU has.
    pub fn recorded(&self) -> impl Iterator<Item = Recorded<'_>> {
        self.sets.records(Kind::Present)
    }

    /// All volumes of which QEMU has anything but the records of abandoned ones, by ID; block nodes
    /// only after [`read_nodes`](Self::read_nodes).
    pub fn volumes(&self) -> Vec<(VolumeId, VolumeState)> {
        let mut records: BTreeMap<VolumeId, Vec<Recorded<'_>>> = BTreeMap::new();
        for recorded in self.recorded() {
            if let Some(id) = VolumeId::parse(&recorded.1.id) {
                records.entry(id).or_default().push(recorded);
            }
        }
        let names = self.devices.keys().chain(self.nodes.iter().flat_map(HashMap::keys));
        for id in names.filter_map(|name| VolumeId::of_name(name)) {
            records.entry(id).or_default();
        }
        let volumes = records.into_iter().map(|(id, records)| {
            let state = self.assemble(&id, records);
            (id, state)
        });
        volumes.collect()
    }

    /// The abandoned volumes, by ID. One that QEMU has is none: its abandonment was interrupted
    /// before anything was taken, or it was plugged again by an older version.
    fn abandoned_volumes(&self) -> Vec<(VolumeId, VolumeState)> {
        let ids = self.sets.records(Kind::Abandoned);
        let ids: BTreeSet<_> =
            ids.filter_map(|(_, intent, _)| VolumeId::parse(&intent.id)).collect();
        let volumes = ids.into_iter().filter(|id| self.volume(id).is_absent());
        volumes.map(|id| (id.clone(), self.abandoned(&id))).collect()
    }

    /// All volumes, once for each attachment; then the abandoned ones.
    pub fn attachments(&self) -> Vec<KnownVolume> {
        let volumes = self.volumes().into_iter().chain(self.abandoned_volumes());
        let known = volumes.flat_map(|(id, state)| {
            let attachments = state.attachments();
            let lost = attachments.is_empty().then(|| (id.clone(), state.clone(), None));
            let attachments = attachments
                .into_iter()
                .map(move |attachment| (id.clone(), state.clone(), Some(attachment)));
            lost.into_iter().chain(attachments)
        });
        known.map(|(id, state, attachment)| KnownVolume { id, state, attachment }).collect()
    }

    /// The IDs of all SCSI disks, ours or not.
    pub fn disks(&self) -> impl Iterator<Item = &str> {
        let is_disk =
            |kind: &&String| kind.strip_prefix("child<").unwrap_or(kind).starts_with("scsi-");
        self.devices.iter().filter(move |(_, kind)| is_disk(kind)).map(|(id, _)| id.as_str())
    }

    /// Descriptors of ours that no volume needs: those of `VolumeState::unused`, commit records
    /// without an intent record, and records of abandoned volumes that QEMU has. The descriptors of
    /// an incomplete volume are removed with it.
    pub fn unused(&self) -> Vec<Unused> {
        let volumes = self.volumes();
        let mut unused: Vec<_> = volumes.iter().flat_map(|(id, state)| state.unused(id)).collect();
        for set in &self.sets.0 {
            let number = set.fdset_id;
            let records = || set.fds.iter().map(|fd| (fd.fd, fd.record.as_deref()));
            if records().any(|(_, record)| matches!(record, Some(Record::Intent(_)))) {
                continue;
            }
            let abandoned = records().find_map(|(_, record)| match record {
                Some(Record::Abandoned(record)) => VolumeId::parse(&record.abandoned.id),
                _ => None,
            });
            if let Some(id) = abandoned {
                if !self.volume(&id).is_absent() {
                    let (id, set) = (Some(id), number);
                    unused.push(Unused { id, set, fd: None, is_abandoned: true });
                }
                continue;
            }
            let commits = records().filter(|(_, record)| record.is_some());
            let of = |fd| Unused { id: None, set: number, fd: Some(fd), is_abandoned: false };
            unused.extend(commits.map(|(fd, _)| of(fd)));
        }
        unused
    }

    /// The PCI address of the device `id`; empty if it has none.
    pub fn pci_address(&self, id: &str) -> &str {
        self.pci.of(id).unwrap_or_default()
    }

    /// The controller `wanted`, or `scsi0`, or the only one.
    ///
    /// # Errors
    /// There is none, not this one, or several to choose from.
    pub fn controller(&self, wanted: Option<&str>) -> Result<Controller, Error> {
        let is_controller = |(_, kind): &(_, &String)| {
            kind.strip_prefix("child<")
                .and_then(|kind| kind.strip_suffix('>'))
                .is_some_and(controller::is_controller)
        };
        let found = self.devices.iter().filter(is_controller).map(|(id, _)| id.clone());
        let id = controller::choose(found.collect(), wanted)?;
        Ok(Controller { pci_address: self.pci.of(&id).map(str::to_owned), id })
    }

    /// The queries that tell the controller unless it has another ID than most have. (The list of
    /// devices grows with each volume.)
    pub(crate) fn controller_queries(wanted: Option<&str>) -> [Command<'static>; 2] {
        let likely = wanted.unwrap_or(controller::DEFAULT_ID);
        // A slash would lead to a part of a device.
        let id = if likely.contains('/') { controller::DEFAULT_ID } else { likely };
        let path = format!("/machine/peripheral/{id}");
        let kind = Command::new("qom-get", json!({"path": path, "property": "type"}));
        [kind, PciAddresses::query()]
    }

    /// Finds the controller `wanted`, or `scsi0`, or the only one, by the replies to
    /// [`controller_queries`](Self::controller_queries). If they do not tell, all devices are read.
    ///
    /// # Errors
    /// There is none, not this one, or several to choose from; or QEMU does not reply.
    pub(crate) async fn find_controller(
        qmp: &mut Qmp,
        wanted: Option<&str>,
        replies: &mut Replies,
    ) -> Result<Controller, Error> {
        let likely = wanted.unwrap_or(controller::DEFAULT_ID);
        let kind = match replies.read::<String>() {
            Err(QmpError::Refused { .. }) => None,
            kind => Some(kind?),
        };
        let addresses = PciAddresses::from_reply(replies)?;
        let is_controller = kind.is_some_and(|kind| controller::is_controller(&kind));
        match is_controller && !likely.contains('/') {
            true => Ok(Controller { id: likely.to_owned(), pci_address: addresses.take(likely) }),
            false => Self::read(qmp).await?.controller(wanted),
        }
    }
}
