//! The kernel's device events: any message that the netlink socket receives, including those of
//! other processes.

#![no_main]

use agent_plugin::{scsi::ScsiDevice, uevent::Uevent};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|message: &[u8]| {
    let Some(event) = Uevent::parse(message) else { return };
    let parts = [event.action, event.devpath, event.subsystem, event.devtype];
    assert!(parts.iter().all(|part| !part.contains('\0')), "{event:?}");
    let head = format!("{}@{}", event.action, event.devpath);
    assert!(message.starts_with(head.as_bytes()), "{event:?}");
    let contains =
        |pair: &str| message.split(|&byte| byte == 0).any(|part| part == pair.as_bytes());
    if event.adds_disk() || event.changes_disk() {
        assert!(contains("SUBSYSTEM=block") && contains("DEVTYPE=disk"), "{event:?}");
    }
    if event.number.is_some() {
        let has = |key: &[u8]| message.split(|&byte| byte == 0).any(|part| part.starts_with(key));
        assert!(has(b"MAJOR=") && has(b"MINOR="), "{event:?}");
    }
    if let Some((device, name)) = ScsiDevice::from_devpath(event.devpath) {
        assert!(
            event.devpath.ends_with(&format!("/block/{name}")) && !name.contains('/'),
            "{event:?}"
        );
        let again = format!("/devices/{device}/block/{name}");
        assert_eq!(ScsiDevice::from_devpath(&again), Some((device, name)));
    }
});
