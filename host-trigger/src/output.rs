//! What a command prints: one JSON object on standard output, or a few lines for people. Errors for
//! people go to standard error, as `error: …` and `hint: …`.

use std::{
    fmt,
    io::Write,
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
    ser::SerializeMap,
};

use crate::{
    Error,
    checked::{self, Checked},
    guest_holder::GuestHolder,
    limits::Limits,
    listing::{self, Listing},
    printable::printable,
    prometheus,
    record::Placement,
    repaired::{self, Repaired},
    size::human_size,
    stats::{self, Counted},
};

/// The version of the JSON form; it changes only where something is renamed or taken away.
pub const SCHEMA: u32 = 1;

/// How the result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Lines for people.
    Human,
    /// One JSON object on standard output, for success and for failure.
    Json,
}

/// What a command that succeeded tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The verb: `hot-plug`, `hot-unplug`, `resize` or `throttle`.
    pub command: String,
    /// What became of it.
    pub result: Outcome,
    /// In the order of the command line; none where the volume that `hot-unplug` names is not
    /// there.
    pub volumes: Vec<Volume>,
    /// Who lost the volume by `hot-unplug --force`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub broke: Vec<GuestHolder>,
    /// How long the stages took.
    pub timings_us: Timings,
}

/// What became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// At least one volume is new in its container.
    Attached,
    /// All was as asked for already.
    Unchanged,
    /// The volume is gone from its container, its guest and QEMU.
    Detached,
    /// QEMU and the guest have the new size.
    Resized,
    /// QEMU keeps the new limits.
    Throttled,
    /// With `--dry-run`: it would be attached.
    #[serde(rename = "would attach")]
    WouldAttach,
    /// With `--dry-run`: it would be detached.
    #[serde(rename = "would detach")]
    WouldDetach,
    /// With `--dry-run`: it would be resized.
    #[serde(rename = "would resize")]
    WouldResize,
    /// With `--dry-run`: its limits would change.
    #[serde(rename = "would throttle")]
    WouldThrottle,
}

/// One volume in one container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Volume {
    /// The volume's id, which is its serial in the guest.
    pub id: String,
    /// The sandbox's id.
    pub sandbox: String,
    /// The container's id.
    pub container: String,
    /// Its path there.
    pub device_path: String,
    /// The path on the host, as given.
    #[serde(serialize_with = "lossy")]
    pub source: PathBuf,
    /// The real path behind it.
    #[serde(serialize_with = "lossy")]
    pub source_device: PathBuf,
    /// In bytes.
    pub size: u64,
    /// The container cannot write.
    pub read_only: bool,
    /// More than one container has it.
    pub shared: bool,
    /// Its address in the VM.
    pub scsi: Scsi,
    /// The guest kernel's name of it, `sda`.
    pub guest_device: String,
    /// `8:16`
    pub device_number: String,
    /// What keeps containers from devices that are not theirs: `none`, `v1` or `bpf`.
    pub device_filter: String,
    /// How the container got its node: `mknod` or `bind`.
    pub node: String,
    /// What it is limited to; absent: unlimited.
    #[serde(default, skip_serializing_if = "Limits::is_unlimited")]
    pub throttle: Limits,
}

/// What the guest did for it; the rest is not known of that.
impl From<Placement> for Volume {
    fn from(placement: Placement) -> Self {
        Self {
            guest_device: placement.guest_device,
            device_number: format!("{}:{}", placement.major, placement.minor),
            device_filter: placement.filter,
            node: placement.node,
            ..Self::default()
        }
    }
}

/// A path that is not UTF-8 is shown as far as it is: JSON has no bytes.
fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// The address of a disk on a virtio-scsi controller.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Scsi {
    /// QEMU's id of the controller, `scsi0`.
    pub controller: String,
    /// The target.
    pub target: u32,
    /// The logical unit.
    pub lun: u32,
}

/// Stages and their microseconds, in order; an object in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timings(pub Vec<(String, u64)>);

impl Serialize for Timings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, micros) in &self.0 {
            map.serialize_entry(name, micros)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Timings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Stages;
        impl<'de> Visitor<'de> for Stages {
            type Value = Timings;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("stages and their microseconds")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Timings, A::Error> {
                let mut stages = Vec::new();
                while let Some(stage) = map.next_entry()? {
                    stages.push(stage);
                }
                Ok(Timings(stages))
            }
        }
        deserializer.deserialize_map(Stages)
    }
}

/// What a command that failed tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// All of it.
    pub error: FailureBody,
}

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureBody {
    /// Stable, for programs.
    pub reason: String,
    /// The exit status.
    pub exit_code: u8,
    /// For people.
    pub message: String,
    /// A way out, where there is one.
    pub hint: Option<String>,
    /// Who holds the volume in the guest, where that is the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<GuestHolder>,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let class = error.class();
        Self {
            error: FailureBody {
                reason: class.reason.to_owned(),
                exit_code: class.exit_code,
                message: error.message(),
                hint: class.hint.map(str::to_owned),
                holders: error.holders().to_vec(),
            },
        }
    }
}

