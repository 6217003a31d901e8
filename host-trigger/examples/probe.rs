//! Runs single preflight checks of `ecr-runtime` and prints the result as one line of JSON:
//!
//! - `probe <agent address> [container]` connects to an agent and prints its reply to `Probe`;
//! - `probe source <path>` vets a source.
//!
//! For use without a sandbox, for instance inside a guest. There it shows that an agent is reached
//! over native vsock, and how a disk below device mapper is judged.

use std::{path::Path, process::ExitCode, time::Duration};

use host_trigger::{
    Deadline, Error,
    host::source::Source,
    kata::{
        agent::Agent,
        agent_address::{self, AgentAddress},
    },
};
use serde_json::json;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(address) = arguments.next() else {
        eprintln!("usage: probe <agent address> [container] | probe source <path>");
        return ExitCode::from(2);
    };
    let second = arguments.next().unwrap_or_default();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: {e}");
            return ExitCode::FAILURE;
        }
    };
    finish(runtime.block_on(async {
        match address.as_str() {
            "source" => vet(Path::new(&second)).await,
            _ => probe(&address, &second).await,
        }
    }))
}

/// Prints the result or the error, and returns the exit code.
fn finish(result: Result<serde_json::Value, Error>) -> ExitCode {
    match result {
        Ok(value) => {
            println!("{value}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("error: {}", e.message());
            ExitCode::from(e.class().exit_status.code())
        }
    }
}

/// Vets the source at `path` and claims it. Returns how it would be plugged.
async fn vet(path: &Path) -> Result<serde_json::Value, Error> {
    let deadline = Deadline::after(Duration::from_secs(10));
    let source = Source::open(path, false, deadline).await?;
    source.claim(deadline).await?;
    Ok(
        json!({"device": source.device, "size": source.size, "identity": source.identity, "claimed": source.is_claimed()}),
    )
}

async fn probe(address: &str, container: &str) -> Result<serde_json::Value, Error> {
    let deadline = Deadline::after(Duration::from_secs(10));
    let address: AgentAddress = address.parse()?;
    let reply = Agent::new(agent_address::dial(&address, deadline).await?)
        .probe(container, Vec::new(), Vec::new(), deadline)
        .await?;
    let hosts: Vec<_> = reply
        .scsi_hosts
        .iter()
        .map(|host| json!({"number": host.number, "controller": host.controller}))
        .collect();
    let container = reply.container.as_ref().map(|state| {
        let filter = state.filter.as_ref().map(|filter| {
            json!({"mode": format!("{:?}", filter.mode.enum_value_or_default()), "programs": filter.programs,
                "refused": filter.refused})
        });
        json!({"user_namespace": state.user_namespace, "filter": filter})
    });
    Ok(json!({
        "api_level": reply.api_level,
        "plugin_version": reply.plugin_version,
        "capabilities": reply.capabilities,
        "scsi_hosts": hosts,
        "scan_mode": reply.scan_mode,
        "container": container,
    }))
}
