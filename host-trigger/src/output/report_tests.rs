//! The JSON form and the lines for people of the verbs that change something.

use super::*;
use crate::{
    Error,
    error::ErrorBody,
    ops::place::Place,
    output::envelope::{NoBody, Timings},
    qemu::throttle::{Limit, Limits},
    sample,
};

fn report() -> Envelope<Report> {
    let timings = [("probe".into(), 1200), ("attach".into(), 15_000), ("total".into(), 20_001)];
    let report = Report::of(vec![sample::volume()]);
    Envelope {
        timings_us: Some(Timings(timings.into())),
        ..Envelope::new("hot-plug", Outcome::Attached, report)
    }
}

#[test]
fn the_json_form_of_a_report_is_stable() {
    let expected = concat!(
        r#"{"schema":1,"command":"hot-plug","result":"attached","dry_run":false,"volumes":[{"id":"0123456789abcdef","#,
        r#""sandbox":"s1","container":"c1","device_path":"/dev/xvda","source":"/dev/disk/by-id/x","#,
        r#""source_device":"/dev/sdb","size":67108864,"read_only":true,"shared":false,"#,
        r#""scsi":{"controller":"scsi0","target":255,"lun":3},"guest_device":"sda","device_number":"8:0","#,
        r#""device_filter":"none","node":"mknod"}],"timings_us":{"probe":1200,"attach":15000,"total":20001}}"#
    );
    assert_eq!(serde_json::to_string(&report()).unwrap(), expected);
    assert_eq!(serde_json::from_str::<Envelope<Report>>(expected).unwrap(), report());
}

#[test]
fn a_writer_of_a_shared_volume_is_warned() {
    let mut report = report();
    report.body.volumes[0].shared = true;
    let warning = "\n  shared: nothing coordinates the writes of its containers\n";
    assert!(!human(&report).contains(warning), "{}", human(&report));
    report.body.volumes[0].read_only = false;
    assert!(human(&report).contains(warning), "{}", human(&report));
}

#[test]
fn limits_are_shown_if_there_are_any() {
    let mut report = report();
    let bps = Some(Limit { limit: 10 << 20, burst: 20 << 20, burst_seconds: 2 });
    report.body.volumes[0].throttle = Limits { bps, ..Limits::default() };
    let json = serde_json::to_string(&report).unwrap();
    let expected = r#""node":"mknod","throttle":{"bps":{"limit":10485760,"burst":20971520,"burst_seconds":2}}}"#;
    assert!(json.contains(expected), "{json}");
    assert_eq!(serde_json::from_str::<Envelope<Report>>(&json).unwrap(), report);
    assert!(
        human(&report).contains("\n  limits: bps 10 MiB (burst 20 MiB for 2 s)\n"),
        "{}",
        human(&report)
    );
    report.body.volumes[0].throttle = Limits::default();
    assert!(!human(&report).contains("limits"));
    report.result = Outcome::Throttled;
    assert!(human(&report).contains("\n  limits: unlimited\n"));
}

#[test]
fn the_json_form_of_an_error_is_stable() {
    let error = Error::SourceEmpty { path: "/dev/loop0".into() };
    let failed = Envelope::failed("hot-plug", &error);
    let expected = concat!(
        r#"{"schema":1,"command":"hot-plug","result":"error","dry_run":false,"error":{"reason":"source_empty","#,
        r#""exit_code":6,"message":"\"/dev/loop0\" is empty","remedy":"give the volume a size first"}}"#
    );
    assert_eq!(serde_json::to_string(&failed).unwrap(), expected);
    assert_eq!(serde_json::from_str::<Envelope<NoBody>>(expected).unwrap(), failed);
}

#[test]
fn people_read_what_where_and_how_long() {
    assert_eq!(
        human(&report()),
        "plugged /dev/disk/by-id/x (64 MiB, read-only) at /dev/xvda in container c1\n  \
         volume 0123456789abcdef, in the guest sda (8:0) at scsi0 255:3, device filter: none\n  \
         took 21 ms"
    );
    let dry_run = Envelope { dry_run: true, ..report() };
    assert!(human(&dry_run).starts_with("would plug /dev/disk/by-id/x"));
}

#[test]
fn holders_that_lost_the_volume_are_listed() {
    let holder = GuestHolder {
        kind: "process".into(),
        pid: Some(57),
        command: "dd".into(),
        container: "c1".into(),
        detail: "/dev/xvda".into(),
    };
    let mut report = Envelope { result: Outcome::Detached, ..report() };
    report.body.broken_holders = vec![holder];
    let json = serde_json::to_string(&report).unwrap();
    assert!(json.contains(
        r#""broken_holders":[{"kind":"process","pid":57,"command":"dd","container":"c1","detail":"/dev/xvda"}]"#
    ));
    assert_eq!(serde_json::from_str::<Envelope<Report>>(&json).unwrap(), report);
    assert!(human(&report).contains("\n  broke process 57 (dd) in container c1, /dev/xvda\n"));
    let error = Error::InUse { volume: "v".into(), holders: report.body.broken_holders };
    let body = ErrorBody::from(&error);
    assert_eq!(
        body.message,
        "volume v is in use in the guest: process 57 (dd) in container c1, /dev/xvda"
    );
    assert!(
        serde_json::to_string(&body).unwrap().contains(r#""holders":[{"kind":"process","pid":57,"#)
    );
}

#[test]
fn a_mount_is_described_by_its_file_system() {
    let mut report = report();
    let volume = &mut report.body.volumes[0];
    volume.place = Place::Mount(MountPlace {
        mount_path: "/data".into(),
        fs_type: "ext4".into(),
        mount_options: vec!["noatime".into()],
        ..MountPlace::default()
    });
    volume.device_filter = String::new();
    let text = human(&report);
    assert!(text.contains(" at /data in container c1\n"), "{text}");
    assert!(text.contains("at scsi0 255:3, mounted: ext4, noatime"), "{text}");
    let json = serde_json::to_string(&report).unwrap();
    let place = r#""mount_path":"/data","fs_type":"ext4","mount_options":["noatime"],"source""#;
    assert!(json.contains(place) && !json.contains("device_path"), "{json}");
    assert_eq!(serde_json::from_str::<Envelope<Report>>(&json).unwrap(), report);
}

#[test]
fn a_resize_of_a_mount_tells_of_its_file_system() {
    let mut report = report();
    report.result = Outcome::Resized;
    report.body.file_system = Some(GrownFileSystem {
        before_bytes: 1 << 20,
        capacity_bytes: 1 << 20,
        not_grown: "squashfs cannot grow".into(),
    });
    let text = human(&report);
    assert!(text.contains("\n  file system: 1 MiB, not grown: squashfs cannot grow"), "{text}");
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Envelope<Report>>(&json).unwrap(), report);
}

#[test]
fn names_in_records_are_escaped_for_people() {
    let mut report = report();
    let volume = &mut report.body.volumes[0];
    let Place::Device { device_path } = &mut volume.place else { panic!("{volume:?}") };
    let texts = [
        &mut volume.container,
        device_path,
        &mut volume.guest_device,
        &mut volume.scsi.controller,
        &mut volume.device_filter,
    ];
    texts.into_iter().for_each(|text| *text = "\u{1b}[2J".into());
    let text = human(&report);
    assert!(!text.contains('\u{1b}'), "{text:?}");
}
