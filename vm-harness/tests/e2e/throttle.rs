//! `throttle` on real VMs: a container gets the rate that was requested, as QEMU counts it on the
//! host's clock, whether the limit was set at the hot-plug or later, in use or not.

use std::time::{Duration, Instant};

use rstest::rstest;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use vm_harness::{Container, Plugged, Sandbox, Snapshot, Volume};

use super::{
    MIB,
    hot_unplug::{at, query_volumes, unplug, verb},
    sandbox,
};

/// How long a rate is measured, and in how many parts.
const WINDOW: Duration = Duration::from_secs(6);
const PARTS: u32 = 30;
/// A new limit immediately lets as many requests pass as it allows in a tenth of a second, and
/// requests that wait were queued before.
const SETTLE: Duration = Duration::from_secs(1);

/// The quantity that is limited.
#[derive(Debug, Clone, Copy)]
struct Subject {
    flag: &'static str,
    field: &'static str,
    /// The counter in `query-blockstats`.
    counter: &'static str,
    /// The `dd` command in the container, without the guest's cache.
    load: &'static str,
}

const READS: Subject = Subject {
    flag: "--iops-read",
    field: "iops_read",
    counter: "rd_operations",
    load: "dd if=/proc/self/fd/3 of=/dev/null bs=4k iflag=direct",
};
const OPERATIONS: Subject = Subject {
    flag: "--iops",
    field: "iops",
    counter: "wr_operations",
    load: "dd if=/dev/zero of=/proc/self/fd/3 bs=4k count=16384 oflag=direct conv=notrunc",
};
const WRITTEN_BYTES: Subject = Subject {
    flag: "--bps-write",
    field: "bps_write",
    counter: "wr_bytes",
    load: "dd if=/dev/zero of=/proc/self/fd/3 bs=64k count=1024 oflag=direct conv=notrunc",
};

/// Puts the volume under continuous load. The load ends with the volume or the sandbox.
fn put_under_load(container: &Container, subject: Subject) -> JoinHandle<()> {
    let container = container.clone();
    // Through a descriptor: if the path is gone, `dd` would create it again, as a file.
    let script = format!("exec 3< /dev/xvda; while {} 2>/dev/null; do :; done", subject.load);
    tokio::spawn(async move {
        // It ends with an error.
        let _ = container.try_exec(&["sh", "-c", &script], b"").await;
    })
}

/// The rate of the volume per second.
#[derive(Debug, Clone, Copy)]
struct Rate {
    /// Over the whole window.
    mean: f64,
    /// Over its parts. A limit does not compensate for the time in which the whole VM waits for a
    /// busy host. The median is the rate without this time.
    median: f64,
    /// The share of the window in which QEMU's threads together waited for a processor of the host.
    /// At most this share may be lost.
    starved: f64,
}

/// How long QEMU's threads were runnable and did not run, so far
/// ([`/proc/PID/schedstat`](https://docs.kernel.org/scheduler/sched-stats.html#proc-pid-schedstat),
/// the second number).
fn starved(sandbox: &Sandbox) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", sandbox.guest().qemu_id())).unwrap();
    // The figures of a thread that ends in the meantime are lost.
    let statistics =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok());
    let waited = statistics.map(|line| line.split(' ').nth(1).unwrap().parse::<u64>().unwrap());
    Duration::from_nanos(waited.sum())
}

async fn rate(sandbox: &Sandbox, plugged: &Plugged, subject: Subject) -> Rate {
    let mut monitor = sandbox.monitor().await.unwrap();
    let device = format!("ecrblk-{}", plugged.id());
    let mut count = async || {
        let drives = monitor.execute("query-blockstats", json!({})).await.unwrap();
        let drive = drives
            .as_array()
            .unwrap()
            .iter()
            .find(|drive| drive["qdev"] == device.as_str())
            .unwrap();
        (drive["stats"][subject.counter].as_u64().unwrap(), Instant::now())
    };
    tokio::time::sleep(SETTLE).await;
    let before = starved(sandbox);
    let mut counts = vec![count().await];
    for _ in 0..PARTS {
        tokio::time::sleep(WINDOW / PARTS).await;
        counts.push(count().await);
    }
    let starved = starved(sandbox).saturating_sub(before).as_secs_f64();
    let between = |(before, start): (u64, Instant), (after, end): (u64, Instant)| {
        (after - before) as f64 / (end - start).as_secs_f64()
    };
    let mut parts: Vec<f64> = counts.windows(2).map(|pair| between(pair[0], pair[1])).collect();
    parts.sort_by(f64::total_cmp);
    let (first, last) = (counts[0], counts[counts.len() - 1]);
    let starved = (starved / (last.1 - first.1).as_secs_f64()).min(1.0);
    Rate { mean: between(first, last), median: parts[parts.len() / 2], starved }
}

#[track_caller]
fn assert_within_a_tenth(measured: Rate, requested: u64) {
    eprintln!("requested {requested}, measured {measured:.3?}");
    let [mean, median] = [measured.mean, measured.median].map(|rate| rate / requested as f64);
    assert!((0.9..=1.1).contains(&median), "{measured:.1?} per second, {requested} were requested");
    let least = 0.9 * (1.0 - measured.starved);
    assert!((least..=1.1).contains(&mean), "{measured:.1?} per second, {requested} were requested");
}

