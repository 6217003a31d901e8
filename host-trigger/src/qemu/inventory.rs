//! The inventory: descriptor sets, block nodes, devices and controllers as QEMU reports them. QEMU
//! is the only registry of volumes. See the [QMP
//! reference](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html) for the queries.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use block_volume_qmp::{PassedFd, Qmp, QmpError};
use serde::Deserialize;
use serde_json::json;

use super::{
    controller::{self, Controller, PciAddresses},
    record::{CommitRecord, IntentRecord, Record},
    volume_state::{KnownVolume, Unused, VolumeState},
};
use crate::{Error, volume_id::VolumeId};

/// QEMU's replies at one time.
#[derive(Debug)]
pub struct Inventory {
    sets: Vec<FdSet>,
    /// Sizes by node name; read only where they are needed, because the reply grows by kilobytes
    /// with each volume.
    nodes: Option<HashMap<String, u64>>,
    /// QOM types by device ID.
    devices: HashMap<String, String>,
    pci: PciAddresses,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct FdSet {
    fdset_id: u64,
    fds: Vec<Fd>,
}

#[derive(Debug, Deserialize)]
struct Fd {
    fd: i64,
    #[serde(default)]
    opaque: String,
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

/// A descriptor set of ours: its number, the intent record, the commit records.
pub type RecordedSet = (u64, IntentRecord, Vec<(PassedFd, CommitRecord)>);

/// Which descriptor sets are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Those of volumes that QEMU has.
    Present,
    /// Those of abandoned volumes.
    Abandoned,
}

impl Inventory {
    /// Reads everything but the block nodes.
    ///
    /// # Errors
    /// QEMU does not reply, or not in the documented form.
    pub async fn read(qmp: &mut Qmp) -> Result<Self, QmpError> {
        let sets = qmp.query("query-fdsets", json!({})).await?;
        let devices: Vec<Property> =
            qmp.query("qom-list", json!({"path": "/machine/peripheral"})).await?;
        let pci = PciAddresses::read(qmp).await?;
        Ok(Self {
            sets,
            nodes: None,
            devices: devices.into_iter().map(|device| (device.name, device.kind)).collect(),
            pci,
        })
    }

    /// Reads the block nodes.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn read_nodes(&mut self, qmp: &mut Qmp) -> Result<(), QmpError> {
        if self.nodes.is_none() {
            let nodes: Vec<Node> =
                qmp.query("query-named-block-nodes", json!({"flat": true})).await?;
            let sizes = nodes
                .into_iter()
                .filter_map(|node| Some((node.node_name?, node.image.virtual_size)));
            self.nodes = Some(sizes.collect());
        }
        Ok(())
    }

    /// What is recorded of the abandoned volume `id`.
    pub fn abandoned(&self, id: &VolumeId) -> VolumeState {
        let mut state = VolumeState { is_abandoned: true, ..VolumeState::default() };
        for (set, intent, commits) in self.records(Kind::Abandoned) {
            if intent.id == id.as_str() {
                state.intents.push((set, intent));
                state.commits.extend(commits);
            }
        }
        state
    }

    /// Whether there is an abandoned volume.
    pub(crate) fn has_abandoned(&self) -> bool {
        self.records(Kind::Abandoned).next().is_some()
    }

    /// What QEMU has of the volume `id`; its block node only after
    /// [`read_nodes`](Self::read_nodes).
    pub fn volume(&self, id: &VolumeId) -> VolumeState {
        self.assemble(id, self.recorded().filter(|(_, intent, _)| intent.id == id.as_str()))
    }

    fn assemble(
        &self,
        id: &VolumeId,
        records: impl IntoIterator<Item = RecordedSet>,
    ) -> VolumeState {
        let mut state = VolumeState {
            node: self.nodes.as_ref().and_then(|nodes| nodes.get(&id.node()).copied()),
            device: self.devices.contains_key(&id.device()),
            ..VolumeState::default()
        };
        for (set, intent, commits) in records {
            state.intents.push((set, intent));
            state.commits.extend(commits);
        }
        state
    }

    /// All descriptor sets that have an intent record.
    pub fn recorded(&self) -> impl Iterator<Item = RecordedSet> {
        self.records(Kind::Present)
    }

    fn records(&self, kind: Kind) -> impl Iterator<Item = RecordedSet> {
        self.sets.iter().filter_map(move |set| {
            let (mut intent, mut commits) = (None, Vec::new());
            for fd in &set.fds {
                match Record::from_opaque(&fd.opaque) {
                    Some(Record::Intent(found)) if kind == Kind::Present => intent = Some(found),
                    Some(Record::Abandoned(found)) if kind == Kind::Abandoned => {
                        intent = Some(found.abandoned);
                    }
                    Some(Record::Commit(found)) => {
                        commits.push((PassedFd { set: set.fdset_id, fd: fd.fd }, found));
                    }
                    Some(Record::Intent(_) | Record::Abandoned(_)) | None => {}
                }
            }
            Some((set.fdset_id, intent?, commits))
        })
    }

    /// All volumes of which QEMU has anything but the records of abandoned ones, by ID; block nodes
    /// only after [`read_nodes`](Self::read_nodes).
    pub fn volumes(&self) -> Vec<(VolumeId, VolumeState)> {
        let mut records: BTreeMap<VolumeId, Vec<RecordedSet>> = BTreeMap::new();
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
        let ids = self.records(Kind::Abandoned);
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
        for set in &self.sets {
            let number = set.fdset_id;
            let records = || set.fds.iter().map(|fd| (fd.fd, Record::from_opaque(&fd.opaque)));
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

    /// Finds the controller `wanted`, or `scsi0`, or the only one. The list of devices grows with
    /// each volume, so it is read only if the first two do not answer the question.
    ///
    /// # Errors
    /// There is none, not this one, or several to choose from; or QEMU does not reply.
    pub(crate) async fn find_controller(
        qmp: &mut Qmp,
        wanted: Option<&str>,
    ) -> Result<Controller, Error> {
        let likely = wanted.unwrap_or(controller::DEFAULT_ID);
        // A slash would lead to a part of a device.
        if !likely.contains('/') {
            let path = format!("/machine/peripheral/{likely}");
            let kind = qmp.query::<String>("qom-get", json!({"path": path, "property": "type"}));
            match kind.await {
                Ok(kind) if controller::is_controller(&kind) => {
                    let pci_address = PciAddresses::read(qmp).await?.take(likely);
                    return Ok(Controller { id: likely.to_owned(), pci_address });
                }
                Ok(_) | Err(QmpError::Refused { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Self::read(qmp).await?.controller(wanted)
    }
}
