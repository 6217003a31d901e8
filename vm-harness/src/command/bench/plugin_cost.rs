//! What the plugin costs the agent that embeds it: code, memory, and wake-ups while it is idle.

use std::{fs, path::PathBuf, time::Duration};

use clap::Args;
use goblin::elf::Elf;
use guest_observer::{AgentState, Reply, Request};
use vm_harness::{Error, Machine, Sandbox};

/// The agent with and without the plugin.
#[derive(Debug, Args)]
pub(super) struct PluginCost {
    /// The agent's binary, to compare its size
    #[arg(long, value_name = "PATH", requires = "agent_without_plugin")]
    agent: Option<PathBuf>,
    /// The agent's binary, built without the plugin
    #[arg(long, value_name = "PATH", requires = "agent")]
    agent_without_plugin: Option<PathBuf>,
}

impl PluginCost {
    /// Prints the figures. `used` is a sandbox in which volumes were plugged.
    pub(super) async fn print(&self, used: &Sandbox) -> Result<(), Error> {
        println!("\ncost of the plugin in the reference agent");
        if let (Some(with), Some(without)) = (&self.agent, &self.agent_without_plugin) {
            let (with, without) = (text(with)?, text(without)?);
            println!(
                "  machine code (.text)   {with} bytes, {without} without the plugin: {} more",
                with - without
            );
        }
        println!("  memory after the plugs {}", memory(&state(used).await?));
        for (name, value) in [("with the plugin   ", "on"), ("without the plugin", "off")] {
            let kernel_parameters = vec![format!("agent.block_volume={value}")];
            let fresh = Sandbox::boot(&Machine { kernel_parameters, ..Machine::default() }).await?;
            let state = state(&fresh).await?;
            println!(
                "  memory, {name}, after boot  {}, {} threads",
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

/// Returns the size of the section `.text`, in bytes.
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
