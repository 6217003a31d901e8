//! Which sandbox a command works on, how to reach it, and how to report.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;

use super::duration::parse_duration;
use crate::{
    Deadline, Error,
    cri::Wanted,
    format::Format,
    kata::{
        agent_address::AgentAddress,
        bundle::Bundles,
        sandbox::{self, Search},
    },
    ops::{
        pod::{FoundPod, PodSearch},
        session::SessionOptions,
    },
    pod::PodName,
    stopwatch::Stopwatch,
};

/// The highest user ID. The number above it means "no user".
const MAX_UID: i64 = u32::MAX as i64 - 1;

/// Which sandbox, how to reach it, and how to report; the same for all verbs.
#[derive(Debug, Args)]
pub struct Target {
    /// Sandbox ID or a unique prefix of it; not needed if a container is named
    #[arg(long, value_name = "ID")]
    pub sandbox: Option<String>,

    /// Pod, as NAMESPACE/NAME, in place of --sandbox; NAME alone is in the namespace `default`.
    /// --container is then the container's name in the pod
    #[arg(long, value_name = "POD", conflicts_with = "sandbox")]
    pub pod: Option<PodName>,

    /// CRI socket of the container engine, which --pod is looked up with: a path or unix://PATH
    /// [default: the variable CONTAINER_RUNTIME_ENDPOINT, then the only one that exists of
    /// containerd, CRI-O and k3s]
    #[arg(long, value_name = "PATH")]
    pub cri: Option<OsString>,

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

    /// User that QEMU runs as, if it has its files in /run/user/UID (rootless VMM)
    #[arg(long, value_name = "UID", value_parser = clap::value_parser!(u32).range(..=MAX_UID))]
    pub vmm_user: Option<u32>,

    /// Log each step to standard error
    #[arg(short, long)]
    pub verbose: bool,

    /// What the pod was found to be.
    #[arg(skip)]
    pub found: Option<FoundPod>,
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
            attempts: match &self.found {
                Some(found) => found.containers.clone(),
                None => Vec::new(),
            },
            qmp: self.qmp.clone(),
            agent,
            vmm_user: self.vmm_user,
            bundles: Bundles::default(),
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
        let (deadline, watch) = match &self.found {
            Some(found) => (found.deadline, found.watch.clone()),
            None => (Deadline::of_command(self.timeout), Stopwatch::new()),
        };
        Ok(SessionOptions { search, deadline, watch, verbose: self.verbose })
    }

    /// Explains an `error` of a command on the container that was found.
    pub(crate) async fn explain(&self, error: Error) -> Error {
        let (Some(pod), Some(found)) = (&self.pod, &self.found) else { return error };
        let (container, cri) = (found.view.container.as_deref(), self.cri.as_deref());
        let search = PodSearch { pod, container, wanted: Wanted::Running, cri, roots: None };
        search.explain(error, found).await
    }

    /// The search for the pod, if one is named, and for `container` in it.
    pub(crate) fn pod_search<'a>(
        &'a self,
        run_dir: Option<&Path>,
        container: Option<&'a str>,
        wanted: Wanted,
    ) -> Option<PodSearch<'a>> {
        let pod = self.pod.as_ref()?;
        // With both sockets named, a sandbox needs no state directory.
        let needs_roots = self.qmp.is_none() || self.agent.is_none();
        let roots = needs_roots.then(|| sandbox::roots(run_dir, self.vmm_user));
        Some(PodSearch { pod, container, wanted, cri: self.cri.as_deref(), roots })
    }
}
