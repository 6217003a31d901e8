//! A container that exchanges the path's parent for a trap as fast as it can: long enough for every
//! interleaving.

use std::{collections::BTreeMap, time::Instant};

use rstest::rstest;
use vm_harness::{Sandbox, Snapshot, Volume};

use crate::{
    MIB,
    hot_unplug::unplug_command,
    sandbox,
    swapped_parent::{Swapper, TRAPS, armed_pair, attach_beside_swaps},
};

#[rstest]
#[case::mknod(false)]
#[case::bind(true)]
#[tokio::test]
async fn ten_thousand_swaps_against_the_node_step(
    #[future(awt)] sandbox: Sandbox,
    #[case] user_namespace: bool,
) {
    let (container, sibling) = armed_pair(&sandbox, user_namespace).await;
    let volume = Volume::image(MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let before = Snapshot::of(&sandbox, &[&sibling]).await;
    let mut attachment = plugged.attachment();
    attachment.path = "/dev/arena/a/new/x".to_owned();
    for trap in TRAPS {
        let swaps = attach_beside_swaps(&sandbox, &container, &attachment, trap, 200).await;
        assert!(swaps > 10_000, "{swaps}");
    }
    before.assert_unchanged(&sandbox, &[&sibling]).await;
}

#[rstest]
#[case::mknod(false)]
#[case::bind(true)]
#[tokio::test]
async fn two_hundred_plugs_beside_a_racing_container(
    #[future(awt)] sandbox: Sandbox,
    #[case] user_namespace: bool,
) {
    let (container, sibling) = armed_pair(&sandbox, user_namespace).await;
    let before = Snapshot::of(&sandbox, &[&sibling]).await;
    let volume = Volume::image(MIB);
    let start = Instant::now();
    let swapper = Swapper::start(&container, TRAPS[0]).await;
    let (mut plugged, mut refused) = (0, BTreeMap::<String, u32>::new());
    for _ in 0..200 {
        let path = "/dev/arena/a/x";
        let finished = sandbox.hot_plug_command(&container, &[(&volume, path)]).run().await;
        match finished.status {
            0 => {
                plugged += 1;
                let gone = unplug_command(&sandbox, &container, path).run().await;
                assert_eq!(gone.status, 0, "{}{}", gone.stdout, gone.stderr);
            }
            status => {
                let (reason, message) = finished.failed_with(status);
                assert!(
                    is_refusal(status, &reason, &message),
                    "exit status {status}, {reason}: {message}"
                );
                *refused.entry(reason).or_default() += 1;
            }
        }
    }
    let swaps = swapper.stop().await;
    println!("{plugged} plugged, refused {refused:?}, {swaps} swaps, {:?}", start.elapsed());
    before.assert_unchanged(&sandbox, &[&sibling]).await;
}

/// What a plug may say of a parent that is exchanged under it: errors of its own, and none that
/// leaves something.
fn is_refusal(status: i32, reason: &str, message: &str) -> bool {
    match (status, reason) {
        (1, "guest_system") => message.contains("was moved or replaced by the container meanwhile"),
        (3, "parent_missing") | (4, "path_taken") | (10, "unsupported") => true,
        _ => false,
    }
}