async fn throttle(sandbox: &Sandbox, container: &Container, more: &[&str]) -> Plugged {
    let more = [&at(container, "/dev/xvda")[..], more].concat();
    let finished = verb(sandbox.ecr_runtime(), sandbox, "throttle", &more).run().await;
    finished.succeeded(sandbox.guest()).remove(0)
}

#[rstest]
#[case::reads(READS)]
#[case::all_operations(OPERATIONS)]
#[case::written_bytes(WRITTEN_BYTES)]
#[tokio::test]
async fn measured_rate_is_the_requested_one(
    #[future(awt)] sandbox: Sandbox,
    #[case] subject: Subject,
) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(64 * MIB);
    let free = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    put_under_load(&container, subject);
    let capacity = rate(&sandbox, &free, subject).await.median;
    // The load continues: it has the device open.
    unplug(&sandbox, &[&at(&container, "/dev/xvda")[..], &["--force"]].concat()).await;

    // With the hot-plug. Other processes share this machine: its capacity may decrease in the
    // meantime.
    let requested = (capacity / 6.0) as u64;
    let limit = requested.to_string();
    let plug = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]);
    let plugged =
        plug.args([subject.flag, &limit]).run().await.succeeded(sandbox.guest()).remove(0);
    assert_eq!(plugged.volume["throttle"][subject.field]["limit"], requested);
    put_under_load(&container, subject);
    assert_within_a_tenth(rate(&sandbox, &plugged, subject).await, requested);

    // Changed while the volume is in use.
    let requested = requested / 2;
    let throttled = throttle(&sandbox, &container, &[subject.flag, &requested.to_string()]).await;
    assert_eq!(throttled.result, "throttled");
    assert_within_a_tenth(rate(&sandbox, &plugged, subject).await, requested);
    let listed = &query_volumes(&sandbox, "list", &[]).await[0];
    assert_eq!(listed["throttle"], json!({subject.field: {"limit": requested}}));

    // The limit is removed.
    throttle(&sandbox, &container, &[subject.flag, "0"]).await;
    let unlimited = rate(&sandbox, &plugged, subject).await.median;
    eprintln!("capacity {capacity:.1}, unlimited again {unlimited:.1}");
    // A limit that still applied would hold within a tenth.
    assert!(
        unlimited > 1.5 * requested as f64,
        "{unlimited:.1} per second, {capacity:.1} before there was a limit"
    );
}

#[rstest]
#[tokio::test]
async fn limits_are_removed_with_the_volume_and_invalid_ones_change_nothing(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(2 * MIB);
    let clean = Snapshot::of(&sandbox, &[&container]).await;
    let plug = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]);
    let limits =
        ["--iops", "500", "--burst-iops", "1000", "--burst-seconds", "2", "--bps-read", "8MiB"];
    let plugged = plug.clone().args(limits).run().await.succeeded(sandbox.guest()).remove(0);
    let expected = json!({
        "iops": {"limit": 500, "burst": 1000, "burst_seconds": 2}, "bps_read": {"limit": 8 * MIB},
    });
    assert_eq!(plugged.volume["throttle"], expected);
    assert_eq!(plug.clone().args(limits).run().await.json()["result"], "unchanged");
    let before = Snapshot::of(&sandbox, &[&container]).await;
    for (more, reason, status) in [
        (&["--iops", "-5"][..], "usage", 2),
        (&["--bps", "2EiB"], "usage", 2),
        (&["--iops", "5", "--burst-iops", "4"], "invalid_limits", 2),
        (&["--burst-iops", "499"], "limits_conflict", 4),
        (&["--bps", "1MiB"], "limits_conflict", 4),
    ] {
        let more = [&at(&container, "/dev/xvda")[..], more].concat();
        let finished = verb(sandbox.ecr_runtime(), &sandbox, "throttle", &more).run().await;
        assert_eq!(finished.failed_with(status).0, reason);
    }
    plug.clone().args(["--iops", "499"]).run().await.failed_with(4);
    before.assert_unchanged(&sandbox, &[&container]).await;
    let inspected = &query_volumes(&sandbox, "inspect", &["--volume", plugged.id()]).await[0];
    assert_eq!(inspected["throttle"], expected);

    // The volume can also be unplugged with requests that wait because of the limit.
    throttle(&sandbox, &container, &["--iops", "5", "--burst-iops", "0"]).await;
    let load = put_under_load(&container, READS);
    assert!(rate(&sandbox, &plugged, READS).await.mean > 0.0);
    // The load continues: it has the device open.
    unplug(&sandbox, &[&at(&container, "/dev/xvda")[..], &["--force"]].concat()).await;
    let ended = sandbox.guest().wait_for("the end of the load", Duration::from_secs(10), load);
    ended.await.unwrap().unwrap();
    // With the next request the agent notices that no descriptor refers to the node any more.
    sandbox.detach(&plugged).await.unwrap();
    clean.assert_unchanged(&sandbox, &[&container]).await;
    let again = plug.run().await.succeeded(sandbox.guest()).remove(0);
    assert_eq!(again.volume["throttle"], Value::Null);
    assert_eq!(query_volumes(&sandbox, "list", &[]).await[0]["throttle"], Value::Null);
}
