//! Doors to what is private, for the fuzz targets in `fuzz/` and nobody else: the feature `fuzz` is
//! off in every binary.

use block_volume_api::block_volume::{Attached, Attachment, Holder};

use crate::{
    Error,
    block_stats::QemuStats,
    guest_holder::GuestHolder,
    limits::Limits,
    listing::{self, Listing},
    outcome,
    output::{self, Report},
    printable, prometheus,
    record::Placement,
    registry::Registry,
    repaired::{self, Repaired},
    shim,
    stats::{self, Counted},
    survey::Subject,
};
use block_volume_qmp::{Qmp, QmpError};

pub use block_volume_qmp::fuzz::{Passed, lines};

/// Asks QEMU for all that any verb asks without changing anything, and makes a table of it.
///
/// # Errors
/// QEMU does not answer, or not in the documented form.
pub async fn survey(qmp: &mut Qmp) -> Result<String, QmpError> {
    let mut registry = Registry::read(qmp).await?;
    registry.read_nodes(qmp).await?;
    let (counters, limits) = (QemuStats::read(qmp).await?, Limits::read(qmp).await?);
    let (unused, controller) = (registry.unused(), registry.controller(None));
    let mut volumes = Vec::new();
    for known in registry.uses() {
        let (whole, id) = (known.is_plugged(), known.id.clone());
        let mut listed = Subject::new(qmp, &registry, "sandbox", known).await?.without_guest();
        assert_eq!(whole, listed.state == listing::State::Attached);
        listed.volume.throttle = limits.get(&id).copied().unwrap_or_default();
        volumes.push(listed);
    }
    let listing = Listing {
        schema: output::SCHEMA,
        command: "list".into(),
        result: format!("{} {} {}", counters.len(), unused.len(), controller.is_ok()),
        volumes,
        guest_error: None,
        timings_us: output::Timings(Vec::new()),
    };
    Ok([listing::table(&listing), listing::details(&listing)].concat())
}

/// What a shim noted of its sandbox.
pub fn state(text: &[u8]) -> shim::State {
    shim::State::parse(text)
}

/// A string as a terminal gets it.
pub fn printable(text: &str) -> String {
    printable::printable(text)
}

/// What a guest says of those who hold a volume.
pub fn holders(told: &[Holder]) -> Vec<GuestHolder> {
    GuestHolder::all(told)
}

/// What is noted of a volume that the guest attached.
///
/// # Errors
/// It is not the one that was asked for.
pub fn placement(asked: &Attachment, attached: &Attached) -> Result<Placement, Error> {
    outcome::check(asked, attached).map(|()| outcome::placement("scsi0", asked, attached))
}

/// A result for people.
pub fn report(report: &Report) -> String {
    output::human(report)
}

/// Volumes for people, as a table and one by one.
pub fn listing(listing: &Listing) -> [String; 2] {
    [listing::table(listing), listing::details(listing)]
}

/// Counters for people, and for Prometheus.
pub fn counted(counted: &Counted) -> [String; 2] {
    [stats::human(counted), prometheus::exposition(counted)]
}

/// What `repair` did, for people.
pub fn repaired(repaired: &Repaired) -> String {
    repaired::lines(repaired)
}
