//! The agent's configuration: the [kernel command
//! line](https://docs.kernel.org/admin-guide/kernel-parameters.html), as for kata-agent.

use std::{fs, io};

const PATH: &str = "/proc/cmdline";

/// The parameters of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// `agent.server_addr=vsock://-1:PORT`: the port on which the agent listens.
    pub(crate) port: u32,
    /// `agent.block_volume=off`: behave as an agent that was built without the plugin.
    pub(crate) block_volume: bool,
    /// `agent.block_volume_port`: serve the plugin only on its own vsock port, as an agent with
    /// another ttrpc has to.
    pub(crate) block_volume_port: Option<u32>,
    /// `agent.deny`: methods that the policy denies in addition to those of its file.
    pub(crate) denied: Vec<String>,
    /// `agent.no_pivot_root=on`: containers enter their roots by chroot, as in kata-agent if its
    /// own root is an initramfs.
    pub(crate) no_pivot_root: bool,
    /// `agent.pool=N`: occupy threads of tokio's pool with each `ExecProcess`, two of them with
    /// every Nth.
    pub(crate) pool: Option<usize>,
    /// `agent.log`: the log level of the console.
    pub(crate) log: tracing::Level,
    /// `agent.log_uevents=on`: log each device event of the kernel, as kata-agent does.
    pub(crate) log_uevents: bool,
    /// The cgroup hierarchy that the agent mounts, by the same parameters as kata-agent.
    pub(crate) cgroup_v2: bool,
}

impl Config {
    /// Reads the running kernel's command line.
    ///
    /// # Errors
    /// The command line cannot be read, or a value is invalid.
    pub(crate) fn read() -> io::Result<Self> {
        Self::parse(&fs::read_to_string(PATH)?)
    }

    fn parse(text: &str) -> io::Result<Self> {
        let mut config = Self {
            port: 1024,
            block_volume: true,
            block_volume_port: None,
            denied: Vec::new(),
            no_pivot_root: false,
            pool: None,
            log: tracing::Level::INFO,
            log_uevents: false,
            cgroup_v2: false,
        };
        for (name, value) in text.split_whitespace().filter_map(|word| word.split_once('=')) {
            let wrong = || {
                io::Error::new(io::ErrorKind::InvalidInput, format!("{name}={value} is not valid"))
            };
            match name {
                "agent.server_addr" => {
                    let port = value.strip_prefix("vsock://-1:").and_then(|port| port.parse().ok());
                    config.port = port.ok_or_else(wrong)?;
                }
                "agent.block_volume" => config.block_volume = switch(value).ok_or_else(wrong)?,
                "agent.log_uevents" => config.log_uevents = switch(value).ok_or_else(wrong)?,
                "agent.no_pivot_root" => config.no_pivot_root = switch(value).ok_or_else(wrong)?,
                "agent.block_volume_port" => {
                    config.block_volume_port = Some(value.parse().map_err(|_| wrong())?)
                }
                "agent.pool" => {
                    let period = value.parse().ok().filter(|&period| period > 0);
                    config.pool = Some(period.ok_or_else(wrong)?);
                }
                "agent.deny" => config.denied.extend(value.split(',').map(str::to_owned)),
                "agent.log" => config.log = value.parse().map_err(|_| wrong())?,
                "cgroup_no_v1" => config.cgroup_v2 |= value == "all",
                "systemd.unified_cgroup_hierarchy" => {
                    config.cgroup_v2 |= matches!(value, "1" | "true")
                }
                _ => {}
            }
        }
        Ok(config)
    }
}

fn switch(value: &str) -> Option<bool> {
    match value {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_parameters_the_agent_listens_on_vsock_1024_and_uses_cgroup_v1() {
        let config = Config::parse("console=ttyS0 quiet\n").unwrap();
        assert_eq!(config.port, 1024);
        assert!(config.block_volume && !config.cgroup_v2 && config.denied.is_empty());
    }

    #[test]
    fn every_parameter_is_parsed() {
        let text = "agent.server_addr=vsock://-1:9 agent.block_volume=off agent.block_volume_port=1025 \
                    agent.deny=A,B agent.deny=C agent.no_pivot_root=on agent.pool=4 agent.log=debug \
                    agent.log_uevents=on cgroup_no_v1=all";
        let expected = Config {
            port: 9,
            block_volume: false,
            block_volume_port: Some(1025),
            denied: ["A", "B", "C"].map(str::to_owned).into(),
            no_pivot_root: true,
            pool: Some(4),
            log: tracing::Level::DEBUG,
            log_uevents: true,
            cgroup_v2: true,
        };
        assert_eq!(Config::parse(text).unwrap(), expected);
        assert!(Config::parse("systemd.unified_cgroup_hierarchy=true").unwrap().cgroup_v2);
    }

    #[test]
    fn an_invalid_value_is_named() {
        for wrong in [
            "agent.server_addr=unix:///a",
            "agent.block_volume=no",
            "agent.no_pivot_root=1",
            "agent.log_uevents=yes",
            "agent.block_volume_port=x",
            "agent.pool=0",
            "agent.log=loud",
        ] {
            let error = Config::parse(wrong).unwrap_err().to_string();
            assert!(error.starts_with(wrong), "{error}");
        }
    }
}
