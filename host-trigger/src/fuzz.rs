//! Access to private functions for the targets in `fuzz/`. The feature `fuzz` is off in every
//! binary.

use std::{ffi::OsString, path::PathBuf};

use block_volume_api::block_volume::{Attached, Attachment, Holder};
use block_volume_qmp::{Qmp, QmpError};
use tokio::net::UnixStream;

use crate::{
    Error,
    cli::mount::MountArgs,
    guest_holder::GuestHolder,
    host::{credentials::Credentials, holders, kernel_text, mountinfo, overlay::Directories},
    kata::{agent_address::AgentAddress, mount_info::MountInfo, shim},
    ops::{commit, inspect::VolumeView, volume::State},
    output::{
        envelope::Envelope,
        listing::{self, Listing},
        prometheus,
        repair_report::{self, RepairReport},
        report::{self, Report},
        stats_report::{self, StatsReport},
    },
    qemu::{
        block_stats::QemuStats, inventory::Inventory, mount::MountRecord, record::CommitRecord,
        throttle::Limits,
    },
    sanitize,
};

pub use block_volume_qmp::fuzz::{Passed, lines};

/// Sends every query that any verb sends, and formats the replies as a table.
///
/// # Errors
/// QEMU does not reply, or not in the documented form.
pub async fn inspect(qmp: &mut Qmp) -> Result<String, QmpError> {
    let mut inventory = Inventory::read(qmp).await?;
    inventory.read_nodes(qmp).await?;
    let (counters, limits) = (QemuStats::read(qmp).await?, Limits::read(qmp).await?);
    let (unused, controller) = (inventory.unused(), inventory.controller(None));
    let mut volumes = Vec::new();
    for known in inventory.attachments() {
        let (attached, id) = (known.is_attached() && !known.state.is_abandoned, known.id.clone());
        let view = VolumeView::new(qmp, &inventory, "sandbox", known).await?;
        let mut listed = view.without_guest();
        // QEMU alone does not show whether a volume is attached.
        assert_eq!(attached, matches!(listed.state, State::Unknown { .. }));
        listed.volume.throttle = limits.get(&id).copied().unwrap_or_default();
        volumes.push(listed);
    }
    let listing = Listing { volumes, ..Listing::default() };
    let counts = format!("{} {} {}", counters.len(), unused.len(), controller.is_ok());
    Ok([listing::table(&listing), listing::details(&listing), counts].concat())
}

/// Asks the shim at the other end of `stream` for its agent's address.
///
/// # Errors
/// Says what went wrong.
pub async fn agent_url(stream: UnixStream) -> Result<AgentAddress, String> {
    shim::agent_url_over(stream).await
}

/// Parses `persist.json` of a shim.
pub fn state(text: &[u8]) -> shim::State {
    shim::State::parse(text)
}

/// What a `mountInfo.json` requests: the volume, its mount, and whether that is read-only.
///
/// # Errors
/// Says what is wrong with it.
pub fn mount_info(text: &[u8]) -> Result<(PathBuf, MountRecord, bool), String> {
    let info = MountInfo::parse(text)?;
    let arguments = MountArgs {
        fs_type: None,
        mount_options: Vec::new(),
        fs_group: None,
        fs_group_change_policy: None,
        mount_info: None,
    };
    let requested = arguments.requested(Some(&info), false).map_err(|error| error.message())?;
    Ok((info.device, requested.mount, requested.read_only))
}

/// Parses a mount table; returns the mount points and all directories of overlays.
pub fn mounts(table: &[u8]) -> Option<Vec<PathBuf>> {
    let mounts = mountinfo::parse(table).ok()?;
    let overlays = mounts.iter().filter_map(|mount| Directories::of(&mount.options).ok());
    let directories = overlays.flat_map(|found| [found.lower, found.upper].concat());
    let points = mounts.iter().map(|mount| mount.point.clone());
    Some(points.chain(directories.collect::<Vec<_>>()).collect())
}

/// Parses `/proc/swaps`.
pub fn swaps(text: &[u8]) -> Vec<PathBuf> {
    holders::parse_swaps(text)
}

/// Whether `/proc/PID/status` has credentials.
pub fn credentials(status: &[u8]) -> bool {
    Credentials::parse(status).is_some()
}

/// Reads the kernel's octal escapes.
pub fn unescape(text: &[u8]) -> OsString {
    kernel_text::unescape(text)
}

/// Makes a string safe for a terminal.
pub fn sanitize(text: &str) -> String {
    sanitize::sanitize(text)
}

/// Converts the holders that a guest reports.
pub fn holders(reply: &[Holder]) -> Vec<GuestHolder> {
    GuestHolder::from_reply(reply)
}

/// Makes the commit record of a volume that the guest attached.
///
/// # Errors
/// It is not the volume that was requested.
pub fn commit(requested: &Attachment, attached: &Attached) -> Result<CommitRecord, Error> {
    commit::check(requested, attached).map(|()| commit::record("scsi0", requested, attached))
}

/// Formats a report for people.
pub fn report(report: &Envelope<Report>) -> String {
    report::human(report)
}

/// Formats volumes for people, as a table and one by one.
pub fn listing(listing: &Listing) -> [String; 2] {
    [listing::table(listing), listing::details(listing)]
}

/// Formats counters for people and for Prometheus.
pub fn stats(report: &StatsReport) -> [String; 2] {
    [stats_report::human(report), prometheus::exposition(report)]
}

/// Formats the result of `repair` for people.
pub fn repaired(report: &Envelope<RepairReport>) -> String {
    repair_report::human(report)
}
