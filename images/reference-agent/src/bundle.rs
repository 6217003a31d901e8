//! A container's bundle: a directory with the `config.json` that crun reads ([OCI runtime
//! specification](https://github.com/opencontainers/runtime-spec/blob/main/config.md)), generated
//! from the request.

use std::{
    fs,
    path::{Path, PathBuf},
};

use agent_api::agent::{Linux, LinuxCapabilities, LinuxIDMapping, Process, Spec};
use agent_plugin::DeviceRule;
use serde_json::{Map, Value, json};

use crate::error::{Error, at};

const BUNDLES: &str = "/run/agent";

/// The directory. It is removed when the value is dropped.
#[derive(Debug)]
pub(crate) struct Bundle {
    directory: PathBuf,
}

impl Bundle {
    /// Creates the bundle of container `id`.
    pub(crate) fn create(id: &str, config: &Value) -> Result<Self, Error> {
        Self::create_in(Path::new(BUNDLES), id, config)
    }

    fn create_in(parent: &Path, id: &str, config: &Value) -> Result<Self, Error> {
        let bundle = Self { directory: parent.join(id) };
        fs::create_dir_all(&bundle.directory)
            .map_err(at(format!("creating {}", bundle.directory.display())))?;
        bundle.write("config.json", config)?;
        Ok(bundle)
    }

    /// Returns its path.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes a JSON file for crun, and returns its path.
    pub(crate) fn write(&self, name: &str, value: &Value) -> Result<PathBuf, Error> {
        let path = self.directory.join(name);
        fs::write(&path, value.to_string()).map_err(at(format!("writing {}", path.display())))?;
        Ok(path)
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            tracing::error!("removing {}: {error}", self.directory.display());
        }
    }
}

/// Returns the `config.json` of a container.
pub(crate) fn config(spec: &Spec, device_rules: &[DeviceRule]) -> Result<Value, Error> {
    let process = spec.Process.as_ref().ok_or(Error::Missing("OCI.Process"))?;
    if process.Terminal {
        return Err(Error::Unsupported("a terminal of a container's first process"));
    }
    let root = spec.Root.as_ref().ok_or(Error::Missing("OCI.Root"))?;
    let linux_message = spec.Linux.as_ref().ok_or(Error::Missing("OCI.Linux"))?;
    let mounts: Vec<_> = spec
        .Mounts
        .iter()
        .map(|mount| {
            json!({
                "destination": mount.destination, "source": mount.source, "type": mount.type_, "options": mount.options,
            })
        })
        .collect();
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": process_config(process)?,
        "root": { "path": root.Path, "readonly": root.Readonly },
        "hostname": spec.Hostname,
        "mounts": mounts,
        "annotations": spec.Annotations,
        "linux": linux(linux_message, device_rules),
    }))
}

/// Returns the configuration of a process, for `config.json` or `crun exec --process`.
pub(crate) fn process_config(process: &Process) -> Result<Value, Error> {
    let capabilities =
        process.Capabilities.as_ref().ok_or(Error::Missing("process capabilities"))?;
    let user = process.User.get_or_default();
    Ok(json!({
        "terminal": process.Terminal,
        "user": { "uid": user.UID, "gid": user.GID, "additionalGids": user.AdditionalGids },
        "args": process.Args,
        "env": process.Env,
        "cwd": process.Cwd,
        "capabilities": capability_sets(capabilities),
        "noNewPrivileges": process.NoNewPrivileges,
    }))
}

/// Returns the `resources` for crun, in `config.json` and for `crun update -r`. Without rules there
/// is no list at all. With an empty list crun would not attach a program on cgroup v2 either, but
/// any list makes it write its own default devices.
pub(crate) fn resources(device_rules: &[DeviceRule]) -> Value {
    if device_rules.is_empty() {
        return json!({});
    }
    let devices: Vec<_> = device_rules
        .iter()
        .map(|rule| {
            let mut entry = Map::new();
            entry.insert("allow".into(), rule.allow.into());
            entry.insert("type".into(), rule.kind.to_string().into());
            entry.insert("access".into(), rule.access.clone().into());
            for (key, number) in [("major", rule.major), ("minor", rule.minor)] {
                if let Some(number) = number {
                    entry.insert(key.into(), number.into());
                }
            }
            Value::Object(entry)
        })
        .collect();
    json!({ "devices": devices })
}

