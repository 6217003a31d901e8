//! A VM that libvirt starts and manages, with the harness's kernel, image and second monitor: what
//! `virsh` does and what `ecr-runtime` does can be compared on one QEMU.
//!
//! libvirtd and QEMU are in one PID namespace, whose first process the kernel kills when the
//! harness dies, and what libvirt writes is in one mount namespace. So nothing is left, however a
//! run ends. libvirt runs as root, without systemd, networks, cgroups and confinement.

mod domain;
pub(crate) mod virsh;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use tokio::net::UnixStream;

use super::{
    BootOptions,
    boot::{BootedVm, StartedVm},
    machine::{MachineFiles, raise_descriptor_limit},
    vsock::{self, Vsock},
};
use crate::{
    Console, Environment, Error, Guest, Origin, Process, RunDir, process::start_server,
    vm::libvirt::virsh::Virsh,
};

const SCRIPT: &str = include_str!("namespace.sh");
const QEMU_CONF: &str = include_str!("qemu.conf");
/// How long libvirt may take to start a VM with KVM. The first one asks QEMU for all that it can
/// do.
const CREATE: Duration = Duration::from_secs(30);

impl BootOptions<'_> {
    /// Boots the guest `id` by libvirt.
    pub(crate) async fn run_by_libvirt(self, id: &str) -> Result<(BootedVm, Virsh), Error> {
        let run_dir = RunDir::create(id)?;
        let vm = run_dir.vm();
        let cid = fastrand::u32(3..u32::MAX);
        let [kernel, initramfs] = ["vmlinux", "initramfs.cpio"].map(|name| self.image.join(name));
        let files = MachineFiles::new(&vm, kernel, initramfs, cid);
        let hybrid = vm.join("vm.vsock");
        let messages = vm.join("vsock.stderr");
        let vsock = vsock::start(self.environment, cid, &files.vhost, &hybrid, &messages).await?;
        let (first, virsh) = start(self.environment, &vm, &format!("sandbox-{id}")).await?;
        let domain = vm.join("domain.xml");
        let text = self.domain(virsh.domain(), &files)?;
        fs::write(&domain, text).map_err(Error::file("write", &domain))?;
        let time_scale = self.accelerator.configured_time_scale()?;
        let limit = CREATE * time_scale;
        let created = tokio::time::timeout(limit, virsh.create(&domain)).await;
        created.map_err(|_| Error::TimedOut {
            awaited: "the end of virsh create".to_owned(),
            limit,
            report: first.stderr(),
        })??;
        let guest = Arc::new(Guest {
            qemu_id: server(&files.monitor).await?,
            qemu: first,
            vsock: Some(vsock),
            share: None,
            console: Console::new(files.console.clone()),
            accelerator: self.accelerator,
            time_scale,
            origin: Origin::Booted("by libvirt".to_owned()),
        });
        let vsock = Vsock::Hybrid(hybrid);
        let started = StartedVm { cid, run_dir, guest, files, vsock };
        Ok((started.until_agent_answers().await?, virsh))
    }
}

/// Starts libvirtd. What it writes is in `directory`.
async fn start(
    environment: &Environment,
    directory: &Path,
    domain: &str,
) -> Result<(Process, Virsh), Error> {
    raise_descriptor_limit();
    let tree = environment.libvirt()?;
    let directory = directory.join("libvirt");
    fs::create_dir(&directory).map_err(Error::file("make", &directory))?;
    let libvirtd_conf = format!(
        "unix_sock_dir = \"{}\"\nauth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n\
         log_outputs = \"3:stderr\"\n",
        directory.display()
    );
    for (name, text) in [("libvirtd.conf", &*libvirtd_conf), ("qemu.conf", QEMU_CONF)] {
        let path = directory.join(name);
        fs::write(&path, text).map_err(Error::file("write", path))?;
    }
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--pid", "--fork", "--kill-child=KILL", "sh", "-c", SCRIPT, "sh"])
        .arg(&tree)
        .arg(&directory);
    let socket = directory.join("libvirt-sock");
    let stderr = directory.join("libvirtd.stderr");
    let first = start_server("libvirtd", command, &socket, &stderr).await?;
    Ok((first, Virsh::new(&tree, &socket, domain)))
}

/// Returns the process that listens on a socket.
async fn server(socket: &PathBuf) -> Result<u32, Error> {
    let stream = UnixStream::connect(socket).await.map_err(Error::file("connect to", socket))?;
    let peer = stream.peer_cred().map_err(Error::file("ask for the server of", socket))?;
    let process = peer.pid().and_then(|process| u32::try_from(process).ok());
    process.ok_or_else(|| Error::Missing {
        what: format!("the process that listens on {}", socket.display()),
        remedy: "run in the host's PID namespace",
    })
}
