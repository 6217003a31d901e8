//! The virtio-scsi controllers of a VM and their PCI addresses
//! ([`query-pci`](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html#command-QMP-pci.query-pci)).
//! The PCI address tells the guest which of its SCSI hosts is meant.

use std::collections::HashMap;

use block_volume_qmp::{Command, QmpError, Replies};
use serde::Deserialize;
use serde_json::json;

use crate::Error;

/// The ID of Kata's controller.
pub(crate) const DEFAULT_ID: &str = "scsi0";

/// A virtio-scsi controller of the VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// QEMU's ID.
    pub id: String,
    /// For instance `0000:00:01.0`; `None` if it is no PCI device.
    pub pci_address: Option<String>,
}

/// Whether a device of this QOM type is a virtio-scsi controller.
pub(crate) fn is_controller(kind: &str) -> bool {
    matches!(kind, "virtio-scsi-pci" | "virtio-scsi-ccw" | "virtio-scsi-device")
}

/// Chooses from the IDs of all controllers: `wanted`, or `scsi0`, or the only one.
pub(crate) fn choose(mut found: Vec<String>, wanted: Option<&str>) -> Result<String, Error> {
    found.sort_unstable();
    let has = |id: &str| found.iter().any(|found| found == id);
    match wanted {
        _ if found.is_empty() => Err(Error::NoController),
        Some(name) if has(name) => Ok(name.to_owned()),
        Some(name) => Err(Error::ControllerUnknown { name: name.to_owned(), found }),
        None if has(DEFAULT_ID) => Ok(DEFAULT_ID.to_owned()),
        None if found.len() == 1 => Ok(found.swap_remove(0)),
        None => Err(Error::ControllerAmbiguous { found }),
    }
}

/// The PCI addresses of all devices, by device ID.
#[derive(Debug, Default)]
pub(crate) struct PciAddresses(HashMap<String, String>);

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

impl PciAddresses {
    /// The query for them.
    pub(super) fn query() -> Command<'static> {
        Command::new("query-pci", json!({}))
    }

    /// Reads the reply; there are none if the machine has no PCI bus.
    pub(super) fn from_reply(replies: &mut Replies) -> Result<Self, QmpError> {
        let mut addresses = Self::default();
        match replies.read::<Vec<PciBus>>() {
            Ok(buses) => buses.into_iter().for_each(|bus| addresses.add(bus.devices)),
            // A machine without PCI refuses the command.
            Err(QmpError::Refused { .. }) => {}
            Err(e) => return Err(e),
        }
        Ok(addresses)
    }

    /// Removes and returns the address of the device `id`.
    pub(crate) fn take(mut self, id: &str) -> Option<String> {
        self.0.remove(id)
    }

    /// The address of the device `id`, if it has one.
    pub(crate) fn of(&self, id: &str) -> Option<&str> {
        self.0.get(id).map(String::as_str)
    }

    /// Adds the addresses of `devices` and of the devices behind bridges.
    fn add(&mut self, devices: Vec<PciDevice>) {
        for device in devices {
            if !device.qdev_id.is_empty() {
                let address =
                    format!("0000:{:02x}:{:02x}.{:x}", device.bus, device.slot, device.function);
                self.0.insert(device.qdev_id, address);
            }
            if let Some(bridge) = device.pci_bridge {
                self.add(bridge.devices);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn ids(ids: &[&str]) -> Vec<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    #[rstest]
    #[case(&["scsi0", "a"], None, "scsi0")]
    #[case(&["a"], None, "a")]
    #[case(&["scsi0", "a"], Some("a"), "a")]
    fn a_controller_is_chosen(
        #[case] found: &[&str],
        #[case] wanted: Option<&str>,
        #[case] chosen: &str,
    ) {
        assert_eq!(choose(ids(found), wanted).unwrap(), chosen);
    }

    #[test]
    fn an_ambiguous_choice_is_refused() {
        assert!(matches!(choose(Vec::new(), None), Err(Error::NoController)));
        let two = || ids(&["b", "a"]);
        let ambiguous = choose(two(), None);
        assert!(
            matches!(ambiguous, Err(Error::ControllerAmbiguous { found }) if found == ["a", "b"])
        );
        assert!(matches!(choose(two(), Some("c")), Err(Error::ControllerUnknown { .. })));
    }

    #[rstest]
    #[case("virtio-scsi-pci", true)]
    #[case("virtio-scsi-ccw", true)]
    #[case("virtio-scsi-device", true)]
    #[case("scsi-hd", false)]
    #[case("virtio-scsi-pci-transitional", false)]
    fn a_controller_is_recognized_by_its_type(#[case] kind: &str, #[case] expected: bool) {
        assert_eq!(is_controller(kind), expected);
    }

    #[test]
    fn devices_behind_bridges_are_found() {
        let answer = r#"[{"bus":0,"devices":[{"bus":0,"slot":2,"function":1,"qdev_id":"rp","pci_bridge":{"bus":{},
            "devices":[{"bus":1,"slot":31,"function":0,"qdev_id":"scsi9","irq":0}]}}]}]"#;
        let buses: Vec<PciBus> = serde_json::from_str(answer).unwrap();
        let mut found = PciAddresses::default();
        buses.into_iter().for_each(|bus| found.add(bus.devices));
        assert_eq!(found.of("rp"), Some("0000:00:02.1"));
        assert_eq!(found.of("scsi9"), Some("0000:01:1f.0"));
    }
}
