//! Encodes the present state of an attachment.

use super::{add_holders, device_number, filter_mode, status, why};
use crate::{
    disk_stats::DiskStats,
    file_system::{Kind, Space},
    service::message::Message,
    volume::{ContainerStatus, Inspected},
};

pub(super) fn encoded(inspected: &Inspected) -> Message {
    let mut encoded = Message::default();
    encoded.text(1, &inspected.serial);
    if let Some(disk) = &inspected.disk {
        encoded.flag(2, true);
        encoded.text(3, &disk.name);
        encoded.message(4, &device_number(disk.number));
    }
    encoded.number(5, inspected.size);
    encoded.flag(6, inspected.read_only);
    encoded.flag(7, inspected.container == ContainerStatus::Running);
    encoded.flag(8, inspected.node_present);
    encoded.flag(9, inspected.allowed);
    if let Some(mode) = inspected.filter {
        encoded.choice(10, filter_mode(mode));
    }
    encoded.texts(11, &inspected.leftovers);
    if let Some(stats) = &inspected.stats {
        encoded.message(12, &counters(stats));
    }
    add_holders(&mut encoded, 13, &inspected.holders);
    encoded.number(14, inspected.container_started);
    encoded.choice(15, status(inspected.container));
    encoded.text(16, &why(inspected.unknown.as_deref()));
    encoded.text(17, &why(inspected.holders_unknown.as_deref()));
    if let Some((kind, space)) = &inspected.file_system {
        encoded.message(18, &file_system(*kind, space));
    }
    encoded
}

fn file_system(kind: Kind, space: &Space) -> Message {
    let mut encoded = Message::default();
    encoded.text(1, kind.name());
    encoded.number(2, space.bytes);
    encoded.number(3, space.bytes_free);
    encoded.number(4, space.bytes_available);
    encoded.number(5, space.inodes);
    encoded.number(6, space.inodes_free);
    encoded.flag(7, space.read_only);
    encoded
}

fn counters(stats: &DiskStats) -> Message {
    let in_order = [
        stats.reads,
        stats.read_bytes,
        stats.read_ms,
        stats.writes,
        stats.written_bytes,
        stats.write_ms,
        stats.discards,
        stats.flushes,
        stats.in_flight,
        stats.errors,
    ];
    let mut encoded = Message::default();
    (1..).zip(in_order).for_each(|(field, count)| encoded.number(field, count));
    encoded
}
