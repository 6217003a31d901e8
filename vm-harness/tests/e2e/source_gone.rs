//! A source that is gone on the host, wholly or for writing: the container gets I/O errors, nobody
//! else does, both sides count them, and the volume can be unplugged.

use std::fs::OpenOptions;

use rstest::rstest;
use serde_json::Value;
use vm_harness::{Sandbox, Snapshot, Volume};

use super::{
    MIB,
    host_failures::claim_is_free,
    hot_unplug::{at, look, unplug, verb},
    sandbox,
    stats::stats,
};

fn errors(stats: &Value, operation: &str) -> [u64; 2] {
    let pointers = [&*format!("/qemu/{operation}/failed"), "/guest/scsi_errors"];
    pointers.map(|pointer| {
        stats.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("{stats}"))
    })
}

/// The file below the loop device is cut: reads fail in the container, QEMU and the guest go on.
#[rstest]
#[tokio::test]
async fn reads_fail_and_are_counted_and_the_volume_can_be_unplugged(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let (volume, neighbour) = (Volume::loop_device(4 * MIB), Volume::image(MIB));
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let of_it = ["--volume", plugged.id()];
    let none = errors(&stats(&sandbox, &of_it).await, "read");
    sandbox.hot_plug(&container, &neighbour, "/dev/xvdb").await;
    OpenOptions::new().write(true).open(volume.image_path()).unwrap().set_len(0).unwrap();
    let read = ["dd", "if=/dev/xvda", "of=/dev/null", "bs=4096", "count=1", "iflag=direct"];
    let message = container.exec_fails(&read).await;
    assert!(message.contains("Input/output error"), "{message}");
    let counted = stats(&sandbox, &of_it).await;
    assert!(
        none.iter().zip(errors(&counted, "read")).all(|(none, some)| some > *none),
        "one side counts no error: {none:?}, then {counted}"
    );
    assert_eq!(look(&sandbox, "inspect", &of_it).await[0]["state"], "attached");
    // The VM runs on, and so does the neighbour.
    assert_eq!(container.read("/dev/xvdb", 0..MIB).await, neighbour.bytes(0..MIB));
    for path in ["/dev/xvda", "/dev/xvdb"] {
        assert_eq!(unplug(&sandbox, &at(&container, path)).await.result, "detached");
    }
    before.assert_unchanged(&sandbox, &[&container]).await;
    assert!(claim_is_free(&volume));
}

/// What the container has written and the volume does not take is not thrown away without a word.
#[rstest]
#[tokio::test]
async fn what_cannot_be_saved_is_told_before_it_is_lost(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let volume = Volume::loop_device(2 * MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    // All but the inode's number.
    let node = ["stat", "-c", "%f %t:%T %u:%g", "/dev/xvda"];
    let was = container.exec(&node).await;
    // The device ends earlier than QEMU believes. The write is in the guest's cache, and fails when
    // it is written back.
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
    assert_eq!(container.exec(&node).await, was, "the node is put back");
    assert_eq!(look(&sandbox, "list", &[]).await[0]["state"], "attached");
    assert_eq!(unplug(&["--force"]).await.status, 0);
    before.assert_unchanged(&sandbox, &[&container]).await;
    assert!(claim_is_free(&volume));
}
