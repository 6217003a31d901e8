//! `hot-unplug --wait` for holders in the guest: meanwhile other commands go on, and afterwards the
//! volume is looked for anew. How long the wait was is measured by this host's clock.

use std::{
    process::{Child, Stdio},
    sync::atomic::Ordering,
    time::Duration,
};

use crate::common::{Host, RunOutput, run, volume::Image};
use block_volume_api::block_volume::{LeftBehind, Reason};
use host_trigger::{Deadline, output::envelope::Outcome};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rstest::rstest;

const MIB: u64 = 1 << 20;
const C1: [&str; 4] = ["--container", "c1", "--device-path", "/dev/xvda"];

/// A `hot-unplug` of `/dev/xvda` that is under way.
type Unplug = tokio::task::JoinHandle<RunOutput>;

/// Begins to unplug `/dev/xvda`, and returns when the guest waits for the holder.
async fn begin(host: &Host, wait: &str) -> Unplug {
    let mut command = host.verb_command("hot-unplug", &[&C1[..], &["--wait", wait]].concat());
    let unplug = tokio::spawn(async move { run(&mut command).await });
    soon(host.agent.waits.notified()).await;
    unplug
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    Deadline::after(Duration::from_secs(30)).wait(work).await.expect("it is soon")
}

/// Plugs a volume at `/dev/xvda` that is held. Returns its ID.
async fn plug_held(host: &Host, image: &Image) -> String {
    let plugged = host.plug(image.path(), "/dev/xvda", &[]).await.report();
    host.agent.is_held.send_replace(true);
    plugged.body.volumes[0].id.clone()
}

#[tokio::test]
async fn other_commands_go_on_while_holders_are_awaited() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let (image, other) = (Image::of(MIB), Image::of(MIB));
    let id = plug_held(&host, &image).await;
    let unplug = begin(&host, "60s").await;

    let quickly = ["--timeout", "5s"];
    let counted = host.verb("stats", &quickly).await;
    assert_eq!(counted.exit_code, Some(0), "{counted:?}");
    assert_eq!(host.verb("list", &quickly).await.listing().body.volumes.len(), 1);
    // Of another volume. It ends the wait in this fake guest, and the wait begins anew.
    host.plug(other.path(), "/dev/xvdb", &quickly).await.report();
    soon(host.agent.waits.notified()).await;

    host.agent.is_held.send_replace(false);
    let report = soon(unplug).await.unwrap().report();
    assert_eq!((report.result, &report.body.volumes[0].id), (Outcome::Detached, &id));
    assert_eq!(host.agent.attached_paths(), ["/dev/xvdb"]);
    host.verb("hot-unplug", &["--device-path", "/dev/xvdb"]).await.report();
    assert_eq!(host.snapshot().await, clean);
}

#[tokio::test]
async fn a_volume_that_another_run_unplugs_meanwhile_is_unchanged() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let image = Image::of(MIB);
    plug_held(&host, &image).await;
    let unplug = begin(&host, "60s").await;
    host.verb("hot-unplug", &[&C1[..], &["--force"]].concat()).await.report();
    let report = soon(unplug).await.unwrap().report();
    assert_eq!((report.result, report.body.volumes.len()), (Outcome::Unchanged, 0));
    assert_eq!(host.snapshot().await, clean);
}

#[tokio::test]
async fn what_the_guest_leaves_behind_when_the_wait_ends_is_reported_once() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    plug_held(&host, &image).await;
    let (path, reason) = ("/dev/xvda".to_owned(), "its device node: EBUSY".to_owned());
    *host.agent.left_behind.lock().unwrap() =
        vec![LeftBehind { path, reason, ..Default::default() }];
    let unplug = begin(&host, "60s").await;
    host.agent.is_held.send_replace(false);
    let ran = soon(unplug).await.unwrap();
    assert_eq!(ran.stderr.matches("left behind in the container at /dev/xvda").count(), 1);
    let report = ran.report();
    assert_eq!(report.result, Outcome::Detached);
    let left = &report.body.volumes[0].left_behind;
    assert_eq!((left.len(), left[0].reason.as_str()), (1, "its device node: EBUSY"));
}

#[tokio::test]
async fn a_volume_that_is_taken_without_the_guest_meanwhile_is_detached_in_the_guest() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let image = Image::of(MIB);
    let id = plug_held(&host, &image).await;
    let unplug = begin(&host, "60s").await;
    let taken = ["--volume", &id, "--force", "--without-guest"];
    let taken = host.verb("hot-unplug", &taken).await.report();
    assert_eq!(taken.result, Outcome::Abandoned);
    host.agent.is_held.send_replace(false);
    let report = soon(unplug).await.unwrap().report();
    assert_eq!((report.result, &report.body.volumes[0].id), (Outcome::Detached, &id));
    assert_eq!(host.snapshot().await, clean);
}

#[tokio::test]
async fn a_volume_that_is_plugged_again_meanwhile_is_a_conflict() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    plug_held(&host, &image).await;
    let unplug = begin(&host, "60s").await;
    // The former run is stopped for long enough to miss both.
    let pid = pid_of(&host);
    kill(pid, Signal::SIGSTOP).unwrap();
    host.verb("hot-unplug", &[&C1[..], &["--force"]].concat()).await.report();
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    let before = host.snapshot().await;
    kill(pid, Signal::SIGCONT).unwrap();
    soon(unplug).await.unwrap().assert_fails("changed_meanwhile", 4);
    assert_eq!(host.snapshot().await, before);
}

