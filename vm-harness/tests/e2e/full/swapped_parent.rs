//! A container that exchanges the parent directory of the device path for something else as fast as
//! it can, long enough to hit every interleaving.

use std::{collections::BTreeMap, time::Instant};

use rstest::rstest;
use vm_harness::{Sandbox, Snapshot, Volume};

use crate::{
    MIB,
    hot_unplug::unplug_command,
    sandbox,
    swapped_parent::{REPLACEMENTS, Swapper, attach_during_swaps, swapping_pair},
};

#[rstest]
#[case::mknod(false)]
#[case::bind(true)]
#[tokio::test]
async fn ten_thousand_swaps_of_the_parent_during_the_node_step(
    #[future(awt)] sandbox: Sandbox,
    #[case] user_namespace: bool,
) {
    let (container, sibling) = swapping_pair(&sandbox, user_namespace).await;
    let volume = Volume::image(MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let before = Snapshot::of(&sandbox, &[&sibling]).await;
    let mut attachment = plugged.attachment();
    attachment.path = "/dev/arena/a/new/x".to_owned();
    for replacement in REPLACEMENTS {
        let swaps = attach_during_swaps(&sandbox, &container, &attachment, replacement, 200).await;
        assert!(swaps > 10_000, "{swaps}");
    }
    before.assert_unchanged(&sandbox, &[&sibling]).await;
}

#[rstest]
#[case::mknod(false)]
#[case::bind(true)]
#[tokio::test]
async fn two_hundred_plugs_while_the_container_swaps_the_parent(
    #[future(awt)] sandbox: Sandbox,
    #[case] user_namespace: bool,
) {
    let (container, sibling) = swapping_pair(&sandbox, user_namespace).await;
    let before = Snapshot::of(&sandbox, &[&sibling]).await;
    let volume = Volume::image(MIB);
    let start = Instant::now();
    let swapper = Swapper::start(&container, REPLACEMENTS[0]).await;
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

/// Whether the error is one that a hot-plug may report when its parent directory is exchanged: a
/// specific error, and none that leaves something behind.
fn is_refusal(status: i32, reason: &str, message: &str) -> bool {
    match (status, reason) {
        (1, "guest_system") => message.contains("was moved or replaced by the container meanwhile"),
        (3, "parent_missing") | (4, "path_taken") | (10, "unsupported") => true,
        _ => false,
    }
}
