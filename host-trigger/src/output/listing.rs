//! What `list` and `inspect` print: the volumes with their states, as a table or one by one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{node_listing, table};
use crate::{
    Error,
    error::ErrorBody,
    ops::volume::{ListedVolume, State, Volume},
    pod::PodView,
    sanitize::sanitize,
    size::human_size,
};

/// How many characters of an ID the tables show: enough for people; the JSON form has the full ID.
pub(super) const SHORT_ID: usize = 12;
/// The reason of the error about another hypervisor.
const NOT_QEMU: &str = "not_qemu";

/// The volumes of a sandbox, or of all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Listing {
    /// By container and path; with `--all`, by sandbox first.
    pub volumes: Vec<ListedVolume>,
    /// Why the guest could not be asked; the volumes that QEMU has as a whole are then unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_error: Option<ErrorBody>,
    /// With `--all`: the sandboxes of the node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sandboxes: Vec<ListedSandbox>,
}

/// A sandbox of the node, for `--all`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListedSandbox {
    /// The sandbox's ID.
    pub id: String,
    /// Its pod, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodView>,
    /// Why its volumes are not listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
    /// Why its guest could not be asked; the volumes that QEMU has as a whole are then unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_error: Option<ErrorBody>,
}

impl ListedSandbox {
    /// Whether its volumes are not known. Another hypervisor than QEMU has none of ours.
    fn is_unknown(&self) -> bool {
        let error = self.error.as_ref().filter(|error| error.reason != NOT_QEMU);
        error.is_some() || self.guest_error.is_some()
    }
}

impl Listing {
    /// The error of a listing in which the guest could not tell about a volume, or a sandbox about
    /// its volumes.
    pub(crate) fn unknown(&self) -> Option<Error> {
        let sandboxes = self.sandboxes.iter().filter(|sandbox| sandbox.is_unknown());
        let sandboxes: Vec<_> = sandboxes.map(|sandbox| sandbox.id.clone()).collect();
        if !sandboxes.is_empty() {
            return Some(Error::SandboxesUnknown { sandboxes });
        }
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
    if !listing.sandboxes.is_empty() {
        return node_listing::table(listing);
    }
    let rows = rows(listing.volumes.iter());
    let mut lines = match listing.volumes.iter().any(|listed| listed.volume.pod.is_some()) {
        true => table::table(rows),
        false => table::table(rows.into_iter().map(without_pod).collect()),
    };
    if listing.volumes.is_empty() {
        lines = vec!["no volumes are attached".to_owned()];
    }
    lines.extend(guest_errors(listing));
    lines.join("\n")
}

fn without_pod(row: [String; 9]) -> [String; 8] {
    let [volume, state, size, container, _, path, source, guest, limits] = row;
    [volume, state, size, container, path, source, guest, limits]
}

/// A row for each of `volumes`, below the headings.
pub(super) fn rows<'a>(volumes: impl Iterator<Item = &'a ListedVolume>) -> Vec<[String; 9]> {
    let mut rows = vec![
        ["VOLUME", "STATE", "SIZE", "CONTAINER", "POD", "PATH", "SOURCE", "GUEST", "LIMITS"]
            .map(str::to_owned),
    ];
    rows.extend(volumes.map(|ListedVolume { volume, state, .. }| {
        let access = if volume.read_only { " ro" } else { "" };
        [
            volume.id.clone(),
            state.text().to_owned(),
            format!("{}{access}", human_size(volume.size)),
            sanitize(&volume.container).chars().take(SHORT_ID).collect(),
            volume.pod.as_ref().map(ToString::to_string).unwrap_or_default(),
            sanitize(volume.place.path()),
            sanitize(&volume.source_device.to_string_lossy()),
            guest(volume),
            if volume.throttle.is_unlimited() {
                String::new()
            } else {
                volume.throttle.to_string()
            },
        ]
    }));
    rows
}

/// The disk in the guest, and the type of a file system that is mounted.
fn guest(volume: &Volume) -> String {
    let device = sanitize(&volume.guest_device);
    match volume.place.mount() {
        Some(mount) => format!("{device} {}", sanitize(&mount.fs_type)).trim().to_owned(),
        None => device,
    }
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
        if let Some(pod) = &volume.pod {
            line("pod", &pod.to_string());
        }
        line("path", volume.place.path());
        if let Some(mount) = volume.place.mount() {
            line("mounted", &mount.text());
        }
        line("address", &format!("{} {}:{}", scsi.controller, scsi.target, scsi.lun));
        line("guest device", &format!("{} ({})", volume.guest_device, volume.device_number));
        if volume.place.mount().is_none() {
            line("device filter", &volume.device_filter);
        }
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
            match volume.place.mount() {
                Some(_) => line("  mounted", told(guest.node_present)),
                None => {
                    line("  node", told(guest.node_present));
                    line("  allowed", told(guest.allowed));
                }
            }
            if let Some(file_system) = &guest.file_system {
                line("  file system", &file_system.text());
            }
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
pub(super) fn guest_errors(listing: &Listing) -> Vec<String> {
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
