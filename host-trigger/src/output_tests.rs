//! What the verbs print of volumes and failures: a JSON form that stays as it is, and lines for
//! people in which nothing acts on a terminal.

use super::*;
use crate::{limits::Limit, sample};

fn report() -> Report {
    Report {
        schema: SCHEMA,
        command: "hot-plug".into(),
        result: Outcome::Attached,
        volumes: vec![sample::volume()],
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
fn who_shares_to_write_is_told_what_that_gives_up() {
    let mut report = report();
    report.volumes[0].shared = true;
    let gives_up = "\n  shared: nothing keeps its writers from each other\n";
    assert!(!human(&report).contains(gives_up), "{}", human(&report));
    report.volumes[0].read_only = false;
    assert!(human(&report).contains(gives_up), "{}", human(&report));
}

#[test]
fn limits_are_told_where_there_are_any() {
    let mut report = report();
    let bps = Some(Limit { limit: 10 << 20, burst: 20 << 20, burst_seconds: 2 });
    report.volumes[0].throttle = Limits { bps, ..Limits::default() };
    let json = serde_json::to_string(&report).unwrap();
    let expected = r#""node":"mknod","throttle":{"bps":{"limit":10485760,"burst":20971520,"burst_seconds":2}}}"#;
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
    assert!(
        serde_json::to_string(&body).unwrap().contains(r#""holders":[{"kind":"process","pid":57,"#)
    );
}

#[test]
fn what_a_record_says_is_escaped_for_people() {
    let mut report = report();
    let volume = &mut report.volumes[0];
    let texts = [
        &mut volume.container,
        &mut volume.device_path,
        &mut volume.guest_device,
        &mut volume.scsi.controller,
        &mut volume.device_filter,
    ];
    texts.into_iter().for_each(|text| *text = "\u{1b}[2J".into());
    let text = human(&report);
    assert!(!text.contains('\u{1b}'), "{text:?}");
}
