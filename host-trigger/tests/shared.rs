//! `hot-plug --shared` against a real QEMU: one disk, several uses, each of which comes and goes by
//! itself.

mod common;

use block_volume_api::block_volume::Reason;
use common::{Host, Ran, guest::Behaviour, run, volume::Loop};
use host_trigger::{
    listing::State,
    output::Outcome,
    repaired::{Did, Now, Whole},
};
use rstest::rstest;
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// Plugs into container `container`, shared or not.
async fn plug(host: &Host, volume: &Loop, container: &str, path: &str, more: &[&str]) -> Ran {
    let more = [&["--sandbox", "s1", "--container", container], more].concat();
    run(&mut host.command(&[(volume.path(), path)], &more)).await
}

async fn unplug(host: &Host, container: &str, path: &str) -> Ran {
    host.verb("hot-unplug", &["--container", container, "--device-path", path]).await
}

/// Container, path and state of each use.
async fn listed(host: &Host) -> Vec<(String, String, State)> {
    let listing = host.verb("list", &[]).await.listing();
    let shared = listing.volumes.len() > 1;
    assert!(listing.volumes.iter().all(|listed| listed.volume.shared == shared), "{listing:?}");
    let uses = listing.volumes.into_iter();
    uses.map(|listed| (listed.volume.container, listed.volume.device_path, listed.state)).collect()
}

fn used(uses: &[(&str, &str)]) -> Vec<(String, String, State)> {
    uses.iter()
        .map(|(container, path)| ((*container).into(), (*path).into(), State::Attached))
        .collect()
}

fn count(snapshot: &Value, query: &str) -> usize {
    snapshot[query].as_array().unwrap().len()
}

#[rstest]
#[case::first_use_first(&["c1", "c2"])]
#[case::first_use_last(&["c2", "c1"])]
#[tokio::test]
async fn one_disk_has_two_uses_and_goes_with_the_last(#[case] order: &[&str]) {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let device = Loop::of(MIB);
    let first = plug(&host, &device, "c1", "/dev/xvda", &[]).await.report();
    let with_one = host.snapshot().await;
    let second =
        plug(&host, &device, "c2", "/dev/xvda", &["--shared", "--mode", "600"]).await.report();
    assert_eq!((second.result, second.volumes[0].shared), (Outcome::Attached, true));
    assert_eq!(
        (&second.volumes[0].id, &second.volumes[0].scsi),
        (&first.volumes[0].id, &first.volumes[0].scsi)
    );
    let with_two = host.snapshot().await;
    // A further node keeps the place.
    for (query, more) in [("query-named-block-nodes", 1), ("qom-list", 0), ("query-fdsets", 0)] {
        assert_eq!(count(&with_two, query), count(&with_one, query) + more, "{query}");
    }
    let both = used(&[("c1", "/dev/xvda"), ("c2", "/dev/xvda")]);
    assert_eq!(listed(&host).await, both);
    let again =
        plug(&host, &device, "c2", "/dev/xvda", &["--shared", "--mode", "600"]).await.report();
    assert_eq!((again.result, again.volumes[0].shared), (Outcome::Unchanged, true));
    assert_eq!(host.verb("repair", &[]).await.repaired().result, Whole::Unchanged);
    assert_eq!(host.snapshot().await, with_two);

    assert_eq!(unplug(&host, order[0], "/dev/xvda").await.report().result, Outcome::Detached);
    assert!(host.guest.detachments.lock().unwrap()[0].keep_disk);
    assert!(device.is_claimed());
    assert_eq!(listed(&host).await, used(&[(order[1], "/dev/xvda")]));
    unplug(&host, order[0], "/dev/xvda").await.assert_fails("volume_not_found", 3);
    assert_eq!(unplug(&host, order[1], "/dev/xvda").await.report().result, Outcome::Detached);
    assert!(!host.guest.detachments.lock().unwrap()[0].keep_disk);
    assert_eq!(host.snapshot().await, clean);
    assert!(!device.is_claimed());
}

