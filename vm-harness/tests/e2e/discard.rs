//! What a container discards is given back to the file system of the host.

use std::{fs, os::unix::fs::MetadataExt};

use rstest::rstest;
use vm_harness::{Sandbox, Volume};

use super::{MIB, sandbox};

#[rstest]
#[tokio::test]
async fn what_the_container_discards_is_a_hole_in_the_image(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    // Its content is random, so that all of it is allocated.
    let volume = Volume::image(8 * MIB);
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let allocated = || fs::metadata(volume.path()).unwrap().blocks() * 512;
    assert!(allocated() >= 8 * MIB);
    let discard = ["/bin/busybox", "blkdiscard", "-o", "4194304", "-l", "4194304", "/dev/xvda"];
    container.exec(&discard).await;
    assert!(allocated() < 5 * MIB, "{} bytes are allocated", allocated());
    assert!(volume.bytes(4 * MIB..8 * MIB).iter().all(|&byte| byte == 0));
}
