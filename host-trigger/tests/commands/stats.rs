//! `stats` against a real QEMU: which volumes, whose counters, and what is reported if the guest
//! does not reply.

use crate::common::{Host, RunOutput, run, volume::Image};
use block_volume_api::block_volume::{BlockStats, Reason};
use host_trigger::output::{
    envelope::{Envelope, Outcome},
    stats_report::{StatsReport, VolumeStats},
};

const MIB: u64 = 1 << 20;

#[track_caller]
fn counted(ran: &RunOutput) -> Envelope<StatsReport> {
    assert_eq!(ran.exit_code, Some(0), "{ran:?}");
    serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"))
}

async fn stats(host: &Host, more: &[&str]) -> Envelope<StatsReport> {
    counted(&host.verb("stats", more).await)
}

/// Runs `stats` without JSON output.
async fn as_text(host: &Host, more: &[&str]) -> RunOutput {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_ecr-runtime"));
    command.arg("--run-dir").arg(host.path("")).args(["block-volume", "stats", "--sandbox", "s1"]);
    run(command.args(more)).await
}

#[tokio::test]
async fn each_volume_has_its_counters_and_nothing_changes() {
    let mut host = Host::boot().await;
    assert!(stats(&host, &[]).await.body.volumes.is_empty());
    let (one, two) = (Image::of(MIB), Image::of(2 * MIB));
    host.plug(one.path(), "/dev/xvda", &[]).await.report();
    let second = host
        .plug(two.path(), "/dev/xvda", &["--sandbox", "s1", "--container", "c2"])
        .await
        .report();
    let guest_stats = BlockStats {
        reads: 3,
        read_bytes: 4096,
        read_ms: 6,
        errors: 1,
        in_flight: 2,
        ..Default::default()
    };
    *host.agent.stats.lock().unwrap() = Some(guest_stats);
    let (before, changes) = (host.snapshot().await, host.changes());

    let all = stats(&host, &[]).await;
    assert_eq!(
        (all.command.as_str(), all.result, all.body.volumes.len()),
        ("stats", Outcome::Counted, 2)
    );
    let first = &all.body.volumes[0];
    assert_eq!(
        (first.container.as_str(), first.place.path(), first.size),
        ("c1", "/dev/xvda", MIB)
    );
    let guest = first.guest.unwrap();
    assert_eq!((guest.read.operations, guest.read.bytes), (3, Some(4096)));
    assert_eq!(
        (guest.read.average_time_ns, guest.scsi_errors, guest.in_flight),
        (Some(2_000_000), 1, 2)
    );
    let qemu = first.qemu.unwrap();
    assert_eq!((qemu.write.operations, qemu.write.failed, qemu.flush.bytes), (0, Some(0), None));

    let id = second.body.volumes[0].id.as_str();
    for more in [
        &["--container", "c2"][..],
        &["--volume", id],
        &["--device-path", "/dev/xvda", "--container", "c2"],
    ] {
        let one = stats(&host, more).await;
        assert_eq!(one.body.volumes, all.body.volumes[1..], "{more:?}");
    }
    host.verb("stats", &["--device-path", "/dev/xvda"]).await.assert_fails("ambiguous_path", 2);
    host.verb("stats", &["--device-path", "dev/xvda"]).await.assert_fails("invalid_device_path", 2);
    host.verb("stats", &["--volume", "0123456789abcdef"]).await.assert_fails("volume_not_found", 3);
    host.verb("stats", &["--container", "c9"]).await.assert_fails("container_not_found", 3);
    host.verb("stats", &["--prometheus"]).await.assert_fails("usage", 2);
    assert_eq!((host.snapshot().await, host.changes()), (before, changes));
}

#[tokio::test]
async fn without_the_guest_qemus_counters_are_shown() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    *host.agent.inspect_failure.lock().unwrap() = Some(Reason::REASON_DENIED);
    let refused = stats(&host, &[]).await;
    assert_eq!(refused.body.guest_error, None);
    assert_eq!(refused.body.volumes[0].guest_error.as_ref().unwrap().reason, "denied_by_guest");
    assert!(refused.body.volumes[0].qemu.is_some() && refused.body.volumes[0].guest.is_none());

    let unreachable = ["--agent", "unix:///nonexistent/agent.sock"];
    let alone = stats(&host, &unreachable).await;
    assert_eq!(alone.body.guest_error.as_ref().unwrap().reason, "agent_unreachable");
    assert!(alone.body.volumes[0].qemu.is_some() && alone.body.volumes[0].guest.is_none());
    let text = as_text(&host, &unreachable).await;
    assert!(
        text.stdout.contains("  qemu  ") && text.stdout.contains("\nthe guest was not asked: "),
        "{text:?}"
    );
    let page = as_text(&host, &[&unreachable[..], &["--prometheus"]].concat()).await;
    assert_eq!(page.exit_code, Some(0));
    let up =
        page.stdout.lines().find(|line| line.starts_with("ecr_block_volume_guest_up{")).unwrap();
    assert!(up.ends_with("} 0"), "{up}");
    assert!(page.stdout.ends_with('\n') && !page.stdout.ends_with("\n\n"), "{page:?}");
}

#[tokio::test]
async fn errors_of_the_guest_are_counted_from_the_attach_and_without_the_probes_of_a_resize() {
    let host = Host::boot().await;
    let (image, set) = (Image::of(MIB), |errors| *host.agent.disk_errors.lock().unwrap() = errors);
    let errors = async || -> Vec<u64> {
        let of = |volume: &VolumeStats| volume.guest.unwrap().scsi_errors;
        stats(&host, &[]).await.body.volumes.iter().map(of).collect()
    };
    set(3);
    host.plug(image.path(), "/dev/xvda", &["--shared"]).await.report();
    assert_eq!(errors().await, [0]);
    set(8);
    let further = ["--sandbox", "s1", "--container", "c2", "--shared"];
    host.plug(image.path(), "/dev/xvdb", &further).await.report();
    assert_eq!(errors().await, [5, 5], "since the first attachment");
    let resize = ["--container", "c1", "--device-path", "/dev/xvda", "--size", "2MiB"];
    host.verb("resize", &resize).await.report();
    assert_eq!(*host.agent.disk_errors.lock().unwrap(), 10);
    assert_eq!(errors().await, [5, 5]);
    // The records are still those of the volume.
    for path in ["/dev/xvda", "/dev/xvdb"] {
        host.verb("hot-unplug", &["--device-path", path]).await.report();
    }
}
