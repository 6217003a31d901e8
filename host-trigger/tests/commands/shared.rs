//! `hot-plug --shared` against a real QEMU: one disk with several attachments, each of which is
//! made and removed independently.

use crate::common::{Host, RunOutput, fake_agent::OnAttach, run, volume::Loop};
use block_volume_api::block_volume::Reason;
use host_trigger::{
    ops::{
        recovery::{Action, StateAfter},
        volume::{Cause, State},
    },
    output::envelope::Outcome,
};
use rstest::rstest;
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// Plugs `volume` into `container`.
async fn plug(host: &Host, volume: &Loop, container: &str, path: &str, more: &[&str]) -> RunOutput {
    let more = [&["--sandbox", "s1", "--container", container], more].concat();
    run(&mut host.command(&[(volume.path(), path)], &more)).await
}

async fn unplug(host: &Host, container: &str, path: &str) -> RunOutput {
    host.verb("hot-unplug", &["--container", container, "--device-path", path]).await
}

/// Returns container, path and state of each attachment.
async fn listed(host: &Host) -> Vec<(String, String, State)> {
    let listing = host.verb("list", &[]).await.listing();
    let shared = listing.body.volumes.len() > 1;
    assert!(
        listing.body.volumes.iter().all(|listed| listed.volume.shared == shared),
        "{listing:?}"
    );
    let attachments = listing.body.volumes.into_iter();
    attachments
        .map(|listed| {
            (listed.volume.container, listed.volume.place.path().to_owned(), listed.state)
        })
        .collect()
}

fn attached(paths: &[(&str, &str)]) -> Vec<(String, String, State)> {
    paths
        .iter()
        .map(|(container, path)| ((*container).into(), (*path).into(), State::Attached))
        .collect()
}

fn count(snapshot: &Value, query: &str) -> usize {
    snapshot[query].as_array().unwrap().len()
}

#[rstest]
#[case::first_attachment_first(&["c1", "c2"])]
#[case::first_attachment_last(&["c2", "c1"])]
#[tokio::test]
async fn a_disk_with_two_attachments_is_removed_with_the_last_one(#[case] order: &[&str]) {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let device = Loop::of(MIB);
    let first = plug(&host, &device, "c1", "/dev/xvda", &[]).await.report();
    let with_one = host.snapshot().await;
    let second =
        plug(&host, &device, "c2", "/dev/xvda", &["--shared", "--mode", "600"]).await.report();
    assert_eq!((second.result, second.body.volumes[0].shared), (Outcome::Attached, true));
    assert_eq!(
        (&second.body.volumes[0].id, &second.body.volumes[0].scsi),
        (&first.body.volumes[0].id, &first.body.volumes[0].scsi)
    );
    let with_two = host.snapshot().await;
    // A further block node reserves the path.
    for (query, more) in [("query-named-block-nodes", 1), ("qom-list", 0), ("query-fdsets", 0)] {
        assert_eq!(count(&with_two, query), count(&with_one, query) + more, "{query}");
    }
    let both = attached(&[("c1", "/dev/xvda"), ("c2", "/dev/xvda")]);
    assert_eq!(listed(&host).await, both);
    let again =
        plug(&host, &device, "c2", "/dev/xvda", &["--shared", "--mode", "600"]).await.report();
    assert_eq!((again.result, again.body.volumes[0].shared), (Outcome::Unchanged, true));
    assert_eq!(host.verb("repair", &[]).await.repaired().result, Outcome::Unchanged);
    assert_eq!(host.snapshot().await, with_two);

    assert_eq!(unplug(&host, order[0], "/dev/xvda").await.report().result, Outcome::Detached);
    assert!(host.agent.last_detachments.lock().unwrap()[0].keep_disk);
    assert!(device.is_claimed());
    assert_eq!(listed(&host).await, attached(&[(order[1], "/dev/xvda")]));
    unplug(&host, order[0], "/dev/xvda").await.assert_fails("volume_not_found", 3);
    assert_eq!(unplug(&host, order[1], "/dev/xvda").await.report().result, Outcome::Detached);
    assert!(!host.agent.last_detachments.lock().unwrap()[0].keep_disk);
    assert_eq!(host.snapshot().await, clean);
    assert!(!device.is_claimed());
}

