//! Attributes and links of sysfs: identity, address and counters of a disk. QEMU supplies the VPD
//! pages.
//!
//! The first byte selects the parser.

#![no_main]

use std::fmt::Write as _;

use agent_plugin::{
    block::{DeviceNumber, serial_of_page_80},
    disk_stats::DiskStats,
    scsi::{ScsiDevice, ScsiHost},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&parser, bytes)) = input.split_first() else { return };
    match parser {
        b'v' => return page_80(bytes),
        b's' => return counters(bytes),
        _ => {}
    }
    let Ok(text) = str::from_utf8(bytes) else { return };
    match parser {
        b'h' => host(text),
        b'd' => device(text),
        b'n' => number(text),
        _ => {}
    }
});

fn page_80(page: &[u8]) {
    let Some(serial) = serial_of_page_80(page) else { return };
    let length = usize::from(page[2]) << 8 | usize::from(page[3]);
    let field = &page[4..4 + length];
    assert_eq!(page[1], 0x80);
    assert!(field.windows(serial.len()).any(|part| part == serial.as_bytes()));
    assert!(
        !serial.is_empty() && !serial.starts_with([' ', '\0']) && !serial.ends_with([' ', '\0'])
    );
}

fn host(link: &str) {
    let Some(host) = ScsiHost::from_link(link) else { return };
    assert!(link.contains(&format!("{}/virtio", host.controller)), "{host:?}");
    assert!(!host.controller.contains('/'), "{host:?}");
}

fn device(path: &str) {
    let Some((device, name)) = ScsiDevice::from_devpath(path) else { return };
    assert!(device.directory().starts_with("/sys/bus/scsi/devices"));
    assert_eq!(device.directory().components().count(), 6, "{device:?}");
    let again = format!("/devices/{device}/block/{name}");
    assert_eq!(ScsiDevice::from_devpath(&again), Some((device, name)));
}

fn number(text: &str) {
    let Ok(number) = text.parse::<DeviceNumber>() else { return };
    assert_eq!(number.to_string().parse(), Ok(number));
    if number.major < 1 << 12 && number.minor < 1 << 20 {
        assert_eq!(DeviceNumber::from_raw(number.to_raw()), number);
    }
}

fn counters(text: &[u8]) {
    let Some(stats) = DiskStats::parse(text) else { return };
    // The columns, written in their order, are read back unchanged.
    let sectors = |bytes: u64| bytes / 512;
    let mut line = String::new();
    let columns = [
        [stats.reads, 0, sectors(stats.read_bytes), stats.read_ms],
        [stats.writes, 0, sectors(stats.written_bytes), stats.write_ms],
        [stats.in_flight, 0, 0, stats.discards],
        [0, 0, 0, stats.flushes],
    ];
    columns
        .iter()
        .flatten()
        .for_each(|column| write!(line, " {column}").expect("a String takes everything"));
    let again = DiskStats::parse(line.as_bytes()).expect("sixteen numbers");
    let whole = |bytes: u64| bytes - bytes % 512;
    let expected = DiskStats {
        read_bytes: whole(stats.read_bytes),
        written_bytes: whole(stats.written_bytes),
        ..stats
    };
    assert_eq!(again, expected);
}
