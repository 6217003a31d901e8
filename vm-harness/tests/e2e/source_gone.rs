//! A source that fails on the host, completely or for writes only. The container gets I/O errors
//! and nothing else does, QEMU and the guest count them, and the volume can be unplugged.

use std::fs::OpenOptions;

use rstest::rstest;
use serde_json::Value;
use vm_harness::{Sandbox, Snapshot, Volume};

use super::{
    MIB,
    host_failures::claim_is_free,
    hot_unplug::{at, query_volumes, unplug, verb},
    sandbox,
    stats::stats,
};

fn errors(stats: &Value, operation: &str) -> [u64; 2] {
    let pointers = [&*format!("/qemu/{operation}/failed"), "/guest/scsi_errors"];
    pointers.map(|pointer| {
        stats.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("{stats}"))
    })
}

/// The file behind the loop device is truncated: reads fail in the container, QEMU and the guest
/// continue.
#[rstest]
#[tokio::test]
async fn reads_fail_and_are_counted_and_the_volume_can_be_unplugged(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let (volume, neighbour) = (Volume::loop_device(4 * MIB), Volume::image(MIB));
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let this_volume = ["--volume", plugged.id()];
    let none = errors(&stats(&sandbox, &this_volume).await, "read");
    sandbox.hot_plug(&container, &neighbour, "/dev/xvdb").await;
    OpenOptions::new().write(true).open(volume.image_path()).unwrap().set_len(0).unwrap();
    let read = ["dd", "if=/dev/xvda", "of=/dev/null", "bs=4096", "count=1", "iflag=direct"];
    let message = container.exec_fails(&read).await;
    assert!(message.contains("Input/output error"), "{message}");
    let counted = stats(&sandbox, &this_volume).await;
    assert!(
        none.iter().zip(errors(&counted, "read")).all(|(none, some)| some > *none),
        "one side counted no error: {none:?}, then {counted}"
    );
    assert_eq!(query_volumes(&sandbox, "inspect", &this_volume).await[0]["state"], "attached");
    // The VM continues to run, and the neighbour still works.
    assert_eq!(container.read("/dev/xvdb", 0..MIB).await, neighbour.bytes(0..MIB));
    for path in ["/dev/xvda", "/dev/xvdb"] {
        assert_eq!(unplug(&sandbox, &at(&container, path)).await.result, "detached");
    }
    before.assert_unchanged(&sandbox, &[&container]).await;
    assert!(claim_is_free(&volume));
}

/// Data that the container has written and the volume does not accept is not discarded silently.
#[rstest]
#[tokio::test]
async fn data_that_cannot_be_written_back_is_reported_before_it_is_lost(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let volume = Volume::loop_device(2 * MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    // Everything except the inode number.
    let node = ["stat", "-c", "%f %t:%T %u:%g", "/dev/xvda"];
    let original = container.exec(&node).await;
    // The device is now smaller than QEMU assumes. The write is in the guest's cache and fails at
    // writeback.
    volume.resize(MIB);
    let write = "dd if=/dev/zero of=/dev/xvda bs=4k seek=400 count=1 conv=notrunc 2>&1";
    container.exec(&["sh", "-c", write]).await;
    let unplug = async |more: &[&str]| {
        let more = [&at(&container, "/dev/xvda")[..], more].concat();
        verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &more).run().await
    };
    let (_, message) = unplug(&[]).await.failed_with(1);
    for word in [plugged.guest_device(), "not all that was written is saved", "force"] {
        assert!(message.contains(word), "{message}");
    }
    assert_eq!(container.exec(&node).await, original, "the node is restored");
    assert_eq!(query_volumes(&sandbox, "list", &[]).await[0]["state"], "attached");
    assert_eq!(unplug(&["--force"]).await.status, 0);
    before.assert_unchanged(&sandbox, &[&container]).await;
    assert!(claim_is_free(&volume));
}
