//! `throttle`, and `hot-plug` with limits, against a real QEMU: only the given limits change, the
//! limits are read from QEMU, nothing is left behind, and bad input changes nothing.

use crate::common::{
    Host,
    volume::{Image, Loop},
};
use host_trigger::{
    ops::volume::Volume,
    output::envelope::Outcome,
    qemu::throttle::{Limit, Limits},
};
use rstest::rstest;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const C1: [&str; 4] = ["--container", "c1", "--device-path", "/dev/xvda"];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&C1[..], more].concat()
}

async fn throttle(host: &Host, more: &[&str]) -> (Outcome, Volume) {
    let mut report = host.verb("throttle", &with(more)).await.report();
    let dry_run = more.contains(&"--dry-run");
    assert_eq!(
        (report.command.as_str(), report.dry_run, report.body.volumes.len()),
        ("throttle", dry_run, 1)
    );
    (report.result, report.body.volumes.remove(0))
}

/// Returns the limits in QEMU by QEMU's names, without those that are zero.
async fn limits_in_qemu(host: &mut Host, id: &str) -> Value {
    let medium = host.medium(id).await;
    let limits = medium.as_object().unwrap().iter().filter(|(name, value)| {
        (name.starts_with("iops") || name.starts_with("bps") || *name == "group")
            && **value != json!(0)
    });
    limits.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn limit(limit: u64) -> Option<Limit> {
    Some(Limit { limit, ..Limit::default() })
}

#[tokio::test]
async fn limits_change_one_by_one_and_are_removed_with_the_volume() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let device = Loop::of(MIB);
    let plugged = host.plug(device.path(), "/dev/xvda", &[]).await.report();
    let id = plugged.body.volumes[0].id.as_str();
    assert_eq!(limits_in_qemu(&mut host, id).await, json!({}));
    let group = format!("ecrblk-{id}");

    let would = throttle(&host, &["--iops-read", "100", "--dry-run"]).await;
    assert_eq!((would.0, would.1.throttle.iops_read), (Outcome::Throttled, limit(100)));
    assert_eq!(limits_in_qemu(&mut host, id).await, json!({}));

    let (result, volume) = throttle(&host, &["--iops-read", "100", "--bps", "1MiB"]).await;
    let expected = Limits { iops_read: limit(100), bps: limit(MIB), ..Limits::default() };
    assert_eq!((result, volume.throttle), (Outcome::Throttled, expected));
    assert_eq!((volume.id.as_str(), &volume.scsi), (id, &plugged.body.volumes[0].scsi));
    let in_qemu = json!({"iops_rd": 100, "bps": MIB, "group": group});
    assert_eq!(limits_in_qemu(&mut host, id).await, in_qemu);

    throttle(&host, &["--burst-bps", "4MiB", "--burst-seconds", "3"]).await;
    throttle(&host, &["--iops-write", "50"]).await;
    let in_qemu = json!({
        "iops_rd": 100, "iops_wr": 50, "bps": MIB, "bps_max": 4 * MIB, "bps_max_length": 3, "group": group,
    });
    assert_eq!(limits_in_qemu(&mut host, id).await, in_qemu);

    let changes = host.changes();
    let (result, volume) = throttle(&host, &["--iops-write", "50", "--burst-bps", "4MiB"]).await;
    assert_eq!(result, Outcome::Unchanged);
    let bps = Some(Limit { limit: MIB, burst: 4 * MIB, burst_seconds: 3 });
    let expected =
        Limits { iops_read: limit(100), iops_write: limit(50), bps, ..Limits::default() };
    assert_eq!((volume.throttle, host.changes()), (expected, changes));
    for verb in ["list", "inspect"] {
        let more = if verb == "list" { &[][..] } else { &C1[..] };
        assert_eq!(host.verb(verb, more).await.listing().body.volumes[0].volume.throttle, expected);
    }
    let (_, volume) =
        throttle(&host, &["--iops", "9", "--iops-read", "0", "--iops-write", "0"]).await;
    assert_eq!(volume.throttle, Limits { iops: limit(9), bps, ..Limits::default() });
    let (result, volume) = throttle(&host, &["--iops", "0", "--bps", "0"]).await;
    assert!(result == Outcome::Throttled && volume.throttle.is_unlimited());
    assert_eq!(limits_in_qemu(&mut host, id).await, json!({}));

    throttle(&host, &["--iops", "9"]).await;
    host.verb("hot-unplug", &C1).await.report();
    assert_eq!(host.snapshot().await, clean);
    let again = host.plug(device.path(), "/dev/xvda", &[]).await.report();
    assert!(again.body.volumes[0].throttle.is_unlimited());
    assert_eq!(
        limits_in_qemu(&mut host, id).await,
        json!({}),
        "the limits were removed with the volume"
    );
}

#[tokio::test]
async fn each_volume_of_a_hot_plug_gets_the_limits() {
    let mut host = Host::boot().await;
    let (one, two) = (Image::of(MIB), Image::of(MIB));
    let more = ["--iops", "100", "--burst-iops", "300", "--bps-write", "2MiB"];
    let mut command = host.command(&[(one.path(), "/dev/xvda"), (two.path(), "/dev/xvdb")], &more);
    let plugged = crate::common::run(&mut command).await.report();
    let iops = Some(Limit { limit: 100, burst: 300, burst_seconds: 1 });
    let expected = Limits { iops, bps_write: limit(2 * MIB), ..Limits::default() };
    for volume in &plugged.body.volumes {
        assert_eq!(volume.throttle, expected);
        let group = format!("ecrblk-{}", volume.id);
        let in_qemu = limits_in_qemu(&mut host, &volume.id).await;
        let expected = json!({
            "iops": 100, "iops_max": 300, "iops_max_length": 1, "bps_wr": 2 * MIB, "group": group,
        });
        assert_eq!(in_qemu, expected, "each volume has its own group");
    }
    // The limits are in force before the guest can use the disk.
    let changes = host.changes();
    let names: Vec<_> =
        changes.iter().map(|command| command["execute"].as_str().unwrap()).collect();
    let limits = names.iter().rposition(|name| *name == "block_set_io_throttle").unwrap();
    let commit = names[limits..].iter().filter(|name| **name == "add-fd").count();
    assert_eq!(commit, plugged.body.volumes.len(), "{names:?}");
}

