//! Device filters: the container of a volume may use it, and no other container may.

use super::super::{Fixture, GuestInfo, check::check, raw_client::MIB};
use super::Check;
use crate::{Container, Volume, random_bytes};

pub(super) const CHECKS: &[Check] = &[
    check!(
        "filter",
        filtered_container_uses_its_volume,
        "a container with a device filter reads and writes its volume",
        breaks: "cgroup v1: the rule is allowed in the container's cgroup and not in the pod's first. \
         cgroup v2: the agent attaches device programs without BPF_F_ALLOW_MULTI, or the kernel \
         lacks CONFIG_CGROUP_BPF.",
        look: "cgroup v1: devices.list of the pod and of the container. v2: the programs of the \
         container's cgroup; docs/guest-kernel.md."
    )
    .only_if(GuestInfo::has_filter),
    check!(
        "filter",
        sibling_cannot_open_it,
        "another container that makes a node of the same number cannot open it",
        breaks: "The right was granted to the pod as a whole, or the containers have one cgroup.",
        look: "devices.list (v1) or the programs (v2) of the sibling's cgroup; the cgroup paths of both \
         containers in the glue."
    )
    .only_if(GuestInfo::has_filter),
    check!(
        "filter",
        permission_ends_with_the_volume,
        "after the unplug the container cannot open the next disk of that number",
        breaks: "The unplug does not find the cgroup in which the plug added the right, or the agent \
         writes the rules of the container again, without the plugin (UpdateContainer).",
        look: "devices.list (v1) or the programs (v2) of the container's cgroup after an unplug."
    )
    .only_if(GuestInfo::has_filter),
    check!(
        "filter",
        container_without_a_filter_gets_none,
        "a container without a device program gets none",
        breaks: "The glue names rules that the agent does not apply, so that the plugin makes a program \
         for them.",
        look: "device_rules in the glue's Container, and what the agent does with them on cgroup v2: \
         kata-agent 4.1 applies none."
    )
    .only_if(GuestInfo::has_no_filter),
];

const PATH: &str = "/dev/conformance";

async fn filtered_container_uses_its_volume(fixture: &Fixture) {
    let volume = Volume::image(MIB);
    fixture.plug(&fixture.filtered, &volume, PATH).await;
    assert!(
        fixture.filtered.read(PATH, 0..4096).await == volume.bytes(0..4096),
        "other bytes than the host's"
    );
    let fresh = random_bytes(4096);
    fixture.filtered.write(PATH, 8192, &fresh).await;
    assert!(
        volume.bytes(8192..12288) == fresh,
        "the host reads other bytes than the container wrote"
    );
    fixture.unplug(&fixture.filtered, PATH).await;
}

async fn sibling_cannot_open_it(fixture: &Fixture) {
    let volume = Volume::image(MIB);
    let plugged = fixture.plug(&fixture.filtered, &volume, PATH).await;
    assert!(
        !can_open(&fixture.sibling, plugged.device_number()).await,
        "the sibling opened the volume"
    );
    fixture.unplug(&fixture.filtered, PATH).await;
}

async fn permission_ends_with_the_volume(fixture: &Fixture) {
    let (volume, next) = (Volume::image(MIB), Volume::image(MIB));
    let first = fixture.plug(&fixture.filtered, &volume, PATH).await;
    assert!(
        can_open(&fixture.filtered, first.device_number()).await,
        "it cannot open the disk while it has the volume"
    );
    fixture.unplug(&fixture.filtered, PATH).await;
    let second = fixture.plug(&fixture.sibling, &next, PATH).await;
    assert_eq!(second.device_number(), first.device_number(), "the kernel reuses the number");
    assert!(
        !can_open(&fixture.filtered, first.device_number()).await,
        "it opened the sibling's volume"
    );
    fixture.unplug(&fixture.sibling, PATH).await;
}

async fn container_without_a_filter_gets_none(fixture: &Fixture) {
    let volume = Volume::image(MIB);
    let plugged = fixture.plug(&fixture.container, &volume, PATH).await;
    assert_eq!(plugged.text("device_filter"), "none");
    let programs =
        fixture.sandbox().observer().programs(&format!("/pod/{}", fixture.container.id())).await;
    let programs = programs.unwrap_or_else(|error| panic!("{}", error.chain()));
    assert_eq!(programs, [], "a device program was attached");
    fixture.unplug(&fixture.container, PATH).await;
}

/// Whether a container can make a device node of this number and read from it.
async fn can_open(container: &Container, number: &str) -> bool {
    let (major, minor) = number.split_once(':').expect("a device number has two parts");
    let script = format!(
        "mknod /dev/conformance-own b {major} {minor} && \
         dd if=/dev/conformance-own of=/dev/null count=1; s=$?; \
         rm /dev/conformance-own; exit $s"
    );
    let output = container.try_exec(&["sh", "-c", &script], b"").await;
    let output = output.unwrap_or_else(|error| panic!("{}", error.chain()));
    let error = output.error_text();
    assert!(output.status == 0 || error.contains("Operation not permitted"), "{error}");
    output.status == 0
}
