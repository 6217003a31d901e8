//! What the agent reports about itself and its guest.

use block_volume_api::block_volume::{FilterMode, PathUse, Reason};

use super::super::{Fixture, Mode, check::check, guest_info::FEATURE, raw_client::assert_refused};
use super::Check;
use crate::Container;

pub(super) const CHECKS: &[Check] = &[
    check!(
        "agent",
        serves_the_plugin,
        "the agent answers Probe: it was built with the plugin, and its policy allows it",
        breaks: "The agent was built without the feature block-volume, its policy has no rule for \
         ProbeBlockVolumeRequest, or the plugin is served on a port of its own that was not given \
         with --plugin-port.",
        look: "The first line of the output says which: WITHOUT the plugin, or what the agent replied. \
         docs/builders-guide.md (the build and the registration of the service), docs/policy.md."
    )
    .gate(),
    check!(
        "agent",
        names_the_feature,
        "GetGuestDetails lists the feature block-volume, by which hosts find it",
        breaks: "The feature is compiled in, but the list of build features that GetGuestDetails returns \
         does not have its name.",
        look: "kata-agent: get_build_features in src/features.rs; docs/builders-guide.md."
    ),
    check!(
        "agent",
        finds_its_controllers,
        "Probe names the virtio-scsi controllers and the kernel's scan mode",
        breaks: "The guest's kernel has no virtio_scsi, or the agent does not see sysfs at /sys: the \
         plugin finds its controllers there.",
        look: "/sys/class/scsi_host/*/proc_name in the guest (`vm-harness boot` starts one), and \
         docs/guest-kernel.md for the options of the kernel."
    ),
    check!(
        "agent",
        reports_a_containers_device_filter,
        "Probe reports which device filter a container has",
        breaks: "The glue gives the plugin another cgroup than the container has (cgroupsPath of its \
         specification), or the agent has moved it. On cgroup v1 the devices controller is not \
         mounted.",
        look: "The cgroup path in the glue's Container, /proc/PID/cgroup of the container's first \
         process, and docs/builders-guide.md (cgroups)."
    ),
    check!(
        "agent",
        reports_what_is_at_a_path,
        "Probe reports whether a path of the container is free or taken",
        breaks: "The glue gives the plugin the agent's own mount namespace, or that of another container, \
         instead of the pinned one.",
        look: "The mount namespace in the glue's Container: the path of the entry `mount` of the \
         specification's namespaces, which kata-agent pins when the container starts."
    ),
    check!(
        "agent",
        knows_no_other_containers,
        "a container that does not exist is not found",
        breaks: "The glue's look-up does not return ContainerError::Unknown for an unknown ID, for \
         instance because it maps all errors to one.",
        look: "The function `container` of the glue \
         (agent-plugin/examples/kata-agent/src/block_volume.rs is the example)."
    ),
];

async fn serves_the_plugin(fixture: &Fixture) {
    let plugin = match &fixture.info().plugin {
        Ok(plugin) => plugin,
        Err(why) => panic!(
            "Probe is not served: {why}\nbuild the agent with the plugin's feature, allow \
             ProbeBlockVolumeRequest in its policy, and give the port of a plugin that has a \
             separate one with --plugin-port (agent-plugin/README.md)"
        ),
    };
    assert_eq!(plugin.api_level, 1, "the API level of this suite");
    for capability in ["attach", "detach", "inspect"] {
        let capabilities = &plugin.probe.capabilities;
        assert!(
            capabilities.iter().any(|known| known == capability),
            "no {capability} in {capabilities:?}"
        );
    }
}

async fn names_the_feature(fixture: &Fixture) {
    let features = &fixture.info().features;
    assert!(features.iter().any(|feature| feature == FEATURE), "extra_features is {features:?}");
}

async fn finds_its_controllers(fixture: &Fixture) {
    let probe = fixture.probe("", &[]).await;
    assert!(!probe.scsi_hosts.is_empty(), "Probe names no virtio-scsi host");
    for host in &probe.scsi_hosts {
        let link = format!("readlink -f /sys/class/scsi_host/host{}", host.number);
        let device = fixture.sandbox().observer().shell(&link).await;
        assert!(
            device.contains(&host.controller),
            "host{} is at {device}, not at {}",
            host.number,
            host.controller
        );
    }
    let mode = fixture.sandbox().observer().shell("cat /sys/module/scsi_mod/parameters/scan").await;
    assert_eq!(probe.scan_mode, mode.trim());
}

async fn reports_a_containers_device_filter(fixture: &Fixture) {
    for container in [&fixture.container, &fixture.filtered] {
        let probe = fixture.probe(container.id(), &[]).await;
        assert!(probe.failure.is_none(), "{}", probe.failure.message);
        assert!(!probe.container.user_namespace, "it has no user namespace");
        let reported = probe.container.filter.mode.enum_value().unwrap_or_default();
        assert_eq!(reported, filter_of(fixture, container).await, "container {}", container.id());
    }
}

/// Returns the device filter of a container, as the kernel reports it.
async fn filter_of(fixture: &Fixture, container: &Container) -> FilterMode {
    if fixture.info().mode == Mode::V1 {
        return FilterMode::FILTER_MODE_V1;
    }
    let cgroup = container.exec(&["cat", "/proc/self/cgroup"]).await;
    let in_own_namespace = String::from_utf8_lossy(&cgroup).trim().ends_with("::/");
    let programs = fixture.sandbox().observer().programs(&format!("/pod/{}", container.id())).await;
    match programs {
        Ok(programs) if programs.is_empty() => FilterMode::FILTER_MODE_NONE,
        Ok(_) => FilterMode::FILTER_MODE_BPF,
        Err(error) => panic!(
            "its cgroup is not /pod/ID, which was requested (it has its own cgroup namespace: \
             {in_own_namespace}): {}",
            error.chain()
        ),
    }
}

async fn reports_what_is_at_a_path(fixture: &Fixture) {
    let container = &fixture.container;
    container.exec(&["touch", "/dev/conformance-file"]).await;
    let paths = ["/dev/conformance-free", "/dev/conformance-file", "/no/such/directory"];
    let probe = fixture.probe(container.id(), &paths).await;
    container.exec(&["rm", "/dev/conformance-file"]).await;
    assert!(probe.failure.is_none(), "{}", probe.failure.message);
    let reported: Vec<_> = probe
        .container
        .paths
        .iter()
        .map(|path| path.use_.enum_value().unwrap_or_default())
        .collect();
    let expected =
        [PathUse::PATH_USE_FREE, PathUse::PATH_USE_TAKEN, PathUse::PATH_USE_PARENT_MISSING];
    assert_eq!(reported, expected, "{paths:?}");
}

async fn knows_no_other_containers(fixture: &Fixture) {
    let probe = fixture.probe("conformance-unknown", &[]).await;
    let failure = probe.failure.as_ref().map(|failure| failure.reason.enum_value());
    assert_eq!(failure, Some(Ok(Reason::REASON_CONTAINER_NOT_FOUND)), "{:?}", probe.failure);
    let mut attachment = fixture.absent_disk().attachment(&fixture.container, "/dev/conformance");
    attachment.container_id = "conformance-unknown".to_owned();
    let answer = fixture.attach(vec![attachment], fixture.short_limit()).await;
    assert_refused(&answer.failure, Reason::REASON_CONTAINER_NOT_FOUND);
}
