//! The proxies of `vm-harness boot`: one for QEMU, on the socket that `ecr-runtime` tries first,
//! and one for the agent.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use vm_harness::{AgentProxy, Error, QmpProxy, Rule, Sandbox};

/// Which proxies to start.
#[derive(Debug, Args)]
pub(super) struct ProxyOptions {
    /// Record the traffic with QEMU and the agent, as JSON lines
    #[arg(long)]
    proxy: bool,
    /// A fault for a message of QMP, such as reply:device_add=cut or
    /// event:DEVICE_DELETED=delay:3s; may be repeated
    #[arg(long, value_name = "RULE")]
    qmp_rule: Vec<Rule>,
    /// A fault for a message of the agent, such as reply:Attach=delay:1m; may be repeated
    #[arg(long, value_name = "RULE")]
    agent_rule: Vec<Rule>,
}

/// Running proxies.
pub(super) struct Proxies {
    qmp: QmpProxy,
    _agent: AgentProxy,
    address: String,
    records: [PathBuf; 2],
}

impl ProxyOptions {
    /// Whether an option requests them.
    pub(super) fn are_requested(&self) -> bool {
        self.proxy || !self.qmp_rule.is_empty() || !self.agent_rule.is_empty()
    }

    /// Starts the proxies, if an option requests them.
    pub(super) fn start(&self, sandbox: &Sandbox) -> Result<Option<Proxies>, Error> {
        if !self.are_requested() {
            return Ok(None);
        }
        let vm = sandbox.run_directory().vm();
        let records = [vm.join("qmp.jsonl"), vm.join("agent.jsonl")];
        // ecr-runtime tries this socket first, without an option.
        let path = vm.join("extra-monitor.sock");
        let qmp = QmpProxy::start_at(
            &path,
            &sandbox.qmp_socket(),
            self.qmp_rule.clone(),
            Some(&records[0]),
        )?;
        let (path, vsock) = (vm.join("proxy.vsock"), vm.join("vm.vsock"));
        let agent =
            AgentProxy::start_at(&path, &vsock, self.agent_rule.clone(), Some(&records[1]))?;
        let address = agent.address(sandbox);
        Ok(Some(Proxies { qmp, _agent: agent, address, records }))
    }
}

impl Proxies {
    /// Returns their part of the report of `boot`.
    pub(super) fn report(&self) -> Value {
        let [qmp_record, agent_record] = &self.records;
        json!({
            "qmp": self.qmp.path(), "qmp_record": qmp_record,
            "agent": self.address, "agent_record": agent_record,
        })
    }

    /// Returns an option that uses the proxy for the agent, and a command that follows the records.
    pub(super) fn hints(&self) -> [String; 2] {
        let [qmp_record, agent_record] = &self.records;
        [
            format!(
                "--agent {}   # option of ecr-runtime for the agent's proxy; it finds QEMU's",
                self.address
            ),
            format!("tail -f {} {}", qmp_record.display(), agent_record.display()),
        ]
    }
}
