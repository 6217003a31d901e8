//! `virsh`, as people call it: a process for each command. The tests' own libvirtd is behind it.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use crate::Error;

/// `virsh` with the only domain of a libvirtd.
#[derive(Debug, Clone)]
pub struct Virsh {
    program: PathBuf,
    libraries: PathBuf,
    uri: String,
    domain: String,
}

impl Virsh {
    pub(super) fn new(tree: &Path, socket: &Path, domain: &str) -> Self {
        Self {
            program: tree.join("usr/bin/virsh"),
            libraries: tree.join("usr/lib/x86_64-linux-gnu"),
            uri: format!("qemu+unix:///system?socket={}", socket.display()),
            domain: domain.to_owned(),
        }
    }

    pub(super) fn domain(&self) -> &str {
        &self.domain
    }

    pub(super) async fn create(&self, domain: &Path) -> Result<Duration, Error> {
        self.run("create", [domain.as_os_str()]).await.map(|(time, _)| time)
    }

    /// Returns the versions of libvirt and of QEMU.
    ///
    /// # Errors
    /// It fails.
    pub async fn version(&self) -> Result<String, Error> {
        let (_, text) = self.run("version", [] as [&str; 0]).await?;
        let names = ["Using library", "Running hypervisor"];
        let versions = text.lines().filter_map(|line| line.split_once(": "));
        let versions = versions.filter(|(name, _)| names.contains(name)).map(|(_, what)| what);
        Ok(versions.collect::<Vec<_>>().join(", "))
    }

    /// Attaches a block device to the VM, with QEMU's options as `ecr-runtime` has them, and
    /// returns the time from start to end of the process. It ends at the VM.
    ///
    /// # Errors
    /// It fails.
    pub async fn attach(&self, source: &str, target: &str) -> Result<Duration, Error> {
        let disk = [self.domain.as_str(), source, target, "--live", "--targetbus", "scsi"];
        let options = ["--sourcetype", "block", "--cache", "none", "--io", "io_uring"];
        self.run("attach-disk", disk.into_iter().chain(options)).await.map(|(time, _)| time)
    }

    /// Detaches it, and returns the time from start to end of the process.
    ///
    /// # Errors
    /// It fails.
    pub async fn detach(&self, target: &str) -> Result<Duration, Error> {
        let disk = [self.domain.as_str(), target, "--live"];
        self.run("detach-disk", disk).await.map(|(time, _)| time)
    }

    async fn run<S: AsRef<OsStr>>(
        &self,
        command: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<(Duration, String), Error> {
        let start = Instant::now();
        let child = tokio::process::Command::new(&self.program)
            .args(["--connect", &self.uri, command])
            .args(arguments)
            .env("LD_LIBRARY_PATH", &self.libraries)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let spawn = |source| Error::Spawn { program: "virsh".to_owned(), source };
        let output = child.map_err(spawn)?.wait_with_output().await.map_err(spawn)?;
        let elapsed = start.elapsed();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            Ok((elapsed, text(&output.stdout)))
        } else {
            let message = text(&output.stderr);
            Err(Error::Failed { command: format!("virsh {command}"), message })
        }
    }
}