#[rstest]
#[tokio::test]
async fn a_removed_attachment_can_be_made_again_beside_the_other(
    #[values(["c1", "c2"], ["c2", "c1"])] order: [&str; 2],
) {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let device = Loop::of(MIB);
    plug(&host, &device, "c1", "/dev/xvda", &[]).await.report();
    plug(&host, &device, "c2", "/dev/xvda", &["--shared"]).await.report();
    unplug(&host, "c1", "/dev/xvda").await.report();
    plug(&host, &device, "c1", "/dev/xvda", &[]).await.assert_fails("volume_taken", 4);
    assert_eq!(
        plug(&host, &device, "c1", "/dev/xvda", &["--shared"]).await.report().result,
        Outcome::Attached
    );
    assert_eq!(listed(&host).await, attached(&[("c1", "/dev/xvda"), ("c2", "/dev/xvda")]));
    for container in order {
        unplug(&host, container, "/dev/xvda").await.report();
    }
    assert_eq!(host.snapshot().await, clean);
}

#[tokio::test]
async fn a_request_that_is_not_shared_or_differs_is_a_conflict() {
    let mut host = Host::boot().await;
    let (device, other) = (Loop::of(MIB), Loop::of(MIB));
    plug(&host, &device, "c1", "/dev/xvda", &[]).await.report();
    plug(&host, &other, "c2", "/dev/xvdb", &[]).await.report();
    let before = host.snapshot().await;
    let taken = plug(&host, &device, "c2", "/dev/xvda", &[]).await;
    taken.assert_fails("volume_taken", 4);
    assert!(
        taken.stdout.contains("container c1 at /dev/xvda") && taken.stdout.contains("--shared"),
        "{taken:?}"
    );
    plug(&host, &device, "c2", "/dev/xvda", &["--shared", "--read-only"])
        .await
        .assert_fails("other_options", 4);
    // The path belongs to another volume.
    plug(&host, &device, "c2", "/dev/xvdb", &["--shared"]).await.assert_fails("path_taken", 4);
    plug(&host, &device, "c2", "/dev/xvda", &["--shared", "--controller", "scsi1"])
        .await
        .assert_fails("unknown_controller", 2);
    assert_eq!(host.snapshot().await, before);
}

#[tokio::test]
async fn a_volume_id_with_several_attachments_is_ambiguous() {
    let host = Host::boot().await;
    let device = Loop::of(MIB);
    let id = plug(&host, &device, "c1", "/dev/xvda", &[]).await.report().body.volumes[0].id.clone();
    plug(&host, &device, "c2", "/dev/xvdb", &["--shared"]).await.report();
    plug(&host, &device, "c2", "/dev/xvdc", &["--shared"]).await.report();
    let ambiguous = host.verb("hot-unplug", &["--volume", &id]).await;
    ambiguous.assert_fails("ambiguous_volume", 2);
    assert!(ambiguous.stdout.contains("/dev/xvda in container c1"), "{ambiguous:?}");
    host.verb("inspect", &["--volume", &id, "--container", "c2"])
        .await
        .assert_fails("ambiguous_volume", 2);
    let of_c1 = host.verb("inspect", &["--volume", &id, "--container", "c1"]).await.listing();
    assert_eq!(
        (of_c1.body.volumes.len(), of_c1.body.volumes[0].volume.place.path()),
        (1, "/dev/xvda")
    );
    assert_eq!(host.verb("list", &["--container", "c2"]).await.listing().body.volumes.len(), 2);
    host.verb("hot-unplug", &["--volume", &id, "--container", "c1"]).await.report();
    assert_eq!(listed(&host).await, attached(&[("c2", "/dev/xvdb"), ("c2", "/dev/xvdc")]));
}

/// The rule stays until the last path is removed.
#[tokio::test]
async fn two_paths_in_one_container_share_one_device_filter_rule() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let device = Loop::of(MIB);
    plug(&host, &device, "c1", "/dev/xvda", &[]).await.report();
    plug(&host, &device, "c1", "/dev/xvdb", &["--shared"]).await.report();
    unplug(&host, "c1", "/dev/xvda").await.report();
    let kept = host.agent.last_detachments.lock().unwrap()[0].clone();
    assert!(kept.keep_disk && kept.keep_right);
    unplug(&host, "c1", "/dev/xvdb").await.report();
    let last = host.agent.last_detachments.lock().unwrap()[0].clone();
    assert!(!last.keep_disk && !last.keep_right);
    assert_eq!(host.snapshot().await, clean);
}

