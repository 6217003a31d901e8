//! The plugin's share of the agent that hosts it: code, memory, and what it does while nothing is
//! asked of it.

use std::{fs, path::PathBuf, time::Duration};

use clap::Args;
use goblin::elf::Elf;
use guest_observer::{AgentState, Reply, Request};
use vm_harness::{Error, Machine, Sandbox};

/// The agent with and without the plugin.
#[derive(Debug, Args)]
pub(crate) struct Share {
    /// The agent's binary
    #[arg(long, value_name = "PATH", requires = "agent_without_plugin")]
    agent: Option<PathBuf>,
    /// The same, built without the plugin
    #[arg(long, value_name = "PATH", requires = "agent")]
    agent_without_plugin: Option<PathBuf>,
}

impl Share {
    /// Prints the figures; `used` has plugged volumes already.
    pub(super) async fn print(&self, used: &Sandbox) -> Result<(), Error> {
        println!("\nthe plugin's share of the reference agent");
        if let (Some(with), Some(without)) = (&self.agent, &self.agent_without_plugin) {
            let (with, without) = (text(with)?, text(without)?);
            println!(
                "  machine code (.text)   {with} bytes, {without} without the plugin: {} more",
                with - without
            );
        }
        let used_up = state(used).await?;
        println!("  memory after the plugs {}", memory(&used_up));
        for (name, word) in [("with the plugin   ", "on"), ("without the plugin", "off")] {
            let kernel_parameters = vec![format!("agent.block_volume={word}")];
            let fresh = Sandbox::boot(&Machine { kernel_parameters, ..Machine::default() }).await?;
            let state = state(&fresh).await?;
            println!(
                "  memory, {name}, fresh  {}, {} threads",
                memory(&state),
                state.threads.len()
            );
        }
        let idle = Duration::from_secs(5);
        let before = state(used).await?.voluntary_switches;
        tokio::time::sleep(idle).await;
        let switches = state(used).await?.voluntary_switches - before;
        println!("  wake-ups in {} idle seconds: {switches}", idle.as_secs());
        Ok(())
    }
}

async fn state(sandbox: &Sandbox) -> Result<AgentState, Error> {
    match sandbox.observer().ask(&Request::AgentState).await? {
        Reply::AgentState(state) => Ok(state),
        other => Err(Error::Observer(format!("unexpected reply {other:?}"))),
    }
}

fn memory(state: &AgentState) -> String {
    format!("{} kB anonymous, {} kB of files", state.rss_anon_kb, state.rss_file_kb)
}

/// Size of the section `.text`, in bytes.
fn text(path: &PathBuf) -> Result<i64, Error> {
    let bytes = fs::read(path).map_err(|source| Error::File {
        action: "read",
        path: path.clone(),
        source,
    })?;
    let unreadable = |_| Error::Missing {
        what: format!("an ELF program at {}", path.display()),
        remedy: "run ci/bench",
    };
    let elf = Elf::parse(&bytes).map_err(unreadable)?;
    let section = elf
        .section_headers
        .iter()
        .find(|section| elf.shdr_strtab.get_at(section.sh_name) == Some(".text"));
    Ok(section.map_or(0, |section| i64::try_from(section.sh_size).unwrap_or(i64::MAX)))
}
