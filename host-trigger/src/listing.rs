//! What `list` and `inspect` print: the volumes with their state, as one JSON object, as a table,
//! or one by one.

use serde::{Deserialize, Serialize};

use crate::{
    guest_holder::GuestHolder,
    output::{FailureBody, Timings, Volume},
    printable::printable,
    size::human_size,
    table,
};

/// What is plugged into a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listing {
    /// [`SCHEMA`](crate::output::SCHEMA).
    pub schema: u32,
    /// The verb: `list` or `inspect`.
    pub command: String,
    /// `listed` or `inspected`.
    pub result: String,
    /// By container and path.
    pub volumes: Vec<Listed>,
    /// Why the guest could not be asked; the volumes are then as QEMU has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_error: Option<FailureBody>,
    /// How long the stages took.
    pub timings_us: Timings,
}

/// One volume and its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// As for `hot-plug`; what is not known of a half-done one is empty or zero.
    #[serde(flatten)]
    pub volume: Volume,
    /// Is it whole?
    pub state: State,
    /// What the guest says; absent where it was not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestView>,
    /// Why the guest does not tell of this volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_error: Option<FailureBody>,
}

/// The state of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// All of it is there, as far as could be asked.
    #[serde(rename = "attached")]
    Attached,
    /// A part of it is missing: a run was killed, or somebody took a part away.
    #[serde(rename = "incomplete")]
    Incomplete,
    /// It is plugged, and its container does not run any more.
    #[serde(rename = "stale: container gone")]
    ContainerGone,
    /// It is plugged into an earlier container of this id; the one that runs was started since.
    #[serde(rename = "stale: container restarted")]
    ContainerRestarted,
}

impl State {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::Incomplete => "incomplete",
            Self::ContainerGone => "stale: container gone",
            Self::ContainerRestarted => "stale: container restarted",
        }
    }
}

/// One volume as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestView {
    /// The disk is there, with the volume's serial.
    pub disk_present: bool,
    /// Its size in bytes there.
    pub size: u64,
    /// The guest's kernel refuses writes.
    pub read_only: bool,
    /// The container runs.
    pub container_running: bool,
    /// The node at the path is this disk's.
    pub node_present: bool,
    /// The device filter lets the container use it.
    pub allowed: bool,
    /// Temporary nodes of ours.
    pub leftovers: Vec<String>,
    /// Who holds the disk there; only `inspect` asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holders: Option<Vec<GuestHolder>>,
}

/// The table of `list`.
pub(crate) fn table(listing: &Listing) -> String {
    let mut rows = vec![
        ["VOLUME", "STATE", "SIZE", "CONTAINER", "PATH", "SOURCE", "GUEST", "LIMITS"]
            .map(str::to_owned),
    ];
    rows.extend(listing.volumes.iter().map(|Listed { volume, state, .. }| {
        let access = if volume.read_only { " ro" } else { "" };
        [
            volume.id.clone(),
            state.text().to_owned(),
            format!("{}{access}", human_size(volume.size)),
            // As much as people need; a longer one is in the JSON form.
            printable(&volume.container).chars().take(12).collect(),
            printable(&volume.device_path),
            printable(&volume.source_device.to_string_lossy()),
            printable(&volume.guest_device),
            if volume.throttle.is_unlimited() {
                String::new()
            } else {
                volume.throttle.to_string()
            },
        ]
    }));
    let mut lines = table::table(rows);
    if listing.volumes.is_empty() {
        lines = vec!["no volumes are plugged".to_owned()];
    }
    lines.extend(unasked(listing));
    lines.join("\n")
}

/// All that is known, a line each, for `inspect`.
pub(crate) fn details(listing: &Listing) -> String {
    let mut lines = Vec::new();
    for Listed { volume, state, guest, .. } in &listing.volumes {
        let access = if volume.read_only { ", read-only" } else { "" };
        let scsi = &volume.scsi;
        let mut line =
            |name: &str, value: &str| lines.push(format!("{name:14}{}", printable(value)));
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
            line("open to", "every container of the sandbox with CAP_MKNOD, by a node of its own");
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
    lines.extend(unasked(listing));
    lines.join("\n")
}

/// What the guest did not tell.
fn unasked(listing: &Listing) -> Vec<String> {
    let whole = listing.guest_error.iter();
    let whole = whole.map(|error| format!("the guest was not asked: {}", error.message));
    let each = listing.volumes.iter().filter_map(|listed| {
        let error = listed.guest_error.as_ref()?;
        Some(format!("the guest does not tell of volume {}: {}", listed.volume.id, error.message))
    });
    whole.chain(each).collect()
}

#[cfg(test)]
#[path = "listing_tests.rs"]
mod tests;
