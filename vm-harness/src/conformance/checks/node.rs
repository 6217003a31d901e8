//! Where the device node is, and where it is not.

use block_volume_api::block_volume::Reason;

use super::super::{Facts, Stage, check::check, direct::MIB, direct::assert_refused, stage::has};
use super::Check;
use crate::{Volume, random_bytes};

pub(super) const CHECKS: &[Check] = &[
    check!(
        "node",
        is_in_the_container_and_nowhere_else,
        "neither the agent's own /dev nor a sibling gets the node"
    ),
    check!(
        "node",
        taken_path_is_refused,
        "what is at the path already stays, and QEMU is not touched"
    ),
    check!(
        "node",
        links_stay_inside_the_container,
        "a parent that is a link leads to a place below the container's root"
    ),
    check!(
        "node",
        path_with_dots_is_refused,
        "a request with .. in its path, or no absolute one, is invalid"
    ),
    check!(
        "node",
        container_with_a_user_namespace_gets_it,
        "a container whose root is no root of the guest reads and writes its volume"
    )
    .only_if(Facts::serves_own_users),
];

async fn container_with_a_user_namespace_gets_it(stage: &Stage) {
    const PATH: &str = "/dev/conformance";
    let container = stage.own_users.as_ref().expect("the check applies where there is one");
    let volume = Volume::image(MIB);
    stage.plug(container, &volume, PATH).await;
    // Its root is a user of the guest's without any right; a node that it may not open is none.
    assert!(
        container.read(PATH, 0..4096).await == volume.bytes(0..4096),
        "other bytes than the host's"
    );
    let fresh = random_bytes(4096);
    container.write(PATH, 8192, &fresh).await;
    assert!(
        volume.bytes(8192..12288) == fresh,
        "the host reads other bytes than the container wrote"
    );
    assert!(!stage.guest_has(PATH).await, "the agent's own mount namespace has a node");
    stage.unplug(container, PATH).await;
    assert!(!has(container, PATH).await, "something is still there after the unplug");
}

async fn is_in_the_container_and_nowhere_else(stage: &Stage) {
    const PATH: &str = "/dev/conformance";
    let volume = Volume::image(MIB);
    let before = stage.snapshot().await;
    stage.plug(&stage.container, &volume, PATH).await;
    let leftovers =
        stage.container.exec(&["sh", "-c", "ls -a /dev | grep '^.ecrblk-' || true"]).await;
    let there = (
        has(&stage.container, PATH).await,
        has(&stage.sibling, PATH).await,
        stage.guest_has(PATH).await,
        String::from_utf8_lossy(&leftovers).trim().to_owned(),
    );
    assert!(there.0, "there is no node in the container");
    assert!(!there.1, "the sibling has a node, too");
    assert!(!there.2, "the agent's own mount namespace has a node");
    assert_eq!(there.3, "", "temporary nodes are left");
    stage.unplug(&stage.container, PATH).await;
    assert!(!has(&stage.container, PATH).await, "the node is still there after the unplug");
    let after = stage.snapshot().await;
    assert_eq!(after.container_devices, before.container_devices);
}

async fn taken_path_is_refused(stage: &Stage) {
    const PATH: &str = "/dev/conformance-taken";
    let volume = Volume::image(MIB);
    stage.container.exec(&["sh", "-c", &format!("echo mine >{PATH}")]).await;
    let before = stage.snapshot().await;
    stage.hot_plug(&stage.container, &[(&volume, PATH)]).run().await.failed_with(4);
    stage.assert_as_before(&before).await;
    // The same for a caller that does not ask first.
    let disk = stage.add_disk().await;
    let answer = stage.attach(vec![disk.to(&stage.container, PATH)], stage.soon()).await;
    assert_refused(&answer.failure, Reason::REASON_PATH_TAKEN);
    stage.remove(&disk).await;
    stage.assert_as_before(&before).await;
    assert_eq!(stage.container.exec(&["cat", PATH]).await, b"mine\n");
    stage.container.exec(&["rm", PATH]).await;
}

async fn links_stay_inside_the_container(stage: &Stage) {
    // For the agent itself the link leads to a directory of the guest's own /dev, which it has,
    // too.
    let observer = stage.sandbox().observer();
    let prepare =
        "mkdir /dev/conformance && ln -s /../../../../../../dev/conformance /dev/conformance-link";
    stage.container.exec(&["sh", "-c", prepare]).await;
    observer.shell("mkdir /dev/conformance").await;
    let volume = Volume::image(MIB);
    let path = "/dev/conformance-link/volume";
    stage.plug(&stage.container, &volume, path).await;
    let outside = observer.shell("ls /dev/conformance").await;
    assert!(
        has(&stage.container, "/dev/conformance/volume").await,
        "the node is not where the link leads"
    );
    assert_eq!(outside, "", "the link led out of the container");
    stage.unplug(&stage.container, path).await;
    stage.container.exec(&["rm", "-r", "/dev/conformance", "/dev/conformance-link"]).await;
    observer.shell("rmdir /dev/conformance").await;
}

async fn path_with_dots_is_refused(stage: &Stage) {
    let disk = stage.nowhere();
    for path in [
        "/dev/../conformance",
        "dev/conformance",
        "/dev/./conformance",
        "/dev//conformance",
        "/",
        "",
    ] {
        let answer = stage.attach(vec![disk.to(&stage.container, path)], stage.soon()).await;
        assert_refused(&answer.failure, Reason::REASON_INVALID_REQUEST);
    }
}
