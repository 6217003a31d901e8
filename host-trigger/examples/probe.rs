//! What `ecr-runtime` finds out before it changes anything, a part at a time, as one line of JSON:
//!
//! - `probe <agent address> [container]` dials an agent and prints its answer to Probe;
//! - `probe source <path>` vets a volume.
//!
//! For use where no sandbox is at hand, for instance inside a guest: there it shows that an agent
//! is reached over native vsock, and what becomes of a disk below device mapper.

use std::{path::Path, process::ExitCode, time::Duration};

use host_trigger::{
    Deadline, Error,
    agent::{self, Agent, AgentAddress},
    source::Source,
};
use serde_json::json;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(address) = arguments.next() else {
        eprintln!("usage: probe <agent address> [container] | probe source <path>");
        return ExitCode::from(2);
    };
    let second = arguments.next().unwrap_or_default();
    if address == "source" {
        return finish(vet(Path::new(&second)));
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: {e}");
            return ExitCode::FAILURE;
        }
    };
    finish(runtime.block_on(probe(&address, &second)))
}

fn finish(done: Result<serde_json::Value, Error>) -> ExitCode {
    match done {
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

/// What it would be plugged as. That it is free is a part of it.
fn vet(path: &Path) -> Result<serde_json::Value, Error> {
    let source = Source::open(path, false)?;
    source.claim()?;
    Ok(
        json!({"device": source.device, "size": source.size, "identity": source.identity, "claimed": source.is_claimed()}),
    )
}

async fn probe(address: &str, container: &str) -> Result<serde_json::Value, Error> {
    let deadline = Deadline::after(Duration::from_secs(10));
    let address: AgentAddress = address.parse()?;
    let answer = Agent::new(agent::dial(&address, deadline).await?)
        .probe(container, Vec::new(), deadline)
        .await?;
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
