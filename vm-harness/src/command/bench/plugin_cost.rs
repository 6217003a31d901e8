//! What the plugin costs the agent that embeds it: code, memory, and wake-ups while it is idle.

use std::{fs, path::PathBuf, time::Duration};

use clap::Args;
use goblin::elf::Elf;
use guest_observer::{AgentState, Reply, Request};
use vm_harness::{Error, Machine, Sandbox};

use super::row::{Goal, Row};

/// How long the agent is watched while it has nothing to do.
const IDLE: Duration = Duration::from_secs(5);

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
    /// Measures. `used` is a sandbox in which volumes were plugged.
    pub(super) async fn rows(&self, used: &Sandbox) -> Result<Vec<Row>, Error> {
        let mut rows = Vec::new();
        if let (Some(with), Some(without)) = (&self.agent, &self.agent_without_plugin) {
            let more = text(with)? - text(without)?;
            rows.push(Row::number("machine code of the plugin (`.text`)", more as f64, "bytes"));
        }
        let (with, threads) = fresh("on").await?;
        let (without, threads_without) = fresh("off").await?;
        let more = |with: u64, without: u64| with as f64 - without as f64;
        rows.extend([
            Row::number("anonymous memory of the plugin after boot", more(with, without), "KiB"),
            Row::number("threads of the plugin after boot", more(threads, threads_without), ""),
            Row::number(
                "anonymous memory of the agent after all plugs of this run, above that after boot",
                more(state(used).await?.rss_anon_kb, with),
                "KiB",
            ),
        ]);
        let before = state(used).await?.voluntary_switches;
        tokio::time::sleep(IDLE).await;
        let switches = state(used).await?.voluntary_switches - before;
        let measure = format!("wake-ups of the agent in {} idle seconds", IDLE.as_secs());
        rows.push(Row::number(measure, switches as f64, "").goal(Goal::AtMost(0.0)));
        Ok(rows)
    }
}

/// Boots an agent with the plugin `on` or `off`, and returns its anonymous memory in KiB and its
/// number of threads.
async fn fresh(plugin: &str) -> Result<(u64, u64), Error> {
    let kernel_parameters = vec![format!("agent.block_volume={plugin}")];
    let fresh = Sandbox::boot(&Machine { kernel_parameters, ..Machine::default() }).await?;
    let state = state(&fresh).await?;
    Ok((state.rss_anon_kb, state.threads.len() as u64))
}

async fn state(sandbox: &Sandbox) -> Result<AgentState, Error> {
    match sandbox.observer().ask(&Request::AgentState).await? {
        Reply::AgentState(state) => Ok(state),
        other => Err(Error::Observer(format!("unexpected reply {other:?}"))),
    }
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
