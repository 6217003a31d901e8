//! What `list` and `inspect` print: the volumes with their states, as a table or one by one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::table;
use crate::{
    Error,
    error::ErrorBody,
    ops::volume::{ListedVolume, State},
    sanitize::sanitize,
    size::human_size,
};

/// The volumes of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Listing {
    /// By container and device path.
    pub volumes: Vec<ListedVolume>,
    /// Why the guest could not be asked; the volumes that QEMU has as a whole are then unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_error: Option<ErrorBody>,
}

impl Listing {
    /// The error of a listing in which the guest could not tell about a volume.
    pub(crate) fn unknown(&self) -> Option<Error> {
        let is_untold = |listed: &&ListedVolume| {
            let holders =
                listed.guest.as_ref().is_some_and(|guest| !guest.holders_unknown.is_empty());
            listed.guest_error.is_some() || holders || matches!(listed.state, State::Unknown { .. })
        };
        let untold = self.volumes.iter().filter(is_untold);
        let mut volumes: Vec<_> = untold.map(|listed| listed.volume.id.clone()).collect();
        // A shared volume has several.
        volumes.dedup();
        (!volumes.is_empty() || self.guest_error.is_some())
            .then_some(Error::StateUnknown { volumes })
    }
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
    for ListedVolume { volume, state, guest, guest_error } in &listing.volumes {
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
            // What was not told is not a "no".
            let told =
                |fact: bool| if fact || guest_error.is_none() { yes(fact) } else { "unknown" };
            line("in the guest", "");
            line("  disk", told(guest.disk_present));
            line("  container", guest.container_state.text());
            line("  node", told(guest.node_present));
            line("  allowed", told(guest.allowed));
            if guest.disk_present {
                line("  size", &format!("{} bytes", guest.size));
                line("  read-only", yes(guest.read_only));
            }
            guest.leftovers.iter().for_each(|name| line("  leftover", name));
            guest
                .holders
                .iter()
                .flatten()
                .for_each(|holder| line("  held by", &holder.to_string()));
            if !guest.holders_unknown.is_empty() {
                line("  held by", &format!("unknown: {}", guest.holders_unknown));
            }
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
        Some(format!("the guest cannot tell about volume {}: {}", listed.volume.id, error.message))
    });
    all.chain(each).collect()
}

#[cfg(test)]
#[path = "listing_tests.rs"]
mod tests;
