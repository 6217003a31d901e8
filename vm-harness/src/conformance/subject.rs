//! What is checked, and on what: the first line of a run.

use std::fmt;

use host_trigger::sanitize::sanitize;
use serde::Serialize;

use super::{AgentKind, Fixture, guest_info::FEATURE};

/// What was checked, and on what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Subject {
    /// File name of the agent on this machine.
    pub agent: String,
    /// What it is by its own details; absent if they do not tell.
    pub kind: Option<AgentKind>,
    /// The version that it reports.
    pub version: String,
    /// `agent_details.extra_features`.
    pub features: Vec<String>,
    /// The vsock port of the plugin, if that is not the agent's own port.
    pub plugin_port: Option<u32>,
    /// The plugin's version and API level; absent if the agent has none.
    pub plugin: Option<(String, u32)>,
    /// The agent's answer if it has none.
    pub no_plugin: Option<String>,
    /// The guest kernel's release.
    pub kernel: String,
    /// QEMU's version.
    pub qemu: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
}

impl Subject {
    pub(super) fn of(fixture: &Fixture) -> Self {
        let (sandbox, info) = (fixture.sandbox(), fixture.info());
        let image = image_builder::image::read(sandbox.image());
        let (agent, kernel) = image.map(|image| (image.agent, image.kernel)).unwrap_or_default();
        let plugin = info.plugin.as_ref();
        Self {
            agent,
            kind: info.kind,
            version: sanitize(&info.version),
            features: info.features.iter().map(|feature| sanitize(feature)).collect(),
            plugin_port: sandbox.has_own_plugin_port().then(|| sandbox.plugin_port()),
            plugin: plugin.ok().map(|plugin| (sanitize(&plugin.version), plugin.api_level)),
            no_plugin: plugin.err().map(|why| sanitize(why)),
            kernel,
            qemu: fixture.qemu.clone(),
            accelerator: sandbox.guest().accelerator().to_string(),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            agent,
            kind,
            version,
            features,
            plugin_port,
            plugin,
            no_plugin,
            kernel,
            qemu,
            accelerator,
        } = self;
        let port = plugin_port.map(|port| format!(" on vsock port {port}")).unwrap_or_default();
        let mut version = if version.is_empty() { "(no version)" } else { version }.to_owned();
        let mut agent = agent.clone();
        if let Some(kind) = kind {
            version.push_str(&format!(" (features {}", features.join(" ")));
            version.push_str(&if agent == kind.name() {
                ")".into()
            } else {
                format!("; file {agent})")
            });
            agent = kind.name().to_owned();
        }
        match plugin {
            Some((plugin, api)) => write!(
                f,
                "{agent} {version} with block-volume plugin {plugin} (API level {api}){port}"
            )?,
            None => {
                let why = no_plugin.as_deref().unwrap_or_default();
                if features.iter().any(|feature| feature == FEATURE) {
                    write!(
                        f,
                        "{agent} {version} whose block-volume plugin does not serve Probe{port}: {why}"
                    )?;
                } else {
                    write!(
                        f,
                        "{agent} {version} WITHOUT the block-volume plugin; asked for it{port}, \
                         the agent says: {why}"
                    )?;
                }
            }
        }
        write!(f, ", kernel {kernel}, QEMU {qemu}, {accelerator}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subject_is_named_by_what_the_agent_is() {
        let kata = Subject {
            agent: "agent-with-plugin".into(),
            kind: Some(AgentKind::KataAgent),
            version: "4.1.0".into(),
            features: vec!["agent-policy".into(), "block-volume".into()],
            plugin_port: None,
            plugin: Some(("0.1.0".into(), 1)),
            no_plugin: None,
            kernel: "6.12".into(),
            qemu: "10.0.2".into(),
            accelerator: "tcg".into(),
        };
        assert_eq!(
            kata.to_string(),
            "kata-agent 4.1.0 (features agent-policy block-volume; file agent-with-plugin) with \
             block-volume plugin 0.1.0 (API level 1), kernel 6.12, QEMU 10.0.2, tcg"
        );
        let usual = Subject { agent: "kata-agent".into(), ..kata.clone() };
        assert!(
            usual
                .to_string()
                .starts_with("kata-agent 4.1.0 (features agent-policy block-volume) with")
        );
        let other = Subject { agent: "mine".into(), kind: None, ..kata };
        assert!(other.to_string().starts_with("mine 4.1.0 with block-volume plugin"));
    }
}
