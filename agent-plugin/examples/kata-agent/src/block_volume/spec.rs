//! What the plugin needs of a container's OCI specification.

use std::convert::TryFrom;
use std::path::PathBuf;

use agent_plugin::DeviceRule;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespaceType, Spec};

pub(super) use runtime_spec::ContainerState;

/// kata-agent 4.x keeps the namespaces of a container open; the specification holds the paths of
/// its descriptors.
pub(super) fn mount_namespace(spec: &Spec) -> Option<PathBuf> {
    let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
    let mount = namespaces
        .iter()
        .find(|namespace| namespace.typ() == LinuxNamespaceType::Mount)?;
    mount
        .path()
        .clone()
        .filter(|path| !path.as_os_str().is_empty())
}

/// The rules for devices, in order.
pub(super) fn device_rules(spec: &Spec) -> Vec<DeviceRule> {
    let linux = spec.linux().as_ref();
    let rules = linux.and_then(|linux| linux.resources().as_ref()?.devices().as_ref());
    rules
        .map(|rules| rules.iter().filter_map(device_rule).collect())
        .unwrap_or_default()
}

fn device_rule(rule: &LinuxDeviceCgroup) -> Option<DeviceRule> {
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => 'a',
        Some(LinuxDeviceType::B) => 'b',
        Some(LinuxDeviceType::C) | Some(LinuxDeviceType::U) => 'c',
        // Not a device.
        Some(LinuxDeviceType::P) => return None,
    };
    // -1 also means all numbers.
    let number = |number: Option<i64>| number.and_then(|number| u32::try_from(number).ok());
    Some(DeviceRule {
        allow: rule.allow(),
        kind,
        major: number(rule.major()),
        minor: number(rule.minor()),
        access: rule.access().clone().unwrap_or_default(),
    })
}
