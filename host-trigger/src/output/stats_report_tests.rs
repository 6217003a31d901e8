//! The JSON form of `stats`, and the counters of both sides in a table for people.

use super::*;
use crate::output::envelope::{Envelope, Outcome, Timings};

pub(in crate::output) fn report(volumes: Vec<VolumeStats>) -> StatsReport {
    StatsReport { volumes, guest_error: None }
}

pub(in crate::output) fn volume(device_path: &str) -> VolumeStats {
    let read = Operations {
        operations: 3,
        bytes: Some(4096),
        total_time_ns: Some(1_500_000_001),
        average_time_ns: Some(375_000_000),
        failed: Some(1),
        invalid: Some(2),
    };
    let seen = Operations { operations: 5, bytes: Some(4096), ..Operations::default() };
    VolumeStats {
        id: "0123456789abcdef".into(),
        sandbox: "s1".into(),
        container: "c1".into(),
        pod: None,
        place: Place::Device { device_path: device_path.into() },
        size: 1 << 20,
        qemu: Some(QemuStats { read, ..QemuStats::default() }),
        container_state: None,
        file_system: None,
        guest: Some(GuestStats {
            read: seen,
            in_flight: 1,
            scsi_errors: 9,
            ..GuestStats::default()
        }),
        guest_error: None,
    }
}

fn error() -> ErrorBody {
    ErrorBody {
        reason: "busy".into(),
        exit_code: 5,
        message: "no".into(),
        remedy: None,
        holders: Vec::new(),
    }
}

#[test]
fn the_json_form_is_stable() {
    let expected = concat!(
        r#"{"schema":1,"command":"stats","result":"counted","dry_run":false,"volumes":[{"id":"0123456789abcdef","sandbox":"s1","#,
        r#""container":"c1","device_path":"/dev/xvda","size":1048576,"qemu":{"read":{"operations":3,"bytes":4096,"#,
        r#""total_time_ns":1500000001,"average_time_ns":375000000,"failed":1,"invalid":2},"write":{"operations":0},"#,
        r#""flush":{"operations":0},"discard":{"operations":0}},"guest":{"read":{"operations":5,"bytes":4096},"#,
        r#""write":{"operations":0},"flush":{"operations":0},"discard":{"operations":0},"in_flight":1,"#,
        r#""scsi_errors":9}}],"timings_us":{"total":7}}"#
    );
    let envelope = Envelope {
        timings_us: Some(Timings(vec![("total".into(), 7)])),
        ..Envelope::new("stats", Outcome::Counted, report(vec![volume("/dev/xvda")]))
    };
    assert_eq!(serde_json::to_string(&envelope).unwrap(), expected);
    assert_eq!(serde_json::from_str::<Envelope<StatsReport>>(expected).unwrap(), envelope);
}

#[test]
fn people_read_the_counters_of_both_sides() {
    let text = human(&report(vec![volume("/dev/\u{1b}[2J")]));
    let expected = "\
VOLUME            CONTAINER  PATH            BY     READS  READ   TIME EACH   WRITES  WRITTEN  TIME EACH  ERRORS
0123456789abcdef  c1         /dev/\\u{1b}[2J  qemu   3      4 KiB  375.000 ms  0       0 bytes  -          3
0123456789abcdef  c1         /dev/\\u{1b}[2J  guest  5      4 KiB  -           0       0 bytes  -          9";
    assert_eq!(text, expected);
    assert_eq!(human(&report(Vec::new())), "no volumes are attached");
}

#[test]
fn a_guest_that_was_not_asked_is_reported() {
    let mut volume = volume("/dev/xvda");
    (volume.guest, volume.guest_error) = (None, Some(error()));
    let text = human(&StatsReport { guest_error: Some(error()), ..report(vec![volume]) });
    assert!(
        text.contains("\nthe guest was not asked: no\n") && !text.contains("  guest  "),
        "{text}"
    );
    assert!(text.ends_with("\nthe guest cannot tell about volume 0123456789abcdef: no"), "{text}");
}