#[rstest]
#[tokio::test]
async fn a_use_that_went_comes_again_beside_the_other(
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
    assert_eq!(listed(&host).await, used(&[("c1", "/dev/xvda"), ("c2", "/dev/xvda")]));
    for container in order {
        unplug(&host, container, "/dev/xvda").await.report();
    }
    assert_eq!(host.snapshot().await, clean);
}

#[tokio::test]
async fn what_is_not_shared_or_not_the_same_is_a_conflict() {
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
    // Another volume's path.
    plug(&host, &device, "c2", "/dev/xvdb", &["--shared"]).await.assert_fails("path_taken", 4);
    plug(&host, &device, "c2", "/dev/xvda", &["--shared", "--controller", "scsi1"])
        .await
        .assert_fails("unknown_controller", 2);
    assert_eq!(host.snapshot().await, before);
}

#[tokio::test]
async fn a_shared_volume_is_named_by_its_use() {
    let host = Host::boot().await;
    let device = Loop::of(MIB);
    let id = plug(&host, &device, "c1", "/dev/xvda", &[]).await.report().volumes[0].id.clone();
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
        (of_c1.volumes.len(), of_c1.volumes[0].volume.device_path.as_str()),
        (1, "/dev/xvda")
    );
    assert_eq!(host.verb("list", &["--container", "c2"]).await.listing().volumes.len(), 2);
    host.verb("hot-unplug", &["--volume", &id, "--container", "c1"]).await.report();
    assert_eq!(listed(&host).await, used(&[("c2", "/dev/xvdb"), ("c2", "/dev/xvdc")]));
}

/// The right stays until the last path goes.
#[tokio::test]
async fn two_paths_in_one_container_have_one_right() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let device = Loop::of(MIB);
    plug(&host, &device, "c1", "/dev/xvda", &[]).await.report();
    plug(&host, &device, "c1", "/dev/xvdb", &["--shared"]).await.report();
    unplug(&host, "c1", "/dev/xvda").await.report();
    let kept = host.guest.detachments.lock().unwrap()[0].clone();
    assert!(kept.keep_disk && kept.keep_right);
    unplug(&host, "c1", "/dev/xvdb").await.report();
    let last = host.guest.detachments.lock().unwrap()[0].clone();
    assert!(!last.keep_disk && !last.keep_right);
    assert_eq!(host.snapshot().await, clean);
}

#[tokio::test]
async fn a_further_use_that_fails_leaves_the_first() {
    let mut host = Host::boot().await;
    let device = Loop::of(MIB);
    plug(&host, &device, "c1", "/dev/xvda", &[]).await.report();
    let before = host.snapshot().await;
    host.guest.behave(Behaviour::Fails { reason: Reason::REASON_NO_SPACE, undone: true });
    plug(&host, &device, "c2", "/dev/xvda", &["--shared"]).await.assert_fails("no_space", 9);
    assert_eq!(host.snapshot().await, before);
    host.guest.behave(Behaviour::TellsAnotherSerial);
    plug(&host, &device, "c2", "/dev/xvda", &["--shared"]).await.assert_fails("agent_answer", 1);
    assert!(host.guest.detachments.lock().unwrap()[0].keep_disk);
    assert_eq!(host.snapshot().await, before);
    assert_eq!(listed(&host).await, used(&[("c1", "/dev/xvda")]));
}

