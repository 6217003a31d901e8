//! Device filters: the container that a volume is for may use it, and no other container may.

use super::super::{Facts, Stage, check::check, direct::MIB};
use super::Check;
use crate::{Container, Volume, random_bytes};

pub(super) const CHECKS: &[Check] = &[
    check!(
        "filter",
        filtered_container_uses_its_volume,
        "a container with a device filter reads and writes its volume"
    )
    .only_if(Facts::has_filter),
    check!(
        "filter",
        sibling_cannot_open_it,
        "a sibling that makes a node of the same number may not open it"
    )
    .only_if(Facts::has_filter),
    check!(
        "filter",
        right_goes_with_the_volume,
        "after the unplug the container has no right to the next disk of that number"
    )
    .only_if(Facts::has_filter),
    check!(
        "filter",
        container_without_a_filter_gets_none,
        "where no device program is, none is attached"
    )
    .only_if(Facts::has_no_filter),
];

const PATH: &str = "/dev/conformance";

async fn filtered_container_uses_its_volume(stage: &Stage) {
    let volume = Volume::image(MIB);
    stage.plug(&stage.ruled, &volume, PATH).await;
    assert!(
        stage.ruled.read(PATH, 0..4096).await == volume.bytes(0..4096),
        "other bytes than the host's"
    );
    let fresh = random_bytes(4096);
    stage.ruled.write(PATH, 8192, &fresh).await;
    assert!(
        volume.bytes(8192..12288) == fresh,
        "the host reads other bytes than the container wrote"
    );
    stage.unplug(&stage.ruled, PATH).await;
}

async fn sibling_cannot_open_it(stage: &Stage) {
    let volume = Volume::image(MIB);
    let plugged = stage.plug(&stage.ruled, &volume, PATH).await;
    assert!(
        !can_open(&stage.sibling, plugged.device_number()).await,
        "the sibling opened the volume"
    );
    stage.unplug(&stage.ruled, PATH).await;
}

async fn right_goes_with_the_volume(stage: &Stage) {
    let (volume, next) = (Volume::image(MIB), Volume::image(MIB));
    let first = stage.plug(&stage.ruled, &volume, PATH).await;
    assert!(
        can_open(&stage.ruled, first.device_number()).await,
        "it has no right while it has the volume"
    );
    stage.unplug(&stage.ruled, PATH).await;
    let second = stage.plug(&stage.sibling, &next, PATH).await;
    assert_eq!(second.device_number(), first.device_number(), "the kernel gives the number again");
    assert!(!can_open(&stage.ruled, first.device_number()).await, "it opened the sibling's volume");
    stage.unplug(&stage.sibling, PATH).await;
}

async fn container_without_a_filter_gets_none(stage: &Stage) {
    let volume = Volume::image(MIB);
    let plugged = stage.plug(&stage.container, &volume, PATH).await;
    assert_eq!(plugged.text("device_filter"), "none");
    let programs =
        stage.sandbox().observer().programs(&format!("/pod/{}", stage.container.id())).await;
    let programs = programs.unwrap_or_else(|error| panic!("{}", error.chain()));
    assert_eq!(programs, [], "a device program was attached");
    stage.unplug(&stage.container, PATH).await;
}

/// The container makes a node of its own; whether it can read through it.
async fn can_open(container: &Container, number: &str) -> bool {
    let (major, minor) = number.split_once(':').expect("a device number has two parts");
    let script = format!(
        "mknod /dev/conformance-own b {major} {minor} && dd if=/dev/conformance-own of=/dev/null count=1; s=$?; \
         rm /dev/conformance-own; exit $s"
    );
    let output = container.try_exec(&["sh", "-c", &script], b"").await;
    let output = output.unwrap_or_else(|error| panic!("{}", error.chain()));
    let error = output.error_text();
    assert!(output.status == 0 || error.contains("Operation not permitted"), "{error}");
    output.status == 0
}
