//! What `stats` prints: a JSON form that stays as it is, and the two sides' counters one below the
//! other for people.

use crate::output::Timings;

use super::*;

pub(crate) fn counted(volumes: Vec<VolumeStats>) -> Counted {
    Counted {
        schema: SCHEMA,
        command: "stats".into(),
        result: "counted".into(),
        volumes,
        guest_error: None,
        timings_us: Timings(vec![("total".into(), 7)]),
    }
}

pub(crate) fn volume(device_path: &str) -> VolumeStats {
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
        device_path: device_path.into(),
        size: 1 << 20,
        qemu: Some(QemuStats { read, ..QemuStats::default() }),
        guest: Some(GuestStats {
            read: seen,
            in_flight: 1,
            scsi_errors: 9,
            ..GuestStats::default()
        }),
        guest_error: None,
    }
}

fn error() -> FailureBody {
    FailureBody {
        reason: "busy".into(),
        exit_code: 5,
        message: "no".into(),
        hint: None,
        holders: Vec::new(),
    }
}

#[test]
fn the_json_form_is_stable() {
    let expected = concat!(
        r#"{"schema":1,"command":"stats","result":"counted","volumes":[{"id":"0123456789abcdef","sandbox":"s1","#,
        r#""container":"c1","device_path":"/dev/xvda","size":1048576,"qemu":{"read":{"operations":3,"bytes":4096,"#,
        r#""total_time_ns":1500000001,"average_time_ns":375000000,"failed":1,"invalid":2},"write":{"operations":0},"#,
        r#""flush":{"operations":0},"discard":{"operations":0}},"guest":{"read":{"operations":5,"bytes":4096},"#,
        r#""write":{"operations":0},"flush":{"operations":0},"discard":{"operations":0},"in_flight":1,"#,
        r#""scsi_errors":9}}],"timings_us":{"total":7}}"#
    );
    let counted = counted(vec![volume("/dev/xvda")]);
    assert_eq!(serde_json::to_string(&counted).unwrap(), expected);
    assert_eq!(serde_json::from_str::<Counted>(expected).unwrap(), counted);
}

#[test]
fn people_read_what_each_side_counts() {
    let text = human(&counted(vec![volume("/dev/\u{1b}[2J")]));
    let expected = "\
VOLUME            CONTAINER  PATH            BY     READS  READ   TIME EACH   WRITES  WRITTEN  TIME EACH  ERRORS
0123456789abcdef  c1         /dev/\\u{1b}[2J  qemu   3      4 KiB  375.000 ms  0       0 bytes  -          3
0123456789abcdef  c1         /dev/\\u{1b}[2J  guest  5      4 KiB  -           0       0 bytes  -          9";
    assert_eq!(text, expected);
    assert_eq!(human(&counted(Vec::new())), "no volumes are plugged");
}

#[test]
fn a_guest_that_was_not_asked_is_told() {
    let mut volume = volume("/dev/xvda");
    (volume.guest, volume.guest_error) = (None, Some(error()));
    let text = human(&Counted { guest_error: Some(error()), ..counted(vec![volume]) });
    assert!(
        text.contains("\nthe guest was not asked: no\n") && !text.contains("  guest  "),
        "{text}"
    );
    assert!(text.ends_with("\nthe guest does not tell of volume 0123456789abcdef: no"), "{text}");
}
