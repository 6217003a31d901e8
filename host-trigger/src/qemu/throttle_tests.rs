//! Limits as QEMU reports and accepts them
//! ([`block_set_io_throttle`](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html#command-QMP-block.block_set_io_throttle)):
//! a change leaves the limits alone that it does not name, and limits that no disk can have are
//! refused.

use rstest::rstest;

use super::*;

fn limit(limit: u64) -> Option<Limit> {
    Some(Limit { limit, ..Limit::default() })
}

fn volume() -> VolumeId {
    VolumeId::parse("0123456789abcdef").unwrap()
}

/// `(index in KINDS, limit, burst)`
fn change(each: &[(usize, Option<u64>, Option<u64>)], burst_seconds: Option<u64>) -> LimitChange {
    let mut change = LimitChange { burst_seconds, ..LimitChange::default() };
    each.iter().for_each(|&(kind, limit, burst)| change.each[kind] = (limit, burst));
    change
}

#[test]
fn the_reply_of_qemu_is_parsed() {
    let inserted = json!({
        "iops": 100, "iops_rd": 0, "iops_wr": 0, "iops_max": 200, "iops_max_length": 3,
        "bps": 0, "bps_rd": 0, "bps_wr": 4096, "group": "d1", "node-name": "n1",
    });
    let limits = Limits::from_qemu(&inserted);
    let iops = Some(Limit { limit: 100, burst: 200, burst_seconds: 3 });
    assert_eq!(limits, Limits { iops, bps_write: limit(4096), ..Limits::default() });
    assert_eq!(limits.to_string(), "iops 100 (burst 200 for 3 s), bps-write 4 KiB");
    assert_eq!(
        serde_json::to_string(&limits).unwrap(),
        r#"{"iops":{"limit":100,"burst":200,"burst_seconds":3},"bps_write":{"limit":4096}}"#
    );
    assert_eq!(Limits::from_all(limits.all()), limits);
    assert!(Limits::from_qemu(&Value::Null).is_unlimited());
    assert_eq!(Limits::default().to_string(), "unlimited");
}

#[test]
fn only_the_limits_that_are_given_change() {
    let iops = Some(Limit { limit: 100, burst: 200, burst_seconds: 3 });
    let present = Limits { iops, bps_read: limit(4096), ..Limits::default() };
    let after = |each: &[_], seconds| change(each, seconds).apply(&volume(), &present).unwrap();
    assert_eq!(after(&[], None), present);
    assert_eq!(after(&[(5, Some(512), None)], None), Limits { bps_write: limit(512), ..present });
    assert_eq!(after(&[(4, Some(0), None)], None), Limits { bps_read: None, ..present });
    let iops = |limit, burst, burst_seconds| Limits {
        iops: Some(Limit { limit, burst, burst_seconds }),
        ..present
    };
    assert_eq!(after(&[(0, Some(150), None)], None), iops(150, 200, 3));
    assert_eq!(after(&[(0, None, Some(300))], None), iops(100, 300, 3));
    assert_eq!(after(&[(0, None, Some(300))], Some(7)), iops(100, 300, 7));
    assert_eq!(after(&[(0, None, Some(0))], None), iops(100, 0, 0));
    assert_eq!(
        after(&[(0, Some(0), None)], None),
        Limits { iops: None, ..present },
        "its burst is removed, too"
    );
    let fresh =
        change(&[(3, Some(10), Some(20))], None).apply(&volume(), &Limits::default()).unwrap();
    assert_eq!(fresh.bps, Some(Limit { limit: 10, burst: 20, burst_seconds: 1 }));
}

#[rstest]
#[case::below(&[(0, Some(100), Some(99))], None, "the burst 99 is below the limit --iops 100")]
#[case::nothing_to_exceed(&[(4, Some(0), Some(99))], None, "--burst-bps-read needs a limit, and --bps-read is 0")]
#[case::total_and_part(&[(0, Some(7), None), (2, Some(5), None)], None, "--iops 7 and --iops-write 5 exclude each other")]
#[case::too_much(&[(3, Some(7), Some(LARGEST))], Some(2), "more than the 1000000000000000 in total")]
fn limits_that_no_volume_could_have_are_refused(
    #[case] each: &[(usize, Option<u64>, Option<u64>)],
    #[case] seconds: Option<u64>,
    #[case] why: &str,
) {
    let error = change(each, seconds).check().unwrap_err();
    assert_eq!(error.class().exit_status.code(), 2);
    assert!(error.message().contains(why), "{}", error.message());
}

#[rstest]
#[case::total_and_part(&[(0, Some(7), None)], "--iops 7 and --iops-read 50 exclude each other")]
#[case::below(&[(1, None, Some(49))], "the burst 49 is below the limit --iops-read 50")]
#[case::above_its_burst(&[(4, Some(4097), None)], "the burst 4096 is below the limit --bps-read 4097")]
#[case::nothing_to_exceed(&[(3, None, Some(1))], "--burst-bps needs a limit: give --bps, too")]
fn a_change_that_does_not_fit_the_present_limits_is_a_conflict(
    #[case] each: &[(usize, Option<u64>, Option<u64>)],
    #[case] why: &str,
) {
    let bps_read = Some(Limit { limit: 1024, burst: 4096, burst_seconds: 1 });
    let present = Limits { iops_read: limit(50), bps_read, ..Limits::default() };
    let change = change(each, None);
    change.check().unwrap();
    let error = change.apply(&volume(), &present).unwrap_err();
    assert_eq!(error.class().exit_status.code(), 4);
    assert!(error.message().contains(why), "{}", error.message());
}

#[test]
fn a_part_replaces_the_total_in_one_change() {
    let present = Limits { iops: limit(50), ..Limits::default() };
    let change = change(&[(0, Some(0), None), (1, Some(9), None)], None);
    change.check().unwrap();
    assert_eq!(
        change.apply(&volume(), &present).unwrap(),
        Limits { iops_read: limit(9), ..Limits::default() }
    );
}
