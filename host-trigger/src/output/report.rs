//! What `hot-plug`, `hot-unplug`, `resize` and `throttle` print.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::envelope::{Envelope, Outcome};
use crate::{
    guest_holder::GuestHolder,
    ops::{file_system::GrownFileSystem, place::MountPlace, volume::Volume},
    sanitize::sanitize,
    size::human_size,
};

/// The volumes that a command changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// In the order of the command line; empty if the volume that `hot-unplug` names does not
    /// exist.
    pub volumes: Vec<Volume>,
    /// The holders that lost the volume by `hot-unplug --force`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub broken_holders: Vec<GuestHolder>,
    /// What is lost by `hot-unplug --without-guest`, and what the guest may still have; for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<String>,
    /// The file system of a volume that `resize` worked on, if it is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_system: Option<GrownFileSystem>,
}

impl Report {
    /// The report of `volumes` alone.
    pub(crate) fn of(volumes: Vec<Volume>) -> Self {
        Self { volumes, broken_holders: Vec::new(), lost: Vec::new(), file_system: None }
    }
}

/// The report for people.
pub(crate) fn human(envelope: &Envelope<Report>) -> String {
    let mut lines = Vec::new();
    for volume in &envelope.body.volumes {
        lines.extend(volume_lines(envelope, volume));
    }
    let file_system = envelope.body.file_system.iter();
    lines.extend(file_system.map(|grown| format!("  file system: {}", sanitize(&grown.text()))));
    let broken = envelope.body.broken_holders.iter();
    lines.extend(broken.map(|holder| match envelope.dry_run {
        true => format!("  would break {holder}"),
        false => format!("  broke {holder}"),
    }));
    let heading = match (envelope.body.lost.is_empty(), envelope.dry_run) {
        (true, _) => None,
        (false, true) => Some("  would be lost, or left in the guest:"),
        (false, false) => Some("  lost, or left in the guest:"),
    };
    lines.extend(heading.map(str::to_owned));
    lines.extend(envelope.body.lost.iter().map(|lost| format!("    {}", sanitize(lost))));
    if envelope.body.volumes.is_empty() {
        lines.push("unchanged: there is no such volume".to_owned());
    }
    let total = envelope.timings_us.as_ref().and_then(|timings| timings.0.last());
    lines.extend(total.map(|(_, micros)| format!("  took {} ms", micros.div_ceil(1000))));
    lines.join("\n")
}

fn volume_lines(envelope: &Envelope<Report>, volume: &Volume) -> Vec<String> {
    let verb = match (envelope.result, envelope.dry_run) {
        (Outcome::Attached, false) => "plugged",
        (Outcome::Attached, true) => "would plug",
        (Outcome::Detached, false) => "unplugged",
        (Outcome::Detached, true) => "would unplug",
        (Outcome::Abandoned, false) => "freed",
        (Outcome::Abandoned, true) => "would free",
        (Outcome::Resized, false) => "resized",
        (Outcome::Resized, true) => "would resize",
        (Outcome::Throttled, false) => "throttled",
        (Outcome::Throttled, true) => "would throttle",
        _ => "unchanged:",
    };
    let detaches = matches!(envelope.result, Outcome::Detached | Outcome::Abandoned);
    let access = if volume.read_only { ", read-only" } else { "" };
    let preposition = if detaches { "from" } else { "at" };
    let first = format!(
        "{verb} {} ({}{access}) {preposition} {} in container {}",
        sanitize(&volume.source.to_string_lossy()),
        human_size(volume.size),
        sanitize(volume.place.path()),
        container(volume),
    );
    if detaches || volume.guest_device.is_empty() {
        return vec![first, format!("  volume {}", volume.id)];
    }
    let filter = || format!("device filter: {}", sanitize(&volume.device_filter));
    let mounted = |mount: &MountPlace| format!("mounted: {}", sanitize(&mount.text()));
    let second = format!(
        "  volume {}, in the guest {} ({}) at {} {}:{}, {}",
        volume.id,
        sanitize(&volume.guest_device),
        volume.device_number,
        sanitize(&volume.scsi.controller),
        volume.scsi.target,
        volume.scsi.lun,
        volume.place.mount().map_or_else(filter, mounted),
    );
    let mut lines = vec![first, second];
    if volume.shared && !volume.read_only {
        lines.push("  shared: nothing coordinates the writes of its containers".to_owned());
    }
    if envelope.result == Outcome::Throttled || !volume.throttle.is_unlimited() {
        lines.push(format!("  limits: {}", volume.throttle));
    }
    lines
}

/// The container, and how its pod is called.
fn container(volume: &Volume) -> String {
    let id = sanitize(&volume.container);
    volume.pod.as_ref().map_or_else(|| id.clone(), |pod| format!("{id} ({pod})"))
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
