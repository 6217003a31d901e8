//! `--dry-run` against a real QEMU: it fails as the real run would, reports what would be done, and
//! changes nothing.

use crate::common::{
    Host, run,
    volume::{Image, Loop},
};
use block_volume_api::block_volume::Reason;
use host_trigger::output::envelope::Outcome;

const MIB: u64 = 1 << 20;
const C1: [&str; 5] = ["--container", "c1", "--device-path", "/dev/xvda", "--dry-run"];

/// Asserts that nothing was attached or detached in the guest.
fn assert_guest_unchanged(host: &Host, attached: &[&str]) {
    assert_eq!(host.agent.attached_paths(), attached);
    assert!(host.agent.detached.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_hot_plug_is_reported_and_not_done() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let device = Loop::of(MIB);
    let would = host.plug(device.path(), "/dev/xvda", &["--dry-run"]).await;
    let report = would.report();
    assert!(would.stdout.contains(r#""result":"attached","dry_run":true"#), "{would:?}");
    let volume = &report.body.volumes[0];
    assert_eq!(
        (volume.place.path(), volume.size, volume.scsi.controller.as_str()),
        ("/dev/xvda", MIB, "scsi0")
    );
    assert_eq!(host.snapshot().await, clean);
    assert!(!device.is_claimed());
    assert_guest_unchanged(&host, &[]);

    let real = host.plug(device.path(), "/dev/xvda", &[]).await.report();
    assert_eq!(real.body.volumes[0].id, volume.id);
    let plugged = host.snapshot().await;
    let same = host.plug(device.path(), "/dev/xvda", &["--dry-run"]).await.report();
    assert_eq!(
        (same.result, &same.body.volumes[0].node),
        (Outcome::Unchanged, &real.body.volumes[0].node)
    );
    host.agent.lost_nodes.lock().unwrap().push("/dev/xvda".into());
    let again = host.plug(device.path(), "/dev/xvda", &["--dry-run"]).await.report();
    assert_eq!(again.result, Outcome::Attached);
    assert_eq!(host.snapshot().await, plugged);
    assert_guest_unchanged(&host, &["/dev/xvda"]);
}

#[tokio::test]
async fn a_dry_run_is_refused_if_the_real_run_would_be() {
    let mut host = Host::boot().await;
    let device = Loop::of(MIB);
    host.plug(device.path(), "/dev/xvda", &[]).await.report();
    let before = host.snapshot().await;
    let (other, empty) = (Image::of(MIB), Image::of(0));
    for (volume, path, more, reason, code) in [
        (device.path(), "/dev/xvdb", &["--dry-run"][..], "volume_taken", 4),
        (device.path(), "/dev/xvda", &["--dry-run", "--read-only"], "other_options", 4),
        (other.path(), "/dev/xvda", &["--dry-run"], "path_taken", 4),
        (
            other.path(),
            "/dev/xvdb",
            &["--dry-run", "--controller", "scsi9"],
            "unknown_controller",
            2,
        ),
        (empty.path(), "/dev/xvdb", &["--dry-run"], "source_empty", 6),
    ] {
        host.plug(volume, path, more).await.assert_fails(reason, code);
    }
    host.agent.taken_paths.lock().unwrap().push("/dev/xvdc".into());
    host.plug(other.path(), "/dev/xvdc", &["--dry-run"]).await.assert_fails("path_taken", 4);
    *host.agent.probe_failure.lock().unwrap() = Some(Reason::REASON_CONTAINER_NOT_RUNNING);
    host.plug(other.path(), "/dev/xvdd", &["--dry-run"])
        .await
        .assert_fails("container_not_running", 3);
    *host.agent.probe_failure.lock().unwrap() = None;
    for which in [
        ["--container", "c1", "--device-path", "/dev/xvdz"],
        ["--container", "c2", "--device-path", "/dev/xvda"],
    ] {
        host.verb("hot-unplug", &[&which[..], &["--dry-run"]].concat())
            .await
            .assert_fails("volume_not_found", 3);
    }
    assert_eq!(host.snapshot().await, before);
    assert_guest_unchanged(&host, &["/dev/xvda"]);
}

#[tokio::test]
async fn a_further_attachment_is_reported_and_not_made() {
    let mut host = Host::boot().await;
    let device = Loop::of(MIB);
    host.plug(device.path(), "/dev/xvda", &[]).await.report();
    let before = host.snapshot().await;
    let would = host.plug(device.path(), "/dev/xvdb", &["--shared", "--dry-run"]).await.report();
    assert_eq!((would.result, would.dry_run), (Outcome::Attached, true));
    assert!(would.body.volumes[0].shared);
    assert_eq!(host.snapshot().await, before);
    assert_guest_unchanged(&host, &["/dev/xvda"]);
}

#[tokio::test]
async fn a_hot_unplug_is_reported_and_not_done() {
    let mut host = Host::boot().await;
    let device = Loop::of(MIB);
    let id = host.plug(device.path(), "/dev/xvda", &[]).await.report().body.volumes[0].id.clone();
    let before = host.snapshot().await;
    let would = host.verb("hot-unplug", &C1).await;
    assert!(would.stdout.contains(r#""result":"detached","dry_run":true"#), "{would:?}");
    assert_eq!(would.report().body.volumes[0].id, id);
    let unknown =
        host.verb("hot-unplug", &["--volume", "0123456789abcdef", "--dry-run"]).await.report();
    assert_eq!(unknown.result, Outcome::Unchanged);
    host.agent.holder_commands.lock().unwrap().push("dd".into());
    let busy = host.verb("hot-unplug", &C1).await;
    busy.assert_fails("busy", 5);
    assert!(busy.stdout.contains("dd"), "{busy:?}");
    let forced = host.verb("hot-unplug", &[&C1[..], &["--force"]].concat()).await.report();
    assert_eq!((forced.result, forced.body.broken_holders.len()), (Outcome::Detached, 1));
    assert_eq!(host.snapshot().await, before);
    assert_guest_unchanged(&host, &["/dev/xvda"]);
}

#[cfg(feature = "fault")]
#[tokio::test]
async fn leftovers_of_a_killed_run_stay() {
    let mut host = Host::boot().await;
    let device = Loop::of(MIB);
    let mut command = host.command(&[(device.path(), "/dev/xvda")], &[]);
    run(command.env("ECR_RUNTIME_FAULT", "after-attach=kill")).await;
    host.agent.conversation_is_over().await;
    let left = host.snapshot().await;
    let would = host.plug(device.path(), "/dev/xvda", &["--dry-run"]).await.report();
    assert_eq!((would.result, would.dry_run), (Outcome::Attached, true));
    assert_eq!(host.verb("hot-unplug", &C1).await.report().result, Outcome::Detached);
    assert_eq!(host.snapshot().await, left);
    assert_guest_unchanged(&host, &[]);
}

#[tokio::test]
async fn the_text_output_says_what_would_be_done() {
    let host = Host::boot().await;
    let device = Loop::of(MIB);
    let call = async |verb: &str, more: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_ecr-runtime"));
        command.arg("--run-dir").arg(host.path("")).args(["block-volume", verb, "--sandbox", "s1"]);
        run(command.args(more)).await.stdout
    };
    let volume = ["--block-volume", device.path().to_str().unwrap()];
    let text = call("hot-plug", &[&C1[..], &volume].concat()).await;
    assert!(text.starts_with(&format!("would plug {} (1 MiB) at /dev/xvda", volume[1])), "{text}");
    call("hot-plug", &[&C1[..4], &volume].concat()).await;
    let text = call("hot-unplug", &C1).await;
    assert!(
        text.starts_with(&format!("would unplug {} (1 MiB) from /dev/xvda", volume[1])),
        "{text}"
    );
}