#[tokio::test]
async fn only_the_use_of_a_container_that_is_gone_is_stale() {
    let mut host = Host::boot().await;
    let device = Loop::of(MIB);
    plug(&host, &device, "c1", "/dev/xvda", &[]).await.report();
    let with_one = host.snapshot().await;
    plug(&host, &device, "c2", "/dev/xvda", &["--shared"]).await.report();
    host.guest.gone.lock().unwrap().push("c2".into());
    let states: Vec<_> = listed(&host).await.into_iter().map(|(_, _, state)| state).collect();
    assert_eq!(states, [State::Attached, State::ContainerGone]);
    let repaired = host.verb("repair", &[]).await.repaired();
    let told: Vec<_> =
        repaired.volumes.iter().map(|told| (told.container.as_str(), told.did, told.now)).collect();
    assert_eq!(told, [("c1", Did::Kept, Now::Attached), ("c2", Did::Undone, Now::Gone)]);
    assert_eq!(host.snapshot().await, with_one);
    assert!(device.is_claimed());
}

#[tokio::test]
async fn a_repair_of_all_uses_takes_the_disk_with_the_last() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let device = Loop::of(MIB);
    plug(&host, &device, "c1", "/dev/xvda", &[]).await.report();
    plug(&host, &device, "c2", "/dev/xvda", &["--shared"]).await.report();
    host.guest.gone.lock().unwrap().extend(["c1".into(), "c2".into()]);
    let repaired = host.verb("repair", &[]).await.repaired();
    assert!(
        repaired.volumes.len() == 2 && repaired.volumes.iter().all(|told| told.did == Did::Undone)
    );
    assert_eq!(host.snapshot().await, clean);
    assert!(!device.is_claimed());
}

/// As for the first use: completed by the same command, completed or undone by repair.
#[cfg(feature = "fault")]
#[rstest]
#[tokio::test]
async fn a_killed_further_use_is_completed_or_undone(
    #[values("after-note-use", "after-begin-use", "after-attach", "after-outcome")] point: &str,
    #[values("repeat", "repair", "unplug")] way: &str,
) {
    let mut host = Host::boot().await;
    let device = Loop::of(MIB);
    plug(&host, &device, "c1", "/dev/xvda", &[]).await.report();
    let with_one = host.snapshot().await;
    let shared = ["--sandbox", "s1", "--container", "c2", "--shared"];
    let mut command = host.command(&[(device.path(), "/dev/xvda")], &shared);
    let killed = run(command.env("ECR_RUNTIME_FAULT", format!("{point}=kill"))).await;
    assert_eq!(killed.exit_code, Some(-9), "{killed:?}");
    let expected = if point == "after-outcome" { State::Attached } else { State::Incomplete };
    assert_eq!(listed(&host).await[1].2, expected);
    let both = used(&[("c1", "/dev/xvda"), ("c2", "/dev/xvda")]);
    match way {
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
            let told = &repaired.volumes[1];
            match point {
                "after-note-use" | "after-begin-use" => {
                    assert_eq!((told.did, told.now), (Did::Undone, Now::Gone));
                    assert_eq!(host.snapshot().await, with_one);
                }
                "after-attach" => assert_eq!((told.did, told.now), (Did::Completed, Now::Attached)),
                _ => assert_eq!((told.did, told.now), (Did::Kept, Now::Attached)),
            }
            if !matches!(point, "after-note-use" | "after-begin-use") {
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
async fn a_killed_unplug_of_one_use_is_completed(
    #[values("after-detach", "remove-after-free-place", "after-remove")] point: &str,
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
        // With the disk there the node alone is gone: it is made again.
        let repaired = host.verb("repair", &[]).await.repaired();
        assert_eq!(repaired.volumes.len(), if point == "after-remove" { 1 } else { 2 });
        assert!(repaired.volumes.iter().all(|told| told.now == Now::Attached), "{repaired:?}");
        if point != "after-remove" {
            assert_eq!(
                host.snapshot().await["query-named-block-nodes"],
                nodes,
                "each has its place again"
            );
        }
    } else {
        let again = unplug(&host, container, "/dev/xvda").await;
        match point {
            "after-remove" => again.assert_fails("volume_not_found", 3),
            _ => assert_eq!(again.report().result, Outcome::Detached),
        }
        assert_eq!(listed(&host).await, used(&[(rest, "/dev/xvda")]));
    }
    assert!(device.is_claimed());
}
