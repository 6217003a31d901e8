//! Which sandbox a command works on, how to reach it, and how to report.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use super::duration::parse_duration;
use crate::{
    Error,
    format::Format,
    kata::{agent_address::AgentAddress, sandbox::Search},
    ops::session::SessionOptions,
};

/// The highest user ID. The number above it means "no user".
const MAX_UID: i64 = u32::MAX as i64 - 1;

/// Which sandbox, how to reach it, and how to report; the same for all verbs.
#[derive(Debug, Args)]
pub struct Target {
    /// Sandbox ID or a unique prefix of it; not needed if a container is named
    #[arg(long, value_name = "ID")]
    pub sandbox: Option<String>,

    /// Time limit for the whole command, such as 30s or 1500ms; more than 30s is more for each step
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub timeout: Duration,

    /// Output format
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "human")]
    pub output: Format,

    /// QMP socket of QEMU, in place of the sandbox's own
    #[arg(long, value_name = "PATH")]
    pub qmp: Option<PathBuf>,

    /// Address of the agent: vsock://CID:PORT, hvsock://PATH:PORT or unix://PATH
    #[arg(long, value_name = "ADDRESS")]
    pub agent: Option<String>,

    /// User that QEMU runs as, if its sockets are in /run/user/UID (rootless Kata)
    #[arg(long, value_name = "UID", value_parser = clap::value_parser!(u32).range(..=MAX_UID))]
    pub vmm_user: Option<u32>,

    /// Log each step to standard error
    #[arg(short, long)]
    pub verbose: bool,
}

impl Target {
    /// What to search for, below `run_dir` if that is given; the sandbox is found by `container` if
    /// it is not named.
    ///
    /// # Errors
    /// The agent's address is invalid.
    pub fn search(
        &self,
        run_dir: Option<PathBuf>,
        container: Option<&str>,
    ) -> Result<Search, Error> {
        let agent = self.agent.as_deref().map(str::parse::<AgentAddress>).transpose()?;
        Ok(Search {
            run_dir,
            sandbox: self.sandbox.clone(),
            container: container.map(str::to_owned),
            qmp: self.qmp.clone(),
            agent,
            vmm_user: self.vmm_user,
        })
    }

    /// The options of a session with the sandbox.
    ///
    /// # Errors
    /// As [`search`](Self::search).
    pub(crate) fn session(
        &self,
        run_dir: Option<PathBuf>,
        container: Option<&str>,
    ) -> Result<SessionOptions, Error> {
        let search = self.search(run_dir, container)?;
        Ok(SessionOptions { search, timeout: self.timeout, verbose: self.verbose })
    }
}
