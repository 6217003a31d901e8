//! The proxies of `vm-harness boot`: before QEMU's socket where `ecr-runtime` looks first, and
//! before the agent's.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use vm_harness::{AgentProxy, Error, QmpProxy, Rule, Sandbox};

/// What to put before QEMU and the agent.
#[derive(Debug, Args)]
pub(super) struct ProxyOptions {
    /// Record what is said to QEMU and the agent, as JSON lines
    #[arg(long)]
    proxy: bool,
    /// What befalls QEMU's messages, such as reply:device_add=cut or event:DEVICE_DELETED=delay:3s;
    /// may be repeated
    #[arg(long, value_name = "RULE")]
    qmp_rule: Vec<Rule>,
    /// What befalls the agent's, such as reply:Attach=delay:1m; may be repeated
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
    /// Starts them, if they are asked for.
    pub(super) fn start(&self, sandbox: &Sandbox) -> Result<Option<Proxies>, Error> {
        if !self.proxy && self.qmp_rule.is_empty() && self.agent_rule.is_empty() {
            return Ok(None);
        }
        let vm = sandbox.run_directory().vm();
        let records = [vm.join("qmp.jsonl"), vm.join("agent.jsonl")];
        // ecr-runtime tries this one first, without being told.
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
    /// For the report of `boot`.
    pub(super) fn report(&self) -> Value {
        let [qmp_record, agent_record] = &self.records;
        json!({
            "qmp": self.qmp.path(), "qmp_record": qmp_record,
            "agent": self.address, "agent_record": agent_record,
        })
    }

    /// What to type to use them and to see what went through.
    pub(super) fn hints(&self) -> [String; 2] {
        let [qmp_record, agent_record] = &self.records;
        [
            format!(
                "--agent {}   # ecr-runtime by the agent's proxy; it takes QEMU's by itself",
                self.address
            ),
            format!("tail -f {} {}", qmp_record.display(), agent_record.display()),
        ]
    }
}