/// The process of this test's `hot-unplug`, by its state directory.
fn pid_of(host: &Host) -> Pid {
    let directory = host.path("").to_str().unwrap().trim_end_matches('/').to_owned();
    let is_it = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains(&directory) && line.contains("hot-unplug")
    };
    let all = std::fs::read_dir("/proc").unwrap();
    let mut pids = all.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    Pid::from_raw(pids.find(is_it).expect("it runs"))
}

#[tokio::test]
async fn another_attachment_that_is_added_meanwhile_keeps_the_disk() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    let shared = ["--shared", "--read-only"];
    host.plug(image.path(), "/dev/xvda", &shared).await.report();
    host.agent.is_held.send_replace(true);
    let unplug = begin(&host, "60s").await;
    let c2 = ["--sandbox", "s1", "--container", "c2", "--shared", "--read-only"];
    host.plug(image.path(), "/dev/xvda", &c2).await.report();
    soon(host.agent.waits.notified()).await;
    host.agent.is_held.send_replace(false);
    soon(unplug).await.unwrap().report();
    assert!(host.agent.last_detachments.lock().unwrap()[0].keep_disk);
    let volumes = host.verb("list", &[]).await.listing().body.volumes;
    assert_eq!(volumes.len(), 1);
    assert_eq!(volumes[0].volume.container, "c2");
}

#[tokio::test]
async fn two_runs_that_wait_for_the_same_volume_both_end() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let image = Image::of(MIB);
    plug_held(&host, &image).await;
    let first = begin(&host, "60s").await;
    let second = begin(&host, "60s").await;
    host.agent.is_held.send_replace(false);
    let (first, second) = soon(async { tokio::join!(first, second) }).await;
    let mut results = [first.unwrap().report().result, second.unwrap().report().result];
    results.sort_by_key(|result| *result == Outcome::Unchanged);
    assert!(results[0] == Outcome::Detached, "{results:?}");
    assert_eq!(host.snapshot().await, clean);
}

#[rstest]
#[case::a_fast_clock(8)]
#[case::a_guest_that_never_waits(0)]
#[tokio::test]
async fn the_host_measures_the_wait_and_asks_again(#[case] clock: u32) {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    plug_held(&host, &image).await;
    let before = host.snapshot().await;
    *host.agent.clock.lock().unwrap() = clock;
    let ran = host.verb("hot-unplug", &[&C1[..], &["--wait", "2s"]].concat()).await;
    ran.assert_fails("busy", 5);
    assert!(ran.took >= Duration::from_secs(2), "{ran:?}");
    let asked = host.agent.detach_requests.load(Ordering::Relaxed);
    assert!((3..100).contains(&asked), "the guest was asked {asked} times");
    assert_eq!(host.snapshot().await, before);
}

#[tokio::test]
async fn a_volume_that_is_released_under_a_fast_clock_is_unplugged() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    plug_held(&host, &image).await;
    *host.agent.clock.lock().unwrap() = 10;
    let unplug = begin(&host, "40s").await;
    // The first wait ends after 4 s, by the guest's clock in time.
    soon(host.agent.waits.notified()).await;
    host.agent.is_held.send_replace(false);
    assert_eq!(soon(unplug).await.unwrap().report().result, Outcome::Detached);
}

#[tokio::test]
async fn a_signal_ends_the_wait_and_nothing_has_changed() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    plug_held(&host, &image).await;
    let before = host.snapshot().await;
    let unplug = begin(&host, "60s").await;
    kill(pid_of(&host), Signal::SIGTERM).unwrap();
    soon(unplug).await.unwrap().assert_fails("interrupted", 143);
    assert_eq!(host.snapshot().await, before);
    assert_eq!(host.agent.attached_paths(), ["/dev/xvda"]);
}

#[tokio::test]
async fn a_guest_that_refuses_after_the_wait_is_reported() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    plug_held(&host, &image).await;
    let unplug = begin(&host, "60s").await;
    *host.agent.detach_failure.lock().unwrap() = Some((Reason::REASON_DENIED, true));
    host.agent.is_held.send_replace(false);
    soon(unplug).await.unwrap().assert_fails("denied_by_guest", 9);
}

/// Holds the lock of the sandbox until it is dropped.
struct LockHolder(Child);

impl Drop for LockHolder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn who_holds_the_lock_is_named() {
    let host = Host::boot().await;
    let mut holder = std::process::Command::new("flock")
        .arg(host.path("vm/s1"))
        .args(["sh", "-c", "echo locked; exec cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map(LockHolder)
        .unwrap();
    let mut line = [0; 7];
    std::io::Read::read_exact(holder.0.stdout.as_mut().unwrap(), &mut line).unwrap();
    let error = host.verb("list", &["--timeout", "300ms"]).await.failure();
    assert_eq!((error.reason.as_str(), error.exit_code), ("timed_out", 7));
    let named = format!("another run, process {} (", holder.0.id());
    assert!(error.message.contains(&named), "{error:?}");
}