fn linux(linux: &Linux, device_rules: &[DeviceRule]) -> Value {
    let mut namespaces: Vec<_> = linux
        .Namespaces
        .iter()
        .map(|namespace| match namespace.Path.as_str() {
            "" => json!({ "type": namespace.Type }),
            path => json!({ "type": namespace.Type, "path": path }),
        })
        .collect();
    // Shims send no pid namespace: the agent decides whether a container shares the sandbox's.
    if !linux.Namespaces.iter().any(|namespace| namespace.Type == "pid") {
        namespaces.push(json!({ "type": "pid" }));
    }
    let devices: Vec<_> = linux
        .Devices
        .iter()
        .map(|device| {
            json!({
                "path": device.Path, "type": device.Type, "major": device.Major, "minor": device.Minor,
                "fileMode": device.FileMode, "uid": device.UID, "gid": device.GID,
            })
        })
        .collect();
    let mut config = json!({
        "namespaces": namespaces,
        "devices": devices,
        "sysctl": linux.Sysctl,
        "cgroupsPath": linux.CgroupsPath,
        "resources": resources(device_rules),
    });
    for (key, mappings) in
        [("uidMappings", &linux.UIDMappings), ("gidMappings", &linux.GIDMappings)]
    {
        if !mappings.is_empty() {
            config[key] = mappings.iter().map(mapping).collect();
        }
    }
    config
}

fn mapping(mapping: &LinuxIDMapping) -> Value {
    json!({ "hostID": mapping.HostID, "containerID": mapping.ContainerID, "size": mapping.Size })
}

fn capability_sets(sets: &LinuxCapabilities) -> Value {
    json!({
        "bounding": sets.Bounding, "effective": sets.Effective, "inheritable": sets.Inheritable,
        "permitted": sets.Permitted, "ambient": sets.Ambient,
    })
}

#[cfg(test)]
mod tests {
    use agent_api::agent::{LinuxNamespace, Root};

    use super::*;

    fn spec() -> Spec {
        let mut process =
            Process { Args: vec!["/bin/sh".into()], Cwd: "/".into(), ..Process::default() };
        process.Capabilities.mut_or_insert_default().Bounding = vec!["CAP_MKNOD".into()];
        let mut spec = Spec { Hostname: "c1".into(), ..Spec::default() };
        spec.Process = Some(process).into();
        spec.Root = Some(Root { Path: "/ctr/rootfs".into(), ..Root::default() }).into();
        let linux = spec.Linux.mut_or_insert_default();
        linux.CgroupsPath = "/pod/c1".into();
        linux.Namespaces =
            vec![LinuxNamespace { Type: "mount".into(), ..LinuxNamespace::default() }];
        spec
    }

    #[test]
    fn the_agent_adds_a_pid_namespace_to_the_requested_ones() {
        let config = config(&spec(), &[]).unwrap();
        assert_eq!(config["linux"]["namespaces"], json!([{ "type": "mount" }, { "type": "pid" }]));
        assert_eq!(config["linux"]["cgroupsPath"], "/pod/c1");
        assert_eq!(config["process"]["capabilities"]["bounding"], json!(["CAP_MKNOD"]));
    }

    #[test]
    fn without_device_rules_there_is_no_device_list() {
        assert_eq!(config(&spec(), &[]).unwrap()["linux"]["resources"], json!({}));
    }

    #[test]
    fn a_rule_omits_numbers_that_mean_all() {
        let deny =
            DeviceRule { allow: false, kind: 'a', major: None, minor: None, access: "rwm".into() };
        let allow = DeviceRule {
            allow: true,
            kind: 'b',
            major: Some(8),
            minor: Some(0),
            access: "rw".into(),
        };
        let expected = json!({ "devices": [
            { "allow": false, "type": "a", "access": "rwm" },
            { "allow": true, "type": "b", "access": "rw", "major": 8, "minor": 0 },
        ]});
        assert_eq!(resources(&[deny, allow]), expected);
    }

    #[test]
    fn an_exec_without_capabilities_and_a_container_with_a_terminal_are_refused() {
        let process = Process { Args: vec!["x".into()], ..Process::default() };
        assert!(matches!(process_config(&process), Err(Error::Missing("process capabilities"))));
        let mut spec = spec();
        spec.Process.mut_or_insert_default().Terminal = true;
        assert!(matches!(config(&spec, &[]), Err(Error::Unsupported(_))));
        assert_eq!(process_config(&spec.Process).unwrap()["terminal"], true);
    }

    #[test]
    fn a_bundle_is_removed_with_its_container() {
        let parent = tempfile::tempdir().unwrap();
        let bundle = Bundle::create_in(parent.path(), "c1", &json!({ "x": 1 })).unwrap();
        assert_eq!(fs::read_to_string(parent.path().join("c1/config.json")).unwrap(), r#"{"x":1}"#);
        drop(bundle);
        assert!(!parent.path().join("c1").exists());
    }
}
