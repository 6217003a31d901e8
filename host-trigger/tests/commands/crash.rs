//! A run that is killed after any of its steps is completed by the same command. Needs fault
//! points: `cargo nextest run -p host-trigger --features fault -E 'test(/^crash::/)'`.

use crate::common::{
    Host,
    fake_agent::OnAttach,
    run,
    volume::{Image, Loop},
};
use host_trigger::{
    ops::{
        recovery::{Action, StateAfter},
        volume::State,
    },
    output::envelope::Outcome,
};
use rstest::rstest;

const MIB: u64 = 1 << 20;

#[rstest]
#[tokio::test]
async fn a_killed_hot_plug_is_completed_by_the_same_command(
    #[values(
        "after-preflight",
        "after-start",
        "after-add-fd",
        "after-blockdev-add",
        "after-ready",
        "after-device-add",
        "after-go",
        "after-prepared",
        "after-record",
        "after-attach",
        "after-commit"
    )]
    point: &str,
) {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let (device, image) = (Loop::of(MIB), Image::of(MIB));
    let volumes = [(device.path(), "/dev/xvda"), (image.path(), "/dev/xvdb")];
    let mut command = host.command(&volumes, &[]);
    let killed = run(command.env("ECR_RUNTIME_FAULT", format!("{point}=kill"))).await;
    assert_eq!(killed.exit_code, Some(-9), "{killed:?}");
    host.agent.conversation_is_over().await;
    if matches!(point, "after-preflight" | "after-start") {
        assert_eq!(host.snapshot().await, clean);
    }
    let again = run(&mut host.command(&volumes, &[])).await.report();
    let expected = if point == "after-commit" { Outcome::Unchanged } else { Outcome::Attached };
    assert_eq!(again.result, expected);
    assert_eq!(host.agent.attached_paths(), ["/dev/xvda", "/dev/xvdb"]);
    let snapshot = host.snapshot().await;
    assert_eq!(snapshot["query-fdsets"].as_array().unwrap().len(), 2);
    assert_eq!(snapshot["query-named-block-nodes"].as_array().unwrap().len(), 4);
}

#[rstest]
#[tokio::test]
async fn a_hot_plug_that_fails_after_a_step_leaves_nothing(
    #[values(
        "after-add-fd",
        "after-blockdev-add",
        "after-ready",
        "after-device-add",
        "after-go",
        "after-prepared",
        "after-record",
        "after-attach",
        "after-commit"
    )]
    point: &str,
) {
    let mut host = Host::boot().await;
    let before = host.snapshot().await;
    let volume = Loop::of(MIB);
    let mut command = host.command(&[(volume.path(), "/dev/xvda")], &[]);
    let failed = run(command.env("ECR_RUNTIME_FAULT", format!("{point}=error"))).await;
    failed.assert_fails("fault_point", 1);
    assert_eq!(host.snapshot().await, before);
    assert!(host.agent.attached_paths().is_empty());
    assert!(!volume.is_claimed());
}

#[tokio::test]
async fn a_fault_point_gives_qemu_another_serial_than_the_guest() {
    let mut host = Host::boot().await;
    host.agent.set_on_attach(OnAttach::Succeeds);
    let image = Image::of(MIB);
    let mut command = host.command(&[(image.path(), "/dev/xvda")], &[]);
    let report = run(command.env("ECR_RUNTIME_FAULT", "device-serial=value:other")).await.report();
    let path = format!("/machine/peripheral/ecrblk-{}", report.body.volumes[0].id);
    let serial =
        host.query("qom-get", serde_json::json!({"path": path, "property": "serial"})).await;
    assert_eq!(serial, "other");
    assert!(host.agent.attachment(&report.body.volumes[0].id).is_some());
}

#[tokio::test]
async fn a_signal_during_a_qmp_command_takes_effect_after_the_rollback() {
    use nix::{sys::signal, unistd::Pid};
    let mut host = Host::boot().await;
    let before = host.snapshot().await;
    let volume = Loop::of(MIB);
    let mut command = host.command(&[(volume.path(), "/dev/xvda")], &[]);
    command.env("ECR_RUNTIME_FAULT", "after-add-fd=stop").stdout(std::process::Stdio::piped());
    let child = command.spawn().unwrap();
    let run = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    let qemu = Pid::from_raw(i32::try_from(host.qemu.id()).unwrap());
    status_becomes(run, |status| status.contains("State:\tT")).await;
    // When the run continues, it sends its next command to a QEMU that does not reply, and receives
    // the signal.
    signal::kill(qemu, signal::SIGSTOP).unwrap();
    signal::kill(run, signal::SIGTERM).unwrap();
    signal::kill(run, signal::SIGCONT).unwrap();
    status_becomes(run, |status| status.contains("ShdPnd:\t0000000000000000")).await;
    signal::kill(qemu, signal::SIGCONT).unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(143), "{output:?}");
    assert_eq!(host.snapshot().await, before);
    assert!(!volume.is_claimed());
}

