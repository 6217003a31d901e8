//! A real QEMU whose CPU never starts.

#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses a part of it")]

use std::{
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use block_volume_qmp::{Deadline, Qmp};

/// A QEMU process with a QMP socket. It ends with its owner.
pub(crate) struct Qemu {
    directory: tempfile::TempDir,
    process: Child,
}

impl Qemu {
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // The socket is already bound when QEMU gets it, so that a client need not wait for it. It
        // is QEMU's standard input, which no other child can inherit by accident.
        let listener = UnixListener::bind(directory.path().join("qmp.sock")).unwrap();
        let process = Command::new("qemu-system-x86_64")
            .args(["-M", "q35", "-accel", "tcg", "-m", "16", "-display", "none", "-nodefaults"])
            .args(["-S", "-chardev", "socket,id=q,fd=0,server=on,wait=off"])
            .args(["-mon", "chardev=q,mode=control"])
            .stdin(OwnedFd::from(listener))
            .stderr(Stdio::inherit())
            .spawn()
            .expect("qemu-system-x86_64 starts");
        let qemu = Self { directory, process };
        qemu.await_greeting().await;
        qemu
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("qmp.sock")
    }

    /// Returns what the descriptor `fd` of QEMU leads to.
    pub(crate) fn file_of(&self, fd: i64) -> PathBuf {
        std::fs::read_link(format!("/proc/{}/fd/{fd}", self.process.id())).unwrap()
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
    }

    /// On a busy machine QEMU starts later than the greeting's timeout.
    async fn await_greeting(&self) {
        let deadline = Deadline::after(Duration::from_secs(30));
        while let Err(e) = Qmp::connect(self.socket(), deadline).await {
            assert!(!deadline.remaining().is_zero(), "{e}");
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.process.kill();
        self.process.wait().expect("a killed child is reaped");
    }
}
