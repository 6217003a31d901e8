//! What a command prints: one JSON object on standard output, or a few lines for people. Errors for people go to standard
//! error, as `error: …` and `hint: …`.

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
    guest_holder::GuestHolder,
    limits::Limits,
    listing::{self, Listing},
    printable::printable,
    prometheus,
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
    /// In the order of the command line; none where the volume that `hot-unplug` names is not there.
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
}

/// One volume in one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// A path that is not UTF-8 is shown as far as it is: JSON has no bytes.
fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// The address of a disk on a virtio-scsi controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// Prints `listing` on standard output: one volume of `inspect` in full, those of `list` as a table.
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

/// A line on standard error. One that is closed (`eprintln!` panics then) must not keep an undo from its end.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn print_json(value: &impl Serialize) {
    // Neither type has a map with keys that are no strings, or a path as it is: the only things that fail here.
    print(&serde_json::to_string(value).unwrap_or_default());
}

/// A reader that closed its end early has what it wanted: the work is done all the same, and the status tells so.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

fn human(report: &Report) -> String {
    let mut lines = Vec::new();
    for volume in &report.volumes {
        let verb = match report.result {
            Outcome::Attached => "plugged",
            Outcome::Detached => "unplugged",
            Outcome::Resized => "resized",
            Outcome::Throttled => "throttled",
            Outcome::Unchanged => "unchanged:",
        };
        let access = if volume.read_only { ", read-only" } else { "" };
        let place = if report.result == Outcome::Detached { "from" } else { "at" };
        lines.push(format!(
            "{verb} {} ({}{access}) {place} {} in container {}",
            printable(&volume.source.to_string_lossy()),
            human_size(volume.size),
            printable(&volume.device_path),
            volume.container,
        ));
        if report.result == Outcome::Detached {
            lines.push(format!("  volume {}", volume.id));
            continue;
        }
        lines.push(format!(
            "  volume {}, in the guest {} ({}) at {} {}:{}, device filter: {}",
            volume.id,
            printable(&volume.guest_device),
            volume.device_number,
            volume.scsi.controller,
            volume.scsi.target,
            volume.scsi.lun,
            volume.device_filter,
        ));
        if !volume.throttle.is_unlimited() || report.result == Outcome::Throttled {
            lines.push(format!("  limits: {}", volume.throttle));
        }
    }
    lines.extend(report.broke.iter().map(|holder| format!("  broke {holder}")));
    if report.volumes.is_empty() {
        lines.push("unchanged: no such volume is plugged".to_owned());
    }
    if let Some((_, micros)) = report.timings_us.0.last() {
        lines.push(format!("  took {} ms", micros.div_ceil(1000)));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limit;

    fn report() -> Report {
        Report {
            schema: SCHEMA,
            command: "hot-plug".into(),
            result: Outcome::Attached,
            volumes: vec![Volume {
                id: "0123456789abcdef".into(),
                sandbox: "s1".into(),
                container: "c1".into(),
                device_path: "/dev/xvda".into(),
                source: "/dev/disk/by-id/x".into(),
                source_device: "/dev/sdb".into(),
                size: 64 << 20,
                read_only: true,
                shared: false,
                scsi: Scsi { controller: "scsi0".into(), target: 255, lun: 3 },
                guest_device: "sda".into(),
                device_number: "8:0".into(),
                device_filter: "none".into(),
                node: "mknod".into(),
                throttle: Limits::default(),
            }],
            broke: Vec::new(),
            timings_us: Timings(vec![
                ("probe".into(), 1200),
                ("attach".into(), 15_000),
                ("total".into(), 20_001),
            ]),
        }
    }

    #[test]
    fn the_json_form_of_a_report_is_stable() {
        let expected = concat!(
            r#"{"schema":1,"command":"hot-plug","result":"attached","volumes":[{"id":"0123456789abcdef","sandbox":"s1","#,
            r#""container":"c1","device_path":"/dev/xvda","source":"/dev/disk/by-id/x","source_device":"/dev/sdb","#,
            r#""size":67108864,"read_only":true,"shared":false,"scsi":{"controller":"scsi0","target":255,"lun":3},"#,
            r#""guest_device":"sda","device_number":"8:0","device_filter":"none","node":"mknod"}],"#,
            r#""timings_us":{"probe":1200,"attach":15000,"total":20001}}"#
        );
        assert_eq!(serde_json::to_string(&report()).unwrap(), expected);
        assert_eq!(serde_json::from_str::<Report>(expected).unwrap(), report());
    }

    #[test]
    fn limits_are_told_where_there_are_any() {
        let mut report = report();
        let bps = Some(Limit { limit: 10 << 20, burst: 20 << 20, burst_seconds: 2 });
        report.volumes[0].throttle = Limits { bps, ..Limits::default() };
        let json = serde_json::to_string(&report).unwrap();
        let expected =
            r#""node":"mknod","throttle":{"bps":{"limit":10485760,"burst":20971520,"burst_seconds":2}}}"#;
        assert!(json.contains(expected), "{json}");
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
        assert!(
            human(&report).contains("\n  limits: bps 10 MiB (burst 20 MiB for 2 s)\n"),
            "{}",
            human(&report)
        );
        report.volumes[0].throttle = Limits::default();
        assert!(!human(&report).contains("limits"));
        report.result = Outcome::Throttled;
        assert!(human(&report).contains("\n  limits: unlimited\n"));
    }

    #[test]
    fn the_json_form_of_a_failure_is_stable() {
        let failure = Failure::from(&Error::SourceEmpty { path: "/dev/loop0".into() });
        let expected = r#"{"error":{"reason":"source_empty","exit_code":6,"message":"\"/dev/loop0\" is empty","hint":"give the volume a size first"}}"#;
        assert_eq!(serde_json::to_string(&failure).unwrap(), expected);
        assert_eq!(serde_json::from_str::<Failure>(expected).unwrap(), failure);
    }

    #[test]
    fn people_read_what_where_and_how_long() {
        assert_eq!(
            human(&report()),
            "plugged /dev/disk/by-id/x (64 MiB, read-only) at /dev/xvda in container c1\n  volume 0123456789abcdef, in \
             the guest sda (8:0) at scsi0 255:3, device filter: none\n  took 21 ms"
        );
    }

    #[test]
    fn what_force_broke_is_told() {
        let holder = GuestHolder {
            kind: "process".into(),
            pid: Some(57),
            command: "dd".into(),
            container: "c1".into(),
            detail: "/dev/xvda".into(),
        };
        let report = Report { result: Outcome::Detached, broke: vec![holder], ..report() };
        let json = serde_json::to_string(&report).unwrap();
        assert!(json.contains(
            r#""broke":[{"kind":"process","pid":57,"command":"dd","container":"c1","detail":"/dev/xvda"}]"#
        ));
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
        assert!(human(&report).contains("\n  broke process 57 (dd) in container c1, /dev/xvda\n"));
        let error = Error::InUse { volume: "v".into(), holders: report.broke };
        let body = Failure::from(&error).error;
        assert_eq!(
            body.message,
            "volume v is in use in the guest: process 57 (dd) in container c1, /dev/xvda"
        );
        assert!(serde_json::to_string(&body).unwrap().contains(r#""holders":[{"kind":"process","pid":57,"#));
    }
}