/// Waits until `/proc/PID/status` of a process meets `condition`.
async fn status_becomes(process: nix::unistd::Pid, condition: impl Fn(&str) -> bool) {
    let deadline = host_trigger::Deadline::after(std::time::Duration::from_secs(30));
    let file = format!("/proc/{process}/status");
    loop {
        let status = std::fs::read_to_string(&file).unwrap();
        if condition(&status) {
            return;
        }
        assert!(!deadline.remaining().is_zero(), "{status}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// After a kill at any step of a hot-unplug the volume is listed as incomplete, and the same
/// command completes the removal.
#[rstest]
#[tokio::test]
async fn a_killed_hot_unplug_is_completed_by_the_same_command(
    #[values(
        "after-released",
        "remove-before-device-deleted",
        "remove-after-device-del",
        "after-detach",
        "remove-after-blockdev-del"
    )]
    point: &str,
) {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let device = Loop::of(MIB);
    host.plug(device.path(), "/dev/xvda", &[]).await.report();
    let unplug = ["--container", "c1", "--device-path", "/dev/xvda"];
    let mut command = host.verb_command("hot-unplug", &unplug);
    let killed = run(command.env("ECR_RUNTIME_FAULT", format!("{point}=kill"))).await;
    assert_eq!(killed.exit_code, Some(-9), "{killed:?}");
    let listing = host.verb("list", &[]).await.listing();
    assert_eq!(listing.body.volumes[0].state, State::Incomplete);
    let again = host.verb("hot-unplug", &unplug).await.report();
    assert_eq!(again.result, Outcome::Detached);
    assert_eq!(host.snapshot().await, clean);
    assert!(!device.is_claimed());
}

/// A hot-unplug removes what a killed hot-plug left.
#[rstest]
#[tokio::test]
async fn a_killed_hot_plug_is_listed_and_can_be_unplugged(
    #[values(
        "after-add-fd",
        "after-blockdev-add",
        "after-ready",
        "after-device-add",
        "after-go",
        "after-prepared",
        "after-record",
        "after-attach",
        "after-commit"
    )]
    point: &str,
    #[values(true, false)] by_id: bool,
) {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let device = Loop::of(MIB);
    let mut command = host.command(&[(device.path(), "/dev/xvda")], &[]);
    let killed = run(command.env("ECR_RUNTIME_FAULT", format!("{point}=kill"))).await;
    assert_eq!(killed.exit_code, Some(-9), "{killed:?}");
    host.agent.conversation_is_over().await;
    let listed = host.verb("list", &[]).await.listing().body.volumes.remove(0);
    let expected = if point == "after-commit" { State::Attached } else { State::Incomplete };
    assert_eq!((listed.state, listed.volume.place.path()), (expected, "/dev/xvda"));
    let named = ["--volume", listed.volume.id.as_str()];
    let unplug = if by_id { &named } else { &["--device-path", "/dev/xvda"] };
    assert_eq!(host.verb("hot-unplug", unplug).await.report().result, Outcome::Detached);
    assert_eq!(host.snapshot().await, clean);
    assert!(host.agent.attached_paths().is_empty() && !device.is_claimed());
}

/// Repair keeps a hot-plug that was killed after the guest's commit, and removes what is left of
/// any other: the guest has rolled back its part.
#[rstest]
#[tokio::test]
async fn a_killed_hot_plug_is_repaired(
    #[values(
        "after-add-fd",
        "after-blockdev-add",
        "after-ready",
        "after-device-add",
        "after-go",
        "after-prepared",
        "after-record",
        "after-attach",
        "after-commit"
    )]
    point: &str,
) {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let device = Loop::of(MIB);
    let killed = run(host
        .command(&[(device.path(), "/dev/xvda")], &[])
        .env("ECR_RUNTIME_FAULT", format!("{point}=kill")))
    .await;
    assert_eq!(killed.exit_code, Some(-9), "{killed:?}");
    host.agent.conversation_is_over().await;
    let before = host.snapshot().await;
    let would = host.verb("repair", &["--dry-run"]).await.repaired();
    assert_eq!(host.snapshot().await, before);
    let repaired = host.verb("repair", &[]).await.repaired();
    let attached = point == "after-commit";
    let (result, action) = match point {
        "after-commit" => (Outcome::Unchanged, Action::Kept),
        // As if an unplug had been killed before it asked QEMU.
        "after-record" | "after-attach" => (Outcome::Repaired, Action::Completed),
        _ => (Outcome::Repaired, Action::RolledBack),
    };
    let now = if attached { StateAfter::Attached } else { StateAfter::Gone };
    let volume = &repaired.body.volumes[0];
    assert_eq!(
        (repaired.result, repaired.body.volumes.len(), volume.action, volume.state_after),
        (result, 1, action, now)
    );
    assert_eq!((volume.container.as_str(), volume.place.path()), ("c1", "/dev/xvda"));
    assert!(would.dry_run && !repaired.dry_run);
    assert_eq!((would.body.volumes[0].action, would.body.volumes[0].state_after), (action, now));
    assert_eq!(device.is_claimed(), attached);
    if attached {
        assert_eq!(host.verb("list", &[]).await.listing().body.volumes[0].state, State::Attached);
        let same = run(&mut host.command(&[(device.path(), "/dev/xvda")], &[])).await.report();
        assert_eq!(same.result, Outcome::Unchanged);
    } else {
        assert_eq!(host.snapshot().await, clean);
        assert!(host.agent.attached_paths().is_empty());
    }
    assert_eq!(host.verb("repair", &[]).await.repaired().result, Outcome::Unchanged);
}

