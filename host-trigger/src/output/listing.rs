//! What `list` and `inspect` print: the volumes with their states, as a table or one by one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::table;
use crate::{error::ErrorBody, ops::volume::ListedVolume, sanitize::sanitize, size::human_size};

/// The volumes of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Listing {
    /// By container and device path.
    pub volumes: Vec<ListedVolume>,
    /// Why the guest could not be asked; the volumes are then as QEMU has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_error: Option<ErrorBody>,
}

/// The table of `list`.
pub(crate) fn table(listing: &Listing) -> String {
    let mut rows = vec![
        ["VOLUME", "STATE", "SIZE", "CONTAINER", "PATH", "SOURCE", "GUEST", "LIMITS"]
            .map(str::to_owned),
    ];
    rows.extend(listing.volumes.iter().map(|ListedVolume { volume, state, .. }| {
        let access = if volume.read_only { " ro" } else { "" };
        [
            volume.id.clone(),
            state.text().to_owned(),
            format!("{}{access}", human_size(volume.size)),
            // Enough for people; the JSON form has the full ID.
            sanitize(&volume.container).chars().take(12).collect(),
            sanitize(&volume.device_path),
            sanitize(&volume.source_device.to_string_lossy()),
            sanitize(&volume.guest_device),
            if volume.throttle.is_unlimited() {
                String::new()
            } else {
                volume.throttle.to_string()
            },
        ]
    }));
    let mut lines = table::table(rows);
    if listing.volumes.is_empty() {
        lines = vec!["no volumes are attached".to_owned()];
    }
    lines.extend(guest_errors(listing));
    lines.join("\n")
}

/// Everything that is known of each volume, a line each, for `inspect`.
pub(crate) fn details(listing: &Listing) -> String {
    let mut lines = Vec::new();
    for ListedVolume { volume, state, guest, .. } in &listing.volumes {
        let access = if volume.read_only { ", read-only" } else { "" };
        let scsi = &volume.scsi;
        let mut line =
            |name: &str, value: &str| lines.push(format!("{name:14}{}", sanitize(value)));
        line("volume", &volume.id);
        line("state", state.text());
        line("size", &format!("{} ({} bytes{access})", human_size(volume.size), volume.size));
        line("source", &volume.source_device.to_string_lossy());
        line("sandbox", &volume.sandbox);
        line("container", &volume.container);
        line("path", &volume.device_path);
        line("address", &format!("{} {}:{}", scsi.controller, scsi.target, scsi.lun));
        line("guest device", &format!("{} ({})", volume.guest_device, volume.device_number));
        line("device filter", &volume.device_filter);
        if volume.device_filter == "none" {
            line("exposed to", "every container of the sandbox that has CAP_MKNOD");
        }
        line("limits", &volume.throttle.to_string());
        if let Some(guest) = guest {
            let yes = |fact: bool| if fact { "yes" } else { "no" };
            line("in the guest", "");
            line("  disk", yes(guest.disk_present));
            line("  container", if guest.container_running { "running" } else { "gone" });
            line("  node", yes(guest.node_present));
            line("  allowed", yes(guest.allowed));
            line("  size", &format!("{} bytes", guest.size));
            line("  read-only", yes(guest.read_only));
            guest.leftovers.iter().for_each(|name| line("  leftover", name));
            guest
                .holders
                .iter()
                .flatten()
                .for_each(|holder| line("  held by", &holder.to_string()));
        }
    }
    lines.iter_mut().for_each(|line| line.truncate(line.trim_end().len()));
    lines.extend(guest_errors(listing));
    lines.join("\n")
}

/// What the guest did not report.
fn guest_errors(listing: &Listing) -> Vec<String> {
    let all = listing.guest_error.iter();
    let all = all.map(|error| format!("the guest was not asked: {}", error.message));
    let each = listing.volumes.iter().filter_map(|listed| {
        let error = listed.guest_error.as_ref()?;
        Some(format!("the guest does not report volume {}: {}", listed.volume.id, error.message))
    });
    all.chain(each).collect()
}

#[cfg(test)]
#[path = "listing_tests.rs"]
mod tests;