/// Prints `report` on standard output.
pub fn print_report(report: &Report, format: Format) {
    match format {
        Format::Human => print(&human(report)),
        Format::Json => print_json(report),
    }
}

/// Prints `listing` on standard output: one volume of `inspect` in full, those of `list` as a
/// table.
pub fn print_listing(listing: &Listing, format: Format) {
    match format {
        Format::Human if listing.command == "inspect" => print(&listing::details(listing)),
        Format::Human => print(&listing::table(listing)),
        Format::Json => print_json(listing),
    }
}

/// Prints the counters of `stats`.
pub fn print_stats(counted: &Counted, format: Format, as_prometheus: bool) {
    match format {
        // The format's own last line has its end.
        _ if as_prometheus => print(prometheus::exposition(counted).trim_end()),
        Format::Human => print(&stats::human(counted)),
        Format::Json => print_json(counted),
    }
}

/// Prints `repaired` on standard output, and for people what is left on standard error.
pub fn print_repaired(repaired: &Repaired, format: Format) {
    match format {
        Format::Human => {
            print(&repaired::lines(repaired));
            if let Some(error) = &repaired.error {
                print_failure(&Failure { error: error.clone() }, format);
            }
        }
        Format::Json => print_json(repaired),
    }
}

/// Prints `checked` on standard output.
pub fn print_checked(checked: &Checked, format: Format) {
    match format {
        Format::Human => print(&checked::lines(checked)),
        Format::Json => print_json(checked),
    }
}

/// Prints `failure`: for programs on standard output, for people on standard error.
pub fn print_failure(failure: &Failure, format: Format) {
    match format {
        Format::Human => {
            note(&format!("error: {}", failure.error.message));
            if let Some(hint) = &failure.error.hint {
                note(&format!("hint: {hint}"));
            }
        }
        Format::Json => print_json(failure),
    }
}

/// A line on standard error. One that is closed (`eprintln!` panics then) must not keep an undo
/// from its end.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn print_json(value: &impl Serialize) {
    // Neither type has a map with keys that are no strings, or a path as it is: the only things
    // that fail here.
    print(&serde_json::to_string(value).unwrap_or_default());
}

/// A reader that closed its end early has what it wanted: the work is done all the same, and the
/// status tells so.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

pub(crate) fn human(report: &Report) -> String {
    let mut lines = Vec::new();
    for volume in &report.volumes {
        let verb = match report.result {
            Outcome::Attached => "plugged",
            Outcome::Detached => "unplugged",
            Outcome::Resized => "resized",
            Outcome::Throttled => "throttled",
            Outcome::Unchanged => "unchanged:",
            Outcome::WouldAttach => "would plug",
            Outcome::WouldDetach => "would unplug",
            Outcome::WouldResize => "would resize",
            Outcome::WouldThrottle => "would throttle",
        };
        let detaches = matches!(report.result, Outcome::Detached | Outcome::WouldDetach);
        let access = if volume.read_only { ", read-only" } else { "" };
        let place = if detaches { "from" } else { "at" };
        lines.push(format!(
            "{verb} {} ({}{access}) {place} {} in container {}",
            printable(&volume.source.to_string_lossy()),
            human_size(volume.size),
            printable(&volume.device_path),
            printable(&volume.container),
        ));
        if detaches || volume.guest_device.is_empty() {
            lines.push(format!("  volume {}", volume.id));
            continue;
        }
        lines.push(format!(
            "  volume {}, in the guest {} ({}) at {} {}:{}, device filter: {}",
            volume.id,
            printable(&volume.guest_device),
            volume.device_number,
            printable(&volume.scsi.controller),
            volume.scsi.target,
            volume.scsi.lun,
            printable(&volume.device_filter),
        ));
        if volume.shared && !volume.read_only {
            lines.push("  shared: nothing keeps its writers from each other".to_owned());
        }
        let throttles = matches!(report.result, Outcome::Throttled | Outcome::WouldThrottle);
        if throttles || !volume.throttle.is_unlimited() {
            lines.push(format!("  limits: {}", volume.throttle));
        }
    }
    lines.extend(report.broke.iter().map(|holder| match report.result {
        Outcome::WouldDetach => format!("  would break {holder}"),
        _ => format!("  broke {holder}"),
    }));
    if report.volumes.is_empty() {
        lines.push("unchanged: no such volume is plugged".to_owned());
    }
    if let Some((_, micros)) = report.timings_us.0.last() {
        lines.push(format!("  took {} ms", micros.div_ceil(1000)));
    }
    lines.join("\n")
}

#[cfg(test)]
#[path = "output_tests.rs"]
mod tests;
