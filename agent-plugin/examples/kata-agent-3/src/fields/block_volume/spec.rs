//! What the plugin needs of a container's OCI specification, which has fields before Kata 3.8.

use std::convert::TryFrom;
use std::path::PathBuf;

use agent_plugin::DeviceRule;
use oci::{LinuxDeviceCgroup, Spec};

pub(super) use oci::ContainerState;

pub(super) fn mount_namespace(spec: &Spec) -> Option<PathBuf> {
    let namespaces = &spec.linux.as_ref()?.namespaces;
    let mount = namespaces
        .iter()
        .find(|namespace| namespace.r#type == "mount")?;
    Some(PathBuf::from(&mount.path)).filter(|path| !path.as_os_str().is_empty())
}

/// The rules for devices, in order.
pub(super) fn device_rules(spec: &Spec) -> Vec<DeviceRule> {
    let resources = spec
        .linux
        .as_ref()
        .and_then(|linux| linux.resources.as_ref());
    let rules = resources
        .map(|resources| resources.devices.as_slice())
        .unwrap_or_default();
    rules.iter().filter_map(device_rule).collect()
}

fn device_rule(rule: &LinuxDeviceCgroup) -> Option<DeviceRule> {
    let kind = match rule.r#type.as_str() {
        "" | "a" => 'a',
        "b" => 'b',
        "c" | "u" => 'c',
        // Not a device.
        _ => return None,
    };
    // -1 also means all numbers.
    let number = |number: Option<i64>| number.and_then(|number| u32::try_from(number).ok());
    Some(DeviceRule {
        allow: rule.allow,
        kind,
        major: number(rule.major),
        minor: number(rule.minor),
        access: rule.access.clone(),
    })
}