#[tokio::test]
async fn a_further_attachment_that_fails_leaves_the_first() {
    let mut host = Host::boot().await;
    let device = Loop::of(MIB);
    plug(&host, &device, "c1", "/dev/xvda", &[]).await.report();
    let before = host.snapshot().await;
    host.agent.set_on_attach(OnAttach::Fails { reason: Reason::REASON_NO_SPACE, undone: true });
    plug(&host, &device, "c2", "/dev/xvda", &["--shared"]).await.assert_fails("no_space", 9);
    assert_eq!(host.snapshot().await, before);
    host.agent.set_on_attach(OnAttach::ReportsAnotherSerial);
    plug(&host, &device, "c2", "/dev/xvda", &["--shared"]).await.assert_fails("agent_answer", 1);
    assert_eq!(host.snapshot().await, before);
    host.agent.set_on_attach(OnAttach::Hangs);
    let ran = plug(&host, &device, "c2", "/dev/xvda", &["--shared", "--timeout", "2s"]).await;
    ran.assert_fails("timed_out", 7);
    assert!(host.agent.last_detachments.lock().unwrap()[0].keep_disk);
    assert_eq!(host.snapshot().await, before);
    assert_eq!(listed(&host).await, attached(&[("c1", "/dev/xvda")]));
}

#[tokio::test]
async fn only_the_attachment_of_a_container_that_is_gone_is_stale() {
    let mut host = Host::boot().await;
    let device = Loop::of(MIB);
    plug(&host, &device, "c1", "/dev/xvda", &[]).await.report();
    let with_one = host.snapshot().await;
    plug(&host, &device, "c2", "/dev/xvda", &["--shared"]).await.report();
    host.agent.gone_containers.lock().unwrap().push("c2".into());
    let states: Vec<_> = listed(&host).await.into_iter().map(|(_, _, state)| state).collect();
    assert_eq!(states, [State::Attached, State::Stale { cause: Cause::ContainerGone }]);
    let repaired = host.verb("repair", &[]).await.repaired();
    let attachments: Vec<_> = repaired
        .body
        .volumes
        .iter()
        .map(|attachment| {
            (attachment.container.as_str(), attachment.action, attachment.state_after)
        })
        .collect();
    assert_eq!(
        attachments,
        [("c1", Action::Kept, StateAfter::Attached), ("c2", Action::RolledBack, StateAfter::Gone)]
    );
    assert_eq!(host.snapshot().await, with_one);
    assert!(device.is_claimed());
}

#[tokio::test]
async fn a_repair_of_all_attachments_removes_the_disk_with_the_last() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let device = Loop::of(MIB);
    plug(&host, &device, "c1", "/dev/xvda", &[]).await.report();
    plug(&host, &device, "c2", "/dev/xvda", &["--shared"]).await.report();
    host.agent.gone_containers.lock().unwrap().extend(["c1".into(), "c2".into()]);
    let repaired = host.verb("repair", &[]).await.repaired();
    assert!(
        repaired.body.volumes.len() == 2
            && repaired
                .body
                .volumes
                .iter()
                .all(|attachment| attachment.action == Action::RolledBack)
    );
    assert_eq!(host.snapshot().await, clean);
    assert!(!device.is_claimed());
}

