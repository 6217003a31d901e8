//! What QEMU says there is: descriptor sets, block nodes, devices, controllers. It is the only registry of volumes; see the
//! [QMP reference](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html) for the queries.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde_json::json;

use crate::{
    Error,
    presence::{Known, Presence, Unused},
    qmp::{PassedFd, Qmp, QmpError},
    record::{Intent, Placement, Record},
    volume::VolumeId,
};

/// QEMU's answers at one time.
#[derive(Debug)]
pub struct Registry {
    sets: Vec<FdSet>,
    /// Node name to size; asked for where it matters, for the answer grows by kilobytes with each volume.
    nodes: Option<HashMap<String, u64>>,
    /// Device id to type.
    devices: HashMap<String, String>,
    /// Device id to PCI address.
    pci: HashMap<String, String>,
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

#[derive(Deserialize)]
struct PciBus {
    devices: Vec<PciDevice>,
}

#[derive(Deserialize)]
struct PciDevice {
    bus: u8,
    slot: u8,
    function: u8,
    #[serde(default)]
    qdev_id: String,
    pci_bridge: Option<PciBridge>,
}

#[derive(Deserialize)]
struct PciBridge {
    #[serde(default)]
    devices: Vec<PciDevice>,
}

/// A virtio-scsi controller of the VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// QEMU's id.
    pub id: String,
    /// `0000:00:01.0`, where it is a PCI device: what tells the guest which of its hosts is meant.
    pub pci_address: Option<String>,
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
        let devices: Vec<Property> = qmp.query("qom-list", json!({"path": "/machine/peripheral"})).await?;
        let mut pci = HashMap::new();
        match qmp.query::<Vec<PciBus>>("query-pci", json!({})).await {
            Ok(buses) => buses.into_iter().for_each(|bus| addresses(bus.devices, &mut pci)),
            // A machine without PCI refuses the question.
            Err(QmpError::Refused { .. }) => {}
            Err(e) => return Err(e),
        }
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
            let nodes: Vec<Node> = qmp.query("query-named-block-nodes", json!({"flat": true})).await?;
            let sizes = nodes.into_iter().filter_map(|node| Some((node.node_name?, node.image.virtual_size)));
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

    /// Every volume of which anything is there, in the order of the ids; nodes only after [`read_nodes`](Self::read_nodes).
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

    /// Descriptors of ours that no volume needs: those of `Presence::unused`, and an outcome without its intent. What has a volume
    /// that is half done goes with that.
    pub fn unused(&self) -> Vec<Unused> {
        let known = self.known();
        let mut unused: Vec<_> = known.iter().flat_map(|(id, presence)| presence.unused(id)).collect();
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
        self.pci.get(id).map_or("", String::as_str)
    }

    /// The controller `wanted`, or `scsi0`, or the only one.
    ///
    /// # Errors
    /// There is none, not this one, or several to choose from.
    pub fn controller(&self, wanted: Option<&str>) -> Result<Controller, Error> {
        let is_controller = |kind: &str| {
            kind.strip_prefix("child<virtio-scsi-")
                .is_some_and(|bus| matches!(bus, "pci>" | "ccw>" | "device>"))
        };
        let mut found: Vec<_> =
            self.devices.iter().filter(|(_, kind)| is_controller(kind)).map(|(id, _)| id.clone()).collect();
        found.sort_unstable();
        let has = |id: &str| found.iter().any(|found| found == id);
        let id = match wanted {
            _ if found.is_empty() => return Err(Error::NoController),
            Some(name) if has(name) => name.to_owned(),
            Some(name) => return Err(Error::ControllerUnknown { name: name.to_owned(), found }),
            None if has("scsi0") => "scsi0".to_owned(),
            None if found.len() == 1 => found.swap_remove(0),
            None => return Err(Error::ControllerAmbiguous { found }),
        };
        Ok(Controller { pci_address: self.pci.get(&id).cloned(), id })
    }
}

/// Notes the addresses of all devices, also behind bridges.
fn addresses(devices: Vec<PciDevice>, found: &mut HashMap<String, String>) {
    for device in devices {
        if !device.qdev_id.is_empty() {
            let address = format!("0000:{:02x}:{:02x}.{:x}", device.bus, device.slot, device.function);
            found.insert(device.qdev_id, address);
        }
        if let Some(bridge) = device.pci_bridge {
            addresses(bridge.devices, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn registry(devices: &[(&str, &str)]) -> Registry {
        Registry {
            sets: Vec::new(),
            nodes: None,
            devices: devices.iter().map(|(id, kind)| ((*id).to_owned(), format!("child<{kind}>"))).collect(),
            pci: HashMap::from([("scsi0".to_owned(), "0000:00:01.0".to_owned())]),
        }
    }

    const PCI: &str = "virtio-scsi-pci";

    #[rstest]
    #[case(&[("scsi0", PCI), ("a", PCI)], None, "scsi0")]
    #[case(&[("a", "virtio-scsi-ccw"), ("b", "scsi-hd")], None, "a")]
    #[case(&[("scsi0", PCI), ("a", "virtio-scsi-device")], Some("a"), "a")]
    fn a_controller_is_chosen(
        #[case] devices: &[(&str, &str)],
        #[case] wanted: Option<&str>,
        #[case] chosen: &str,
    ) {
        assert_eq!(registry(devices).controller(wanted).unwrap().id, chosen);
    }

    #[test]
    fn the_guest_gets_the_pci_address() {
        let controller = registry(&[("scsi0", PCI)]).controller(None).unwrap();
        assert_eq!(controller.pci_address.as_deref(), Some("0000:00:01.0"));
    }

    #[test]
    fn a_choice_that_is_not_clear_is_refused() {
        assert!(matches!(registry(&[("d", "scsi-hd")]).controller(None), Err(Error::NoController)));
        let two = registry(&[("a", PCI), ("b", PCI)]);
        assert!(
            matches!(two.controller(None), Err(Error::ControllerAmbiguous { found }) if found == ["a", "b"])
        );
        assert!(matches!(two.controller(Some("c")), Err(Error::ControllerUnknown { .. })));
    }

    #[test]
    fn devices_behind_bridges_are_found() {
        let answer = r#"[{"bus":0,"devices":[{"bus":0,"slot":2,"function":1,"qdev_id":"rp","pci_bridge":{"bus":{},
            "devices":[{"bus":1,"slot":31,"function":0,"qdev_id":"scsi9","irq":0}]}}]}]"#;
        let buses: Vec<PciBus> = serde_json::from_str(answer).unwrap();
        let mut found = HashMap::new();
        buses.into_iter().for_each(|bus| addresses(bus.devices, &mut found));
        assert_eq!(found["rp"], "0000:00:02.1");
        assert_eq!(found["scsi9"], "0000:01:1f.0");
    }
}
