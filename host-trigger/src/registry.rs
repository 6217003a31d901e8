//! What QEMU says there is: descriptor sets, block nodes, devices, controllers. It is the only
//! registry of volumes; see the [QMP
//! reference](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html) for the queries.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde_json::json;

use crate::{
    Error,
    controller::{self, Controller, PciAddresses},
    presence::{Known, Presence, Unused},
    record::{Intent, Placement, Record},
    volume::VolumeId,
};
use block_volume_qmp::{PassedFd, Qmp, QmpError};

/// QEMU's answers at one time.
#[derive(Debug)]
pub struct Registry {
    sets: Vec<FdSet>,
    /// Node name to size; asked for where it matters, for the answer grows by kilobytes with each
    /// volume.
    nodes: Option<HashMap<String, u64>>,
    /// Device id to type.
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

/// A set of ours: its number, what was asked for, what was done.
pub type Recorded = (u64, Intent, Vec<(PassedFd, Placement)>);

impl Registry {
    /// Asks QEMU.
    ///
    /// # Errors
    /// QEMU does not answer, or not in the documented form.
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

    /// Asks for the nodes as well.
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

    /// What there is of the volume `id`; its node only after [`read_nodes`](Self::read_nodes).
    pub fn presence(&self, id: &VolumeId) -> Presence {
        self.assemble(id, self.volumes().filter(|(_, intent, _)| intent.id == id.as_str()))
    }

    fn assemble(&self, id: &VolumeId, records: impl IntoIterator<Item = Recorded>) -> Presence {
        let mut presence = Presence {
            node: self.nodes.as_ref().and_then(|nodes| nodes.get(&id.node()).copied()),
            device: self.devices.contains_key(&id.device()),
            ..Presence::default()
        };
        for (set, intent, placements) in records {
            presence.intents.push((set, intent));
            presence.placements.extend(placements);
        }
        presence
    }

    /// Every volume of which there is a record: its set, what was asked for, what was done.
    pub fn volumes(&self) -> impl Iterator<Item = Recorded> {
        self.sets.iter().filter_map(|set| {
            let (mut intent, mut placements) = (None, Vec::new());
            for fd in &set.fds {
                match Record::from_opaque(&fd.opaque) {
                    Some(Record::Intent(found)) => intent = Some(found),
                    Some(Record::Placement(found)) => {
                        placements.push((PassedFd { set: set.fdset_id, fd: fd.fd }, found));
                    }
                    None => {}
                }
            }
            Some((set.fdset_id, intent?, placements))
        })
    }

    /// Every volume of which anything is there, in the order of the ids; nodes only after
    /// [`read_nodes`](Self::read_nodes).
    pub fn known(&self) -> Vec<(VolumeId, Presence)> {
        let mut records: BTreeMap<VolumeId, Vec<Recorded>> = BTreeMap::new();
        for recorded in self.volumes() {
            if let Some(id) = VolumeId::parse(&recorded.1.id) {
                records.entry(id).or_default().push(recorded);
            }
        }
        let names = self.devices.keys().chain(self.nodes.iter().flat_map(HashMap::keys));
        for id in names.filter_map(|name| VolumeId::of_name(name)) {
            records.entry(id).or_default();
        }
        let known = records.into_iter().map(|(id, records)| {
            let presence = self.assemble(&id, records);
            (id, presence)
        });
        known.collect()
    }

    /// The same, each use of a volume by itself.
    pub fn uses(&self) -> Vec<Known> {
        let uses = self.known().into_iter().flat_map(|(id, presence)| {
            let uses = presence.uses();
            let lost = uses.is_empty().then(|| (id.clone(), presence.clone(), None));
            let uses = uses.into_iter().map(move |used| (id.clone(), presence.clone(), Some(used)));
            lost.into_iter().chain(uses)
        });
        uses.map(|(id, presence, used)| Known { id, presence, used }).collect()
    }

    /// The ids of all SCSI disks, ours or not.
    pub fn disks(&self) -> impl Iterator<Item = &str> {
        let is_disk =
            |kind: &&String| kind.strip_prefix("child<").unwrap_or(kind).starts_with("scsi-");
        self.devices.iter().filter(move |(_, kind)| is_disk(kind)).map(|(id, _)| id.as_str())
    }

    /// Descriptors of ours that no volume needs: those of `Presence::unused`, and an outcome
    /// without its intent. What has a volume that is half done goes with that.
    pub fn unused(&self) -> Vec<Unused> {
        let known = self.known();
        let mut unused: Vec<_> =
            known.iter().flat_map(|(id, presence)| presence.unused(id)).collect();
        for set in &self.sets {
            let ours = || set.fds.iter().map(|fd| (fd.fd, Record::from_opaque(&fd.opaque)));
            if ours().any(|(_, record)| matches!(record, Some(Record::Intent(_)))) {
                continue;
            }
            let (set, placements) = (set.fdset_id, ours().filter(|(_, record)| record.is_some()));
            unused.extend(placements.map(|(fd, _)| Unused { id: None, set, fd: Some(fd) }));
        }
        unused
    }

    /// The PCI address of the device `id`, empty where it has none.
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
}
