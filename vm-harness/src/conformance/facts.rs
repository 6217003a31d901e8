//! What the agent and its guest say of themselves; checks adapt to it.

use block_volume_api::block_volume::{FilterMode, NodeWay, ProbeRequest, ProbeResponse};

use super::{Mode, direct};
use crate::{Container, Error, Sandbox};

/// Of one sandbox.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The guest's kind.
    pub mode: Mode,
    /// `agent_details.version`.
    pub version: String,
    /// `agent_details.extra_features`.
    pub features: Vec<String>,
    /// The plugin, or why there is none.
    pub plugin: Result<Plugin, String>,
    /// What is between a container without device rules and other devices.
    pub plain_filter: FilterMode,
    /// The same for one with rules.
    pub ruled_filter: FilterMode,
    /// Whether a container with a user namespace can have volumes, or why not.
    pub own_users: Result<(), String>,
}

/// What `Probe` answers.
#[derive(Debug, Clone)]
pub struct Plugin {
    /// Of the contract.
    pub api_level: u32,
    /// Of the crate.
    pub version: String,
    /// The rest.
    pub probe: ProbeResponse,
}

impl Facts {
    pub(super) async fn of(
        sandbox: &Sandbox,
        mode: Mode,
        plain: &Container,
        ruled: &Container,
        own_users: &Result<Container, Error>,
    ) -> Result<Self, Error> {
        let details = sandbox.agent().details().await?;
        let plugin = match direct::probe(sandbox, &ProbeRequest::default()).await? {
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
            let probe = direct::probe(sandbox, &request).await?;
            let mode = probe.ok().and_then(|probe| probe.container.filter.mode.enum_value().ok());
            Ok::<_, Error>(mode.unwrap_or_default())
        };
        Ok(Self {
            mode,
            version: details.agent_details.version.clone(),
            features: details.agent_details.extra_features.clone(),
            plugin,
            plain_filter: filter(plain).await?,
            ruled_filter: filter(ruled).await?,
            own_users: match own_users {
                Err(error) => Err(format!(
                    "the agent makes no container with a user namespace: {}",
                    error.chain()
                )),
                Ok(container) => way_into(sandbox, container).await?,
            },
        })
    }

    /// A container with a user namespace can have volumes.
    pub(super) fn serves_own_users(&self) -> Result<(), String> {
        self.own_users.clone()
    }

    /// Something decides which devices the container with rules may open.
    pub(super) fn has_filter(&self) -> Result<(), String> {
        match self.ruled_filter {
            FilterMode::FILTER_MODE_V1 | FilterMode::FILTER_MODE_BPF => Ok(()),
            _ => Err("cgroup v2 without a device program: nothing keeps a container from a device"
                .to_owned()),
        }
    }

    /// Nothing decides it for the container without rules.
    pub(super) fn has_no_filter(&self) -> Result<(), String> {
        match self.plain_filter {
            FilterMode::FILTER_MODE_NONE => Ok(()),
            _ => Err("every container of this guest has a device filter".to_owned()),
        }
    }

    /// Disks appear only when they are asked for.
    pub(super) fn scans_on_demand(&self) -> Result<(), String> {
        match self.scan_mode() {
            "none" => Ok(()),
            mode => Err(format!("scsi_mod.scan={mode}: the kernel finds disks by itself")),
        }
    }

    /// The kernel finds disks by itself.
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

/// Whether the plugin has a way to a node in `container`.
async fn way_into(sandbox: &Sandbox, container: &Container) -> Result<Result<(), String>, Error> {
    let request = ProbeRequest {
        container_id: container.id().to_owned(),
        paths: vec!["/dev/conformance".to_owned()],
        ..Default::default()
    };
    let probe = match direct::probe(sandbox, &request).await? {
        Ok(probe) => probe,
        Err(why) => return Ok(Err(why)),
    };
    let Some(path) = probe.container.paths.first() else {
        return Ok(Err("the plugin says nothing of the path that it was asked for".to_owned()));
    };
    Ok(match path.way.enum_value_or_default() {
        NodeWay::NODE_WAY_UNSPECIFIED => {
            Err(format!("a container with a user namespace: {}", path.refused))
        }
        _ => Ok(()),
    })
}
