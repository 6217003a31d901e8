//! What the agent reports about itself and its guest. It decides which checks apply.

use agent_api::agent::AgentDetails;
use block_volume_api::block_volume::{FilterMode, NodeWay, ProbeRequest, ProbeResponse};
use serde::Serialize;

use super::{Mode, probe::probe};
use crate::{Container, Error, Sandbox};

/// The feature by which hosts find the plugin.
pub(super) const FEATURE: &str = "block-volume";

/// An agent that is known by its details.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentKind {
    /// Kata Containers' own.
    KataAgent,
}

impl AgentKind {
    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::KataAgent => "kata-agent",
        }
    }

    /// kata-agent lists its storage handlers. These two are for Kubernetes' emptyDir, and are in
    /// each build.
    fn of(details: &AgentDetails) -> Option<Self> {
        let has = |name| details.storage_handlers.iter().any(|handler| handler == name);
        (has("ephemeral") && has("local")).then_some(Self::KataAgent)
    }
}

/// The properties of one sandbox.
#[derive(Debug, Clone)]
pub struct GuestInfo {
    /// The kind of guest.
    pub mode: Mode,
    /// What the agent is, if its details tell.
    pub kind: Option<AgentKind>,
    /// `agent_details.version`.
    pub version: String,
    /// `agent_details.extra_features`.
    pub features: Vec<String>,
    /// The plugin, or why there is none.
    pub plugin: Result<Plugin, String>,
    /// The device filter of a container without device rules.
    pub filter_without_rules: FilterMode,
    /// The device filter of a container with device rules.
    pub filter_with_rules: FilterMode,
    /// Whether a container with a user namespace can have volumes, or why not.
    pub user_namespace: Result<(), String>,
}

/// The plugin, by its answer to `Probe`.
#[derive(Debug, Clone)]
pub struct Plugin {
    /// API level of the contract.
    pub api_level: u32,
    /// Version of the crate.
    pub version: String,
    /// The whole answer.
    pub probe: ProbeResponse,
}

impl GuestInfo {
    /// Asks the agent. The containers are one without device rules, one with device rules, and one
    /// with a user namespace.
    pub(super) async fn of(
        sandbox: &Sandbox,
        mode: Mode,
        without_rules: &Container,
        with_rules: &Container,
        user_namespace: &Result<Container, Error>,
    ) -> Result<Self, Error> {
        let details = sandbox.agent().details().await?;
        let plugin = match probe(sandbox, &ProbeRequest::default()).await? {
            Err(why) => Err(why),
            Ok(probe) if probe.failure.is_some() => Err(probe.failure.message.clone()),
            Ok(probe) => Ok(Plugin {
                api_level: probe.api_level,
                version: probe.plugin_version.clone(),
                probe,
            }),
        };
        let filter = async |container: &Container| {
            let request =
                ProbeRequest { container_id: container.id().to_owned(), ..Default::default() };
            let answer = probe(sandbox, &request).await?;
            let mode = answer.ok().and_then(|probe| probe.container.filter.mode.enum_value().ok());
            Ok::<_, Error>(mode.unwrap_or_default())
        };
        Ok(Self {
            mode,
            kind: AgentKind::of(&details.agent_details),
            version: details.agent_details.version.clone(),
            features: details.agent_details.extra_features.clone(),
            plugin,
            filter_without_rules: filter(without_rules).await?,
            filter_with_rules: filter(with_rules).await?,
            user_namespace: match user_namespace {
                Err(error) => Err(format!(
                    "the agent creates no container with a user namespace: {}",
                    error.chain()
                )),
                Ok(container) => can_have_node(sandbox, container).await?,
            },
        })
    }

    /// Whether a container with a user namespace can have volumes.
    pub(super) fn supports_user_namespaces(&self) -> Result<(), String> {
        self.user_namespace.clone()
    }

    /// Whether the plugin can mount an ext4 file system.
    pub(super) fn mounts_file_systems(&self) -> Result<(), String> {
        let plugin = self.plugin.as_ref().map_err(Clone::clone)?;
        let has = plugin.probe.capabilities.iter().any(|name| name == "mount");
        let missing = |name: &str| plugin.probe.kernel.missing.iter().any(|it| it == name);
        match () {
            () if !has => Err("this version of the plugin mounts no file systems".to_owned()),
            () if missing("ext4") => Err("the guest's kernel has no ext4".to_owned()),
            () => Ok(()),
        }
    }

    /// Whether it can do so in a container with a user namespace.
    pub(super) fn maps_users_of_file_systems(&self) -> Result<(), String> {
        self.mounts_file_systems().and_then(|()| self.supports_user_namespaces())
    }

    /// Whether the container with device rules has a device filter.
    pub(super) fn has_filter(&self) -> Result<(), String> {
        match self.filter_with_rules {
            FilterMode::FILTER_MODE_V1 | FilterMode::FILTER_MODE_BPF => Ok(()),
            _ => {
                Err("cgroup v2 without a device program: a container can open every device"
                    .to_owned())
            }
        }
    }

    /// Whether the container without device rules has no device filter.
    pub(super) fn has_no_filter(&self) -> Result<(), String> {
        match self.filter_without_rules {
            FilterMode::FILTER_MODE_NONE => Ok(()),
            _ => Err("every container of this guest has a device filter".to_owned()),
        }
    }

    /// Whether disks appear only on request.
    pub(super) fn scans_on_demand(&self) -> Result<(), String> {
        match self.scan_mode() {
            "none" => Ok(()),
            mode => Err(format!("scsi_mod.scan={mode}: the kernel finds disks by itself")),
        }
    }

    /// Whether the kernel finds disks by itself.
    pub(super) fn scans_by_itself(&self) -> Result<(), String> {
        match self.scan_mode() {
            "none" => Err("scsi_mod.scan=none: the kernel finds no disk by itself".to_owned()),
            _ => Ok(()),
        }
    }

    fn scan_mode(&self) -> &str {
        match &self.plugin {
            Ok(plugin) => &plugin.probe.scan_mode,
            Err(_) => "none",
        }
    }
}

/// Whether the plugin can make a device node in `container`.
async fn can_have_node(
    sandbox: &Sandbox,
    container: &Container,
) -> Result<Result<(), String>, Error> {
    let request = ProbeRequest {
        container_id: container.id().to_owned(),
        paths: vec!["/dev/conformance".to_owned()],
        ..Default::default()
    };
    let answer = match probe(sandbox, &request).await? {
        Ok(answer) => answer,
        Err(why) => return Ok(Err(why)),
    };
    let Some(path) = answer.container.paths.first() else {
        return Ok(Err("the plugin's answer does not have the requested path".to_owned()));
    };
    Ok(match path.way.enum_value_or_default() {
        NodeWay::NODE_WAY_UNSPECIFIED => {
            Err(format!("a container with a user namespace: {}", path.refused))
        }
        _ => Ok(()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kata_agent_is_known_by_its_storage_handlers() {
        let details = |handlers: &[&str]| AgentDetails {
            storage_handlers: handlers.iter().map(|&name| name.to_owned()).collect(),
            ..AgentDetails::default()
        };
        let kata = ["blk", "ephemeral", "local", "overlayfs", "scsi", "virtio-fs"];
        assert_eq!(AgentKind::of(&details(&kata)), Some(AgentKind::KataAgent));
        assert_eq!(AgentKind::of(&details(&["local"])), None);
        assert_eq!(AgentKind::of(&AgentDetails::default()), None);
    }
}
