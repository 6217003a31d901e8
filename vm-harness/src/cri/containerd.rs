//! containerd in namespaces of its own, in the root directory of its Debian suite.
//!
//! It, its shims and its containers are in one PID namespace, whose first process the kernel kills
//! when the harness dies; its files and mounts are in one mount namespace. So nothing is left,
//! however a test ends. The shim executes itself anew, which a loader with another library path
//! (as for QEMU's of another suite) would not survive: hence a chroot.

use std::{
    fs,
    os::{fd::AsFd as _, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    client::Client,
    engine::{until_it_has, version, when_it_replies},
    image::Image,
    pod::{Pod, PodOptions},
};
use crate::{
    Accelerator, Environment, Error, Process,
    process::{kill_process, pidfd},
    vm::run_dir::short_directory,
};

const SCRIPT: &str = include_str!("namespace.sh");
const CONFIG: &str = include_str!("config.toml");
/// Without cgroups nothing of a container is left on the host.
const CRUN: &str = "#!/bin/busybox sh\nexec /usr/bin/crun --cgroup-manager=disabled \"$@\"\n";
/// The image of the pause container, which the configuration names.
const PAUSE: &str = "localhost/harness:pause";
/// How long a start or a call may take with KVM. It takes a tenth of a second on a quiet machine.
const LIMIT: Duration = Duration::from_secs(30);

/// A running containerd. Dropping the value ends it, with all shims and containers.
#[derive(Debug)]
pub struct Containerd {
    client: Client,
    process: Process,
    /// The first process of its namespaces.
    first: u32,
    directory: tempfile::TempDir,
    limit: Duration,
}

impl Containerd {
    /// Starts containerd of the Debian suite `suite`, with the image that pods are made of.
    ///
    /// # Errors
    /// `ci/setup` did not fetch it, the caller is not root, or it does not start.
    pub async fn start(environment: &Environment, suite: &str) -> Result<Self, Error> {
        let tree = environment.containerd(suite)?;
        let scale = Accelerator::choose()?.accelerator.configured_time_scale()?;
        let limit = LIMIT * scale;
        let directory = short_directory()?;
        let host = directory.path().join("host");
        for made in [&host, &directory.path().join("mnt")] {
            fs::create_dir(made).map_err(Error::file("make", made))?;
        }
        write(&host.join("config.toml"), CONFIG.as_bytes())?;
        write(&host.join("crun"), CRUN.as_bytes())?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--kill-child=KILL", "sh", "-c", SCRIPT, "sh"])
            .arg(&tree)
            .arg(directory.path());
        let process =
            Process::start("containerd", command, &directory.path().join("containerd.stderr"))?;
        let started = async {
            let first = first_process(&directory.path().join("pid")).await;
            let client = when_it_replies(&host.join("containerd.sock"), limit).await;
            (first, client)
        };
        let awaited = "its first reply";
        let (first, client) = tokio::select! {
            started = tokio::time::timeout(limit, started) => {
                started.map_err(|_| Error::TimedOut {
                    awaited: format!("containerd: {awaited}"),
                    limit,
                    report: process.stderr(),
                })?
            }
            status = process.ended() => {
                return Err(Error::Ended {
                    program: "containerd",
                    status: status.to_string(),
                    awaited: awaited.to_owned(),
                    report: process.stderr(),
                });
            }
        };
        let this = Self { client, process, first, directory, limit };
        let busybox = tree.join("bin/busybox");
        let busybox = fs::read(&busybox).map_err(Error::file("read", busybox))?;
        this.import(&Image::new(PAUSE, busybox)).await?;
        Ok(this)
    }

    /// Returns its socket, the value for `--cri`.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("host/containerd.sock")
    }

    /// Returns its version.
    ///
    /// # Errors
    /// It does not reply.
    pub async fn version(&self) -> Result<String, Error> {
        version(&self.client).await
    }

    /// Imports an image, and waits until the CRI has it.
    ///
    /// # Errors
    /// containerd refuses it, or does not reply.
    pub async fn import(&self, image: &Image) -> Result<(), Error> {
        write(&self.directory.path().join("host/image.tar"), &image.archive())?;
        let mut import = tokio::process::Command::new("nsenter");
        import
            .args(["--target", &self.first.to_string(), "--mount", "--pid", "chroot"])
            .arg(self.directory.path().join("mnt/root"))
            .args(["/usr/bin/ctr", "--address", "/host/containerd.sock", "--namespace", "k8s.io"])
            // Unpacked by the CRI, for its snapshotter: containerd 2.x has none here for `ctr`.
            .args(["images", "import", "--no-unpack", "/host/image.tar"])
            .kill_on_drop(true);
        let spawn = |source| Error::Spawn { program: "ctr".to_owned(), source };
        let ran = tokio::time::timeout(self.limit, import.output()).await;
        let ran =
            ran.map_err(|_| self.timed_out("the end of ctr images import"))?.map_err(spawn)?;
        if !ran.status.success() {
            let message = String::from_utf8_lossy(&ran.stderr).into_owned();
            return Err(Error::Cri { call: "ctr images import", message });
        }
        until_it_has(&self.client, image.name(), self.limit)
            .await?
            .ok_or_else(|| self.timed_out("the imported image in the CRI's list"))
    }

    /// Makes a pod: its sandbox with the pause container.
    ///
    /// # Errors
    /// containerd refuses, or does not reply.
    pub async fn run_pod(&self, options: &PodOptions) -> Result<Pod, Error> {
        Pod::run(self.client.clone(), options, PAUSE).await.map_err(|error| self.explain(error))
    }

    /// Returns the end of what containerd logged, for a message.
    pub fn log(&self) -> String {
        let log = self.process.stderr();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Returns the processes in its PID namespace and in those below it, by their numbers on this
    /// host: containerd, the shims, the containers. The first one is that whose end ends all.
    pub fn processes(&self) -> Vec<u32> {
        let mut found = vec![self.first];
        let mut next = 0;
        while let Some(&process) = found.get(next) {
            found.extend(children(process));
            next += 1;
        }
        found
    }

    fn explain(&self, error: Error) -> Error {
        match error {
            Error::Cri { call, message } => {
                Error::Cri { call, message: format!("{message}\n--- containerd\n{}", self.log()) }
            }
            other => other,
        }
    }

    fn timed_out(&self, awaited: &str) -> Error {
        Error::TimedOut { awaited: awaited.to_owned(), limit: self.limit, report: self.log() }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // The first process of a PID namespace ends when all others have ended.
        if let Ok(first) = pidfd(self.first) {
            kill_process(&first);
            let ended = &mut [PollFd::new(first.as_fd(), PollFlags::POLLIN)];
            let _ = poll(ended, PollTimeout::from(10_000_u16));
        }
    }
}

/// The children of all threads of a process
/// ([proc(5)](https://man7.org/linux/man-pages/man5/proc_tid_children.5.html)); none once it ended.
fn children(process: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read(thread.path().join("children")).ok());
    let text = lists.map(|list| String::from_utf8_lossy(&list).into_owned()).collect::<String>();
    text.split_whitespace().filter_map(|id| id.parse().ok()).collect()
}

/// Reads the process ID that the script writes to `file`.
async fn first_process(file: &Path) -> u32 {
    loop {
        let read = fs::read(file).ok();
        let id = read.and_then(|text| String::from_utf8(text).ok()?.trim().parse().ok());
        if let Some(id) = id {
            return id;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Writes a file that can be executed.
fn write(path: &Path, content: &[u8]) -> Result<(), Error> {
    fs::write(path, content).map_err(Error::file("write", path))?;
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(path, mode).map_err(Error::file("set the mode of", path))
}
