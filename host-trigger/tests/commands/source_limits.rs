//! Sources that a disk of the guest cannot be made of as they are: each is refused before anything
//! changes, by a dry run as well, and a resize finds back from whatever an earlier one left.

use std::{path::PathBuf, process::Command};

use crate::common::{
    Host,
    fake_agent::OnResize,
    volume::{Image, Loop},
};
use host_trigger::output::envelope::Outcome;
use rstest::rstest;
use serde_json::json;

const MIB: u64 = 1 << 20;
const LARGE_BLOCKS: [&str; 2] = ["--sector-size", "4096"];
const C1: [&str; 4] = ["--container", "c1", "--device-path", "/dev/xvda"];

/// Makes a loop device over `image` whose blocks have 8 KiB; `None` if the kernel (before 6.15) has
/// none of more than a page.
fn with_8k_blocks(image: &Image) -> Option<Loop> {
    let made = Command::new("losetup")
        .args(["--find", "--show", "--sector-size", "8192"])
        .arg(image.path())
        .output()
        .unwrap();
    let device = PathBuf::from(String::from_utf8(made.stdout).unwrap().trim_end());
    made.status.success().then(|| Loop::at(device))
}

/// Asserts that a hot-plug is refused in every way, with `words` in the message, and that nothing
/// changes.
async fn assert_refused(host: &mut Host, device: &Loop, reason: &str, words: &str) {
    let before = host.snapshot().await;
    for more in [&[][..], &["--read-only"], &["--dry-run"]] {
        let ran = host.plug(device.path(), "/dev/xvda", more).await;
        ran.assert_fails(reason, 6);
        let error = ran.failure();
        assert!(error.message.contains(words) && error.remedy.is_some(), "{error:?}");
    }
    assert_eq!((host.snapshot().await, host.changes().len()), (before, 0));
    assert!(!device.is_claimed());
}

#[tokio::test]
async fn a_size_that_is_not_a_multiple_of_the_block_size_is_refused() {
    let mut host = Host::boot().await;
    let device = Loop::with(8 * MIB + 512, &LARGE_BLOCKS);
    let words = "8389120 bytes, is not a multiple of 4096";
    assert_refused(&mut host, &device, "source_unaligned", words).await;
    device.resize(8 * MIB);
    host.plug(device.path(), "/dev/xvda", &[]).await.report();
}

#[tokio::test]
async fn blocks_that_no_guest_takes_are_refused() {
    let mut host = Host::boot().await;
    let image = Image::of(8 * MIB);
    let Some(device) = with_8k_blocks(&image) else {
        eprintln!("not tested: this kernel has no such loop device");
        return;
    };
    assert_refused(&mut host, &device, "source_block_size", "logical blocks of 8192 bytes").await;
}

#[tokio::test]
async fn a_resize_to_a_part_of_a_block_is_refused_and_the_next_one_works() {
    let mut host = Host::boot().await;
    let device = Loop::with(8 * MIB, &LARGE_BLOCKS);
    host.plug(device.path(), "/dev/xvda", &[]).await.report();
    *host.agent.on_resize.lock().unwrap() = OnResize::TakesWholeBlocks;
    device.resize(9 * MIB + 512);
    let (before, changes) = (host.snapshot().await, host.changes());
    for more in [&[][..], &["--dry-run"], &["--allow-shrink"]] {
        let ran = host.verb("resize", &[&C1[..], more].concat()).await;
        ran.assert_fails("source_unaligned", 6);
    }
    assert_eq!((host.snapshot().await, host.changes()), (before, changes));
    assert!(host.agent.requested_sizes.lock().unwrap().is_empty());
    device.resize(9 * MIB);
    let resized = host.verb("resize", &C1).await.report();
    assert_eq!((resized.result, resized.body.volumes[0].size), (Outcome::Resized, 9 * MIB));
}

/// An earlier release, or another client, gave QEMU a size that the guest cannot have.
#[rstest]
#[case::larger(10 * MIB)]
#[case::what_the_guest_has(8 * MIB)]
#[case::between(9 * MIB)]
#[tokio::test]
async fn a_resize_starts_from_what_the_guest_has(#[case] size: u64) {
    let mut host = Host::boot().await;
    let device = Loop::with(8 * MIB, &LARGE_BLOCKS);
    let id = host.plug(device.path(), "/dev/xvda", &[]).await.report().body.volumes[0].id.clone();
    *host.agent.on_resize.lock().unwrap() = OnResize::TakesWholeBlocks;
    let unaligned = 9 * MIB + 512;
    device.resize(unaligned);
    let node = format!("ecrblk-{id}-n");
    host.execute("block_resize", json!({"node-name": node, "size": unaligned})).await;
    device.resize(size);
    // No data of the guest is beyond the new end, so that this is no shrinking.
    let resized = host.verb("resize", &C1).await.report();
    assert_eq!((resized.result, resized.body.volumes[0].size), (Outcome::Resized, size));
    assert_eq!(*host.agent.requested_sizes.lock().unwrap(), [8 * MIB, size]);
    assert_eq!(host.medium(&id).await["image"]["virtual-size"], size);
    assert_eq!(host.verb("resize", &C1).await.report().result, Outcome::Unchanged);
}