#[tokio::test]
async fn a_repeated_hot_plug_checks_the_limits_that_it_names() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    let plug = async |host: &Host, more: &[&str]| host.plug(image.path(), "/dev/xvda", more).await;
    plug(&host, &["--iops", "100"]).await.report();
    for same in [&[][..], &["--iops", "100"], &["--bps", "0"]] {
        let again = plug(&host, same).await.report();
        assert_eq!(
            (again.result, again.body.volumes[0].throttle.iops),
            (Outcome::Unchanged, limit(100))
        );
    }
    let (before, changes) = (host.snapshot().await, host.changes());
    for other in [&["--iops", "99"][..], &["--iops", "0"], &["--bps", "512"], &["--iops-read", "5"]]
    {
        let ran = plug(&host, other).await;
        ran.assert_fails("other_options", 4);
        assert!(ran.stdout.contains("limit (--iops, --bps)"), "{ran:?}");
    }
    assert_eq!((host.snapshot().await, host.changes()), (before, changes));
}

#[rstest]
#[case(&[], "invalid_limits", 2, "no limit is given")]
#[case(&["--iops", "-1"], "usage", 2, "it is negative")]
#[case(&["--bps-write", "-1MiB"], "usage", 2, "it is negative")]
#[case(&["--iops", "1000000000000001"], "usage", 2, "more than the 1000000000000000")]
#[case(&["--bps", "99999999999999999999GiB"], "usage", 2, "more than the 1000000000000000")]
#[case(&["--iops", "many"], "usage", 2, "expected a whole number")]
#[case(&["--iops", "100", "--burst-iops", "99"], "invalid_limits", 2, "the burst 99 is below the limit --iops 100")]
#[case(&["--iops", "100", "--iops-write", "9"], "invalid_limits", 2, "--iops 100 and --iops-write 9 exclude each other")]
#[case(&["--iops", "0", "--burst-iops", "9"], "invalid_limits", 2, "--burst-iops needs a limit")]
#[case(&["--iops", "9", "--burst-seconds", "9"], "invalid_limits", 2, "--burst-seconds needs a burst")]
#[case(&["--bps", "9", "--burst-bps", "99", "--burst-seconds", "0"], "usage", 2, "at least a second")]
#[case(&["--bps", "512", "--burst-bps", "900TiB", "--burst-seconds", "2"], "invalid_limits", 2, "in total that QEMU accepts")]
#[case(&["--iops", "100"], "limits_conflict", 4, "--iops 100 and --iops-read 50 exclude each other")]
#[case(&["--burst-iops-read", "49"], "limits_conflict", 4, "the burst 49 is below the limit --iops-read 50")]
#[case(&["--burst-bps", "4KiB"], "limits_conflict", 4, "--burst-bps needs a limit: give --bps, too")]
#[tokio::test]
async fn bad_limits_change_nothing(
    #[case] more: &[&str],
    #[case] reason: &str,
    #[case] exit_code: u8,
    #[case] why: &str,
) {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    let plugged = host.plug(image.path(), "/dev/xvda", &["--iops-read", "50"]).await.report();
    let id = plugged.body.volumes[0].id.as_str();
    let (before, changes) = (limits_in_qemu(&mut host, id).await, host.changes());
    let ran = host.verb("throttle", &with(more)).await;
    ran.assert_fails(reason, exit_code);
    assert!(ran.failure().message.contains(why), "{ran:?}");
    assert_eq!((limits_in_qemu(&mut host, id).await, host.changes()), (before, changes));
}

#[rstest]
#[case(&["--iops", "-1"], "usage")]
#[case(&["--iops", "100", "--burst-iops", "99"], "invalid_limits")]
#[case(&["--burst-bps", "1MiB"], "invalid_limits")]
#[tokio::test]
async fn nothing_is_plugged_with_bad_limits(#[case] more: &[&str], #[case] reason: &str) {
    let mut host = Host::boot().await;
    let (device, before) = (Loop::of(MIB), host.snapshot().await);
    host.plug(device.path(), "/dev/xvda", more).await.assert_fails(reason, 2);
    assert_eq!((host.snapshot().await, host.changes()), (before, vec![]));
    assert!(!device.is_claimed());
}

#[tokio::test]
async fn throttle_needs_a_disk_but_no_guest() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    let id = host.plug(image.path(), "/dev/xvda", &[]).await.report().body.volumes[0].id.clone();
    let unreachable = ["--iops", "5", "--agent", "unix:///nonexistent/agent.sock"];
    assert_eq!(throttle(&host, &unreachable).await.0, Outcome::Throttled);
    let elsewhere = ["--container", "c2", "--device-path", "/dev/xvda", "--iops", "5"];
    host.verb("throttle", &elsewhere).await.assert_fails("volume_not_found", 3);
    host.execute("device_del", json!({"id": format!("ecrblk-{id}")})).await;
    host.await_event("DEVICE_DELETED").await;
    let changes = host.changes();
    host.verb("throttle", &with(&["--iops", "6"])).await.assert_fails("incomplete_volume", 8);
    assert_eq!(host.changes(), changes);
}
