//! `probe <agent address> [container]`: dials an agent and prints its answer to Probe as one line of JSON.
//!
//! For use where no sandbox is at hand, for instance inside a guest: there it shows that an agent is reached over native vsock.

use std::{process::ExitCode, time::Duration};

use host_trigger::{
    Deadline, Error,
    agent::{self, Agent, AgentAddress},
};
use serde_json::json;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(address) = arguments.next() else {
        eprintln!("usage: probe <agent address> [container]");
        return ExitCode::from(2);
    };
    let container = arguments.next().unwrap_or_default();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(probe(&address, &container)) {
        Ok(answer) => {
            println!("{answer}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("error: {}", e.message());
            ExitCode::from(e.class().exit_code)
        }
    }
}

async fn probe(address: &str, container: &str) -> Result<serde_json::Value, Error> {
    let deadline = Deadline::after(Duration::from_secs(10));
    let address: AgentAddress = address.parse()?;
    let answer =
        Agent::new(agent::dial(&address, deadline).await?).probe(container, Vec::new(), deadline).await?;
    let hosts: Vec<_> = answer
        .scsi_hosts
        .iter()
        .map(|host| json!({"number": host.number, "controller": host.controller}))
        .collect();
    let container = answer.container.as_ref().map(|state| {
        let filter = state.filter.as_ref().map(|filter| {
            json!({"mode": format!("{:?}", filter.mode.enum_value_or_default()), "programs": filter.programs,
                "refused": filter.refused})
        });
        json!({"user_namespace": state.user_namespace, "filter": filter})
    });
    Ok(json!({
        "api_level": answer.api_level,
        "plugin_version": answer.plugin_version,
        "capabilities": answer.capabilities,
        "scsi_hosts": hosts,
        "scan_mode": answer.scan_mode,
        "container": container,
    }))
}