/// As the first attachment: the same command completes it, repair completes it or rolls it back.
#[cfg(feature = "fault")]
#[rstest]
#[tokio::test]
async fn a_killed_further_attachment_is_completed_or_rolled_back(
    #[values(
        "after-record-attachment",
        "after-reserve-path",
        "after-prepared",
        "after-record",
        "after-attach",
        "after-commit"
    )]
    point: &str,
    #[values("repeat", "repair", "unplug")] remedy: &str,
) {
    let mut host = Host::boot().await;
    let device = Loop::of(MIB);
    plug(&host, &device, "c1", "/dev/xvda", &[]).await.report();
    let with_one = host.snapshot().await;
    let shared = ["--sandbox", "s1", "--container", "c2", "--shared"];
    let mut command = host.command(&[(device.path(), "/dev/xvda")], &shared);
    let killed = run(command.env("ECR_RUNTIME_FAULT", format!("{point}=kill"))).await;
    assert_eq!(killed.exit_code, Some(-9), "{killed:?}");
    host.agent.conversation_is_over().await;
    let expected = if point == "after-commit" { State::Attached } else { State::Incomplete };
    assert_eq!(listed(&host).await[1].2, expected);
    let both = attached(&[("c1", "/dev/xvda"), ("c2", "/dev/xvda")]);
    match remedy {
        "repeat" => {
            plug(&host, &device, "c2", "/dev/xvda", &["--shared"]).await.report();
            assert_eq!(listed(&host).await, both);
        }
        "unplug" => {
            unplug(&host, "c2", "/dev/xvda").await.report();
            assert_eq!(host.snapshot().await, with_one);
        }
        _ => {
            let repaired = host.verb("repair", &[]).await.repaired();
            let second = &repaired.body.volumes[1];
            match point {
                "after-record-attachment" | "after-reserve-path" | "after-prepared" => {
                    assert_eq!(
                        (second.action, second.state_after),
                        (Action::RolledBack, StateAfter::Gone)
                    );
                    assert_eq!(host.snapshot().await, with_one);
                }
                // The guest has rolled back, and has the disk for the first attachment.
                "after-record" | "after-attach" => {
                    assert_eq!(
                        (second.action, second.state_after),
                        (Action::Completed, StateAfter::Attached)
                    )
                }
                _ => assert_eq!(
                    (second.action, second.state_after),
                    (Action::Kept, StateAfter::Attached)
                ),
            }
            if second.state_after == StateAfter::Attached {
                assert_eq!(listed(&host).await, both);
            }
        }
    }
    assert!(device.is_claimed());
    let sets = host.snapshot().await["query-fdsets"].clone();
    assert!(
        sets.as_array().unwrap().len() == 1 && sets[0]["fds"].as_array().unwrap().len() <= 3,
        "{sets}"
    );
}

#[cfg(feature = "fault")]
#[rstest]
#[tokio::test]
async fn a_killed_hot_unplug_of_one_attachment_is_completed(
    #[values("after-detach", "remove-after-release-path", "after-remove")] point: &str,
    #[values("c1", "c2")] container: &str,
    #[values(true, false)] by_repair: bool,
) {
    let mut host = Host::boot().await;
    let device = Loop::of(MIB);
    plug(&host, &device, "c1", "/dev/xvda", &[]).await.report();
    plug(&host, &device, "c2", "/dev/xvda", &["--shared"]).await.report();
    let nodes = host.snapshot().await["query-named-block-nodes"].clone();
    let mut command =
        host.verb_command("hot-unplug", &["--container", container, "--device-path", "/dev/xvda"]);
    let killed = run(command.env("ECR_RUNTIME_FAULT", format!("{point}=kill"))).await;
    assert_eq!(killed.exit_code, Some(-9), "{killed:?}");
    let rest = if container == "c1" { "c2" } else { "c1" };
    if by_repair {
        // The disk is there and only the device node is gone: repair makes it again.
        let repaired = host.verb("repair", &[]).await.repaired();
        assert_eq!(repaired.body.volumes.len(), if point == "after-remove" { 1 } else { 2 });
        assert!(
            repaired
                .body
                .volumes
                .iter()
                .all(|attachment| attachment.state_after == StateAfter::Attached),
            "{repaired:?}"
        );
        if point != "after-remove" {
            assert_eq!(
                host.snapshot().await["query-named-block-nodes"],
                nodes,
                "each path is reserved again"
            );
        }
    } else {
        let again = unplug(&host, container, "/dev/xvda").await;
        match point {
            "after-remove" => again.assert_fails("volume_not_found", 3),
            _ => assert_eq!(again.report().result, Outcome::Detached),
        }
        assert_eq!(listed(&host).await, attached(&[(rest, "/dev/xvda")]));
    }
    assert!(device.is_claimed());
}
