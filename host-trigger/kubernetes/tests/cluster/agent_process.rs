//! A node agent as a process of its own, which can be killed as any process can. It has the fault
//! points of `host-trigger`.

use std::{os::unix::process::ExitStatusExt as _, process::Stdio};

use nix::sys::signal::Signal;
use tokio::process::{Child, Command};

use crate::{
    api_server::User,
    kata_node::{KataNode, NODE},
    wait::LIMIT,
};

/// A running process. It ends with this value.
#[derive(Debug)]
pub(crate) struct AgentProcess(Child);

impl AgentProcess {
    /// Starts the agent of `node` with these fault points (`host-trigger/src/fault.rs`).
    pub(crate) fn start(node: &KataNode, faults: &str) -> Self {
        let host = &node.host;
        let mut command = Command::new(env!("CARGO_BIN_EXE_block-volume-kubernetes"));
        command.args(["node", "--node", NODE, "--listen=127.0.0.1:0"]);
        command.arg("--cri").args(&host.cri).arg("--run-dir").args(&host.run_dir);
        command.arg("--kubelet-dir").arg(&host.kubelet);
        command.arg(format!("--timeout={}", host.timeout.as_secs()));
        for rule in &node.allowed {
            command.arg(format!("--allow-host-path={rule}"));
        }
        command.env("KUBECONFIG", node.cluster.server.kubeconfig(User::Node));
        command.env("RUST_LOG", "block_volume_kubernetes=debug");
        if !faults.is_empty() {
            command.env("ECR_RUNTIME_FAULT", faults);
        }
        Self(command.stdin(Stdio::null()).kill_on_drop(true).spawn().unwrap())
    }

    /// Waits until it has killed itself at a fault point.
    pub(crate) async fn until_killed(mut self, point: &str) {
        let ended = tokio::time::timeout(LIMIT, self.0.wait()).await;
        let ended = ended.unwrap_or_else(|_| panic!("it never came to {point}")).unwrap();
        assert_eq!(ended.signal(), Some(Signal::SIGKILL as i32), "{point}: {ended}");
    }

    /// Kills it, and waits until it has ended.
    pub(crate) async fn kill(mut self) {
        self.0.kill().await.unwrap();
    }
}