#[rstest]
#[tokio::test]
async fn a_killed_hot_unplug_is_completed_by_repair(
    #[values(
        "before-detach",
        "after-released",
        "remove-before-device-deleted",
        "remove-after-device-del",
        "after-detach",
        "remove-after-blockdev-del",
        "after-remove"
    )]
    point: &str,
) {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let device = Loop::of(MIB);
    host.plug(device.path(), "/dev/xvda", &[]).await.report();
    let plugged = host.snapshot().await;
    let mut command = host.verb_command("hot-unplug", &["--device-path", "/dev/xvda"]);
    let killed = run(command.env("ECR_RUNTIME_FAULT", format!("{point}=kill"))).await;
    assert_eq!(killed.exit_code, Some(-9), "{killed:?}");
    let repaired = host.verb("repair", &[]).await.repaired();
    match point {
        "before-detach" => {
            assert_eq!(
                (repaired.result, repaired.body.volumes[0].action),
                (Outcome::Unchanged, Action::Kept)
            );
            assert_eq!(host.snapshot().await, plugged);
        }
        "after-remove" => assert!(repaired.body.volumes.is_empty()),
        _ => {
            let volume = &repaired.body.volumes[0];
            assert_eq!(
                (volume.action, volume.state_after),
                (Action::Completed, StateAfter::Gone),
                "{volume:?}"
            );
        }
    }
    if point != "before-detach" {
        assert_eq!(host.snapshot().await, clean);
        assert!(!device.is_claimed());
    }
}

/// Repair decides by what it finds, so it can be killed itself.
#[rstest]
#[tokio::test]
async fn a_killed_repair_is_completed_by_the_next_repair(
    #[values(
        "before-detach",
        "after-released",
        "remove-after-device-del",
        "after-detach",
        "remove-after-blockdev-del"
    )]
    point: &str,
) {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let device = Loop::of(MIB);
    let mut command = host.command(&[(device.path(), "/dev/xvda")], &[]);
    run(command.env("ECR_RUNTIME_FAULT", "after-device-add=kill")).await;
    let mut command = host.verb_command("repair", &[]);
    let killed = run(command.env("ECR_RUNTIME_FAULT", format!("{point}=kill"))).await;
    assert_eq!(killed.exit_code, Some(-9), "{killed:?}");
    assert_eq!(host.verb("repair", &[]).await.repaired().result, Outcome::Repaired);
    assert_eq!(host.snapshot().await, clean);
    assert!(!device.is_claimed());
}

/// The connection to QEMU may end or time out at any moment. Then a query of QEMU is decisive.
#[tokio::test]
async fn a_missed_event_is_made_up_for_by_a_query() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let image = Image::of(MIB);
    let id = host.plug(image.path(), "/dev/xvda", &[]).await.report().body.volumes[0].id.clone();
    let mut command = host.verb_command("hot-unplug", &["--volume", &id]);
    let command = command.env("ECR_RUNTIME_FAULT", "after-released=delay:500");
    let (ran, ()) = tokio::join!(run(command), async {
        // The run has read the inventory; another client removes the device.
        host.agent.request_received.notified().await;
        host.agent.request_received.notified().await;
        host.execute("device_del", serde_json::json!({"id": format!("ecrblk-{id}")})).await;
        host.await_event("DEVICE_DELETED").await;
    });
    assert_eq!(ran.report().result, Outcome::Detached);
    assert!(ran.took < std::time::Duration::from_secs(3), "{ran:?}");
    assert_eq!(host.snapshot().await, clean);
}
