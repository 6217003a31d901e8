//! Where the device node appears, and where it must not appear.

use block_volume_api::block_volume::Reason;

use super::super::{
    Fixture, GuestInfo,
    check::check,
    fixture::has,
    raw_client::{MIB, assert_refused},
};
use super::Check;
use crate::{Volume, random_bytes};

pub(super) const CHECKS: &[Check] = &[
    check!(
        "node",
        is_in_the_container_and_nowhere_else,
        "neither the agent's own /dev nor another container gets the node",
        breaks: "The node is made in the agent's mount namespace, or at a path that several containers \
         share, such as a bind mount of the guest's /dev.",
        look: "/proc/PID/mountinfo of the container's first process: what is mounted at /dev."
    ),
    check!(
        "node",
        taken_path_is_refused,
        "what is at the path already stays, and QEMU is not changed",
        breaks: "What is at the path is looked up in another mount namespace than the one where the node \
         is made.",
        look: "The mount namespace in the glue's Container; ecr-runtime's exit status must be 4, its \
         message names what is at the path."
    ),
    check!(
        "node",
        links_stay_inside_the_container,
        "a parent directory that is a link is resolved below the container's root",
        breaks: "The path is resolved in the agent's mount namespace. This is a way out of a container: \
         do not ship such an agent.",
        look: "The mount namespace in the glue's Container, and openat2(2) with RESOLVE_IN_ROOT in the \
         guest's kernel (Linux 5.6)."
    ),
    check!(
        "node",
        path_with_dots_is_refused,
        "a request with .. in its path, or with a relative path, is invalid",
        breaks: "The request is changed before the plugin gets it, for instance by a policy that cleans \
         paths.",
        look: "The request in the agent's log at level debug."
    ),
    check!(
        "node",
        container_with_a_user_namespace_gets_it,
        "a container whose root is not the guest's root user reads and writes its volume",
        breaks: "The glue does not give the plugin the user namespace of the container, so that the node \
         is made by mknod, which such a container cannot open.",
        look: "The entry `user` of the specification's namespaces in the glue; the node must be a bind \
         node in the container's mountinfo."
    )
    .only_if(GuestInfo::supports_user_namespaces),
];

async fn container_with_a_user_namespace_gets_it(fixture: &Fixture) {
    const PATH: &str = "/dev/conformance";
    let container = fixture.user_namespace.as_ref().expect("the check applies only if it exists");
    let volume = Volume::image(MIB);
    fixture.plug(container, &volume, PATH).await;
    // Its root is an unprivileged user of the guest; a node that it cannot open would be useless.
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
    assert!(!fixture.guest_has(PATH).await, "the agent's own mount namespace has a node");
    fixture.unplug(container, PATH).await;
    assert!(!has(container, PATH).await, "the path still exists after the unplug");
}

async fn is_in_the_container_and_nowhere_else(fixture: &Fixture) {
    const PATH: &str = "/dev/conformance";
    let volume = Volume::image(MIB);
    let before = fixture.snapshot().await;
    fixture.plug(&fixture.container, &volume, PATH).await;
    let leftovers =
        fixture.container.exec(&["sh", "-c", "ls -a /dev | grep '^.ecrblk-' || true"]).await;
    let found = (
        has(&fixture.container, PATH).await,
        has(&fixture.sibling, PATH).await,
        fixture.guest_has(PATH).await,
        String::from_utf8_lossy(&leftovers).trim().to_owned(),
    );
    assert!(found.0, "there is no node in the container");
    assert!(!found.1, "another container has a node, too");
    assert!(!found.2, "the agent's own mount namespace has a node");
    assert_eq!(found.3, "", "temporary nodes are left over");
    fixture.unplug(&fixture.container, PATH).await;
    assert!(!has(&fixture.container, PATH).await, "the node still exists after the unplug");
    let after = fixture.snapshot().await;
    assert_eq!(after.container_devices, before.container_devices);
}

async fn taken_path_is_refused(fixture: &Fixture) {
    const PATH: &str = "/dev/conformance-taken";
    let volume = Volume::image(MIB);
    fixture.container.exec(&["sh", "-c", &format!("echo mine >{PATH}")]).await;
    let before = fixture.snapshot().await;
    fixture.hot_plug(&fixture.container, &[(&volume, PATH)]).run().await.failed_with(4);
    fixture.assert_as_before(&before).await;
    // A caller that does not call Probe first is refused, too.
    let disk = fixture.add_disk().await;
    let answer = fixture
        .attach(vec![disk.attachment(&fixture.container, PATH)], fixture.short_limit())
        .await;
    assert_refused(&answer.failure, Reason::REASON_PATH_TAKEN);
    fixture.remove(&disk).await;
    fixture.assert_as_before(&before).await;
    assert_eq!(fixture.container.exec(&["cat", PATH]).await, b"mine\n");
    fixture.container.exec(&["rm", PATH]).await;
}

async fn links_stay_inside_the_container(fixture: &Fixture) {
    // Resolved in the agent's mount namespace, the link would lead to an existing directory of the
    // guest's own /dev.
    let observer = fixture.sandbox().observer();
    let prepare =
        "mkdir /dev/conformance && ln -s /../../../../../../dev/conformance /dev/conformance-link";
    fixture.container.exec(&["sh", "-c", prepare]).await;
    observer.shell("mkdir /dev/conformance").await;
    let volume = Volume::image(MIB);
    let path = "/dev/conformance-link/volume";
    fixture.plug(&fixture.container, &volume, path).await;
    let outside = observer.shell("ls /dev/conformance").await;
    assert!(
        has(&fixture.container, "/dev/conformance/volume").await,
        "the node is not at the target of the link"
    );
    assert_eq!(outside, "", "the link was followed out of the container");
    fixture.unplug(&fixture.container, path).await;
    fixture.container.exec(&["rm", "-r", "/dev/conformance", "/dev/conformance-link"]).await;
    observer.shell("rmdir /dev/conformance").await;
}

async fn path_with_dots_is_refused(fixture: &Fixture) {
    let disk = fixture.absent_disk();
    for path in [
        "/dev/../conformance",
        "dev/conformance",
        "/dev/./conformance",
        "/dev//conformance",
        "/",
        "",
    ] {
        let answer = fixture
            .attach(vec![disk.attachment(&fixture.container, path)], fixture.short_limit())
            .await;
        assert_refused(&answer.failure, Reason::REASON_INVALID_REQUEST);
    }
}
