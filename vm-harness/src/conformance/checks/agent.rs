//! What the agent says of itself and of its guest.

use block_volume_api::block_volume::{FilterMode, PathUse, Reason};

use super::super::{Mode, Stage, check::check, direct::assert_refused, report::FEATURE};
use super::Check;
use crate::Container;

pub(super) const CHECKS: &[Check] = &[
    check!(
        "agent",
        serves_the_plugin,
        "the agent answers the plugin's Probe: it was built with it, and its policy allows it"
    )
    .gate(),
    check!(
        "agent",
        names_the_feature,
        "GetGuestDetails lists the feature block-volume, by which hosts find it"
    ),
    check!(
        "agent",
        finds_its_controllers,
        "Probe names the virtio-scsi controllers and the kernel's scan mode"
    ),
    check!(
        "agent",
        tells_a_containers_device_filter,
        "Probe says what stands between a container and other devices"
    ),
    check!(
        "agent",
        tells_what_is_at_a_path,
        "Probe tells a free path from one that is taken, inside of the container"
    ),
    check!("agent", knows_no_other_containers, "a container that does not exist is told as such"),
];

async fn serves_the_plugin(stage: &Stage) {
    let plugin = match &stage.facts().plugin {
        Ok(plugin) => plugin,
        Err(why) => panic!(
            "Probe is not served: {why}\nbuild the agent with the plugin's feature, let its policy allow ProbeBlockVolumeRequest, and \
             name the port of a plugin that has one of its own with --plugin-port (agent-plugin/README.md)"
        ),
    };
    assert_eq!(plugin.api_level, 1, "the API level that this suite speaks");
    for capability in ["attach", "detach", "inspect"] {
        let capabilities = &plugin.probe.capabilities;
        assert!(
            capabilities.iter().any(|known| known == capability),
            "no {capability} in {capabilities:?}"
        );
    }
}

async fn names_the_feature(stage: &Stage) {
    let features = &stage.facts().features;
    assert!(features.iter().any(|feature| feature == FEATURE), "extra_features is {features:?}");
}

async fn finds_its_controllers(stage: &Stage) {
    let probe = stage.probe("", &[]).await;
    assert!(!probe.scsi_hosts.is_empty(), "Probe names no virtio-scsi host");
    for host in &probe.scsi_hosts {
        let link = format!("readlink -f /sys/class/scsi_host/host{}", host.number);
        let place = stage.sandbox().observer().shell(&link).await;
        assert!(
            place.contains(&host.controller),
            "host{} is at {place}, not at {}",
            host.number,
            host.controller
        );
    }
    let mode = stage.sandbox().observer().shell("cat /sys/module/scsi_mod/parameters/scan").await;
    assert_eq!(probe.scan_mode, mode.trim());
}

async fn tells_a_containers_device_filter(stage: &Stage) {
    for container in [&stage.container, &stage.ruled] {
        let probe = stage.probe(container.id(), &[]).await;
        assert!(probe.failure.is_none(), "{}", probe.failure.message);
        assert!(!probe.container.user_namespace, "it has no user namespace");
        let told = probe.container.filter.mode.enum_value().unwrap_or_default();
        assert_eq!(told, filter_of(stage, container).await, "container {}", container.id());
    }
}

/// As the kernel has it.
async fn filter_of(stage: &Stage, container: &Container) -> FilterMode {
    if stage.facts().mode == Mode::V1 {
        return FilterMode::FILTER_MODE_V1;
    }
    let cgroup = container.exec(&["cat", "/proc/self/cgroup"]).await;
    let in_own_namespace = String::from_utf8_lossy(&cgroup).trim().ends_with("::/");
    let programs = stage.sandbox().observer().programs(&format!("/pod/{}", container.id())).await;
    match programs {
        Ok(programs) if programs.is_empty() => FilterMode::FILTER_MODE_NONE,
        Ok(_) => FilterMode::FILTER_MODE_BPF,
        Err(error) => panic!(
            "its cgroup is not /pod/ID, as the request said (a cgroup namespace of its own: {in_own_namespace}): {}",
            error.chain()
        ),
    }
}

async fn tells_what_is_at_a_path(stage: &Stage) {
    let container = &stage.container;
    container.exec(&["touch", "/dev/conformance-file"]).await;
    let paths = ["/dev/conformance-free", "/dev/conformance-file", "/no/such/directory"];
    let probe = stage.probe(container.id(), &paths).await;
    container.exec(&["rm", "/dev/conformance-file"]).await;
    assert!(probe.failure.is_none(), "{}", probe.failure.message);
    let told: Vec<_> = probe
        .container
        .paths
        .iter()
        .map(|path| path.use_.enum_value().unwrap_or_default())
        .collect();
    let expected =
        [PathUse::PATH_USE_FREE, PathUse::PATH_USE_TAKEN, PathUse::PATH_USE_PARENT_MISSING];
    assert_eq!(told, expected, "{paths:?}");
}

async fn knows_no_other_containers(stage: &Stage) {
    let probe = stage.probe("conformance-unknown", &[]).await;
    let failure = probe.failure.as_ref().map(|failure| failure.reason.enum_value());
    assert_eq!(failure, Some(Ok(Reason::REASON_CONTAINER_NOT_FOUND)), "{:?}", probe.failure);
    let mut attachment = stage.nowhere().to(&stage.container, "/dev/conformance");
    attachment.container_id = "conformance-unknown".to_owned();
    let answer = stage.attach(vec![attachment], stage.soon()).await;
    assert_refused(&answer.failure, Reason::REASON_CONTAINER_NOT_FOUND);
}
