//! A directory of the host in the guest, as Kata gives its guests the containers' files:
//! [virtio-fs](https://docs.kernel.org/filesystems/virtiofs.html), by
//! [virtiofsd](https://gitlab.com/virtio-fs/virtiofsd), or
//! [9p](https://docs.kernel.org/filesystems/9p.html), by QEMU itself.
//!
//! Debian's cloud kernels know neither, its generic kernel has both as modules.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use agent_api::agent::Mount;

use crate::{Environment, Error, Process, mount, process::start_server};

/// What the guest mounts: the device's tag.
const TAG: &str = "share";

/// A directory of the host that the guest can mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedDirectory {
    /// Which.
    pub path: PathBuf,
    /// How the guest speaks with the host.
    pub protocol: Protocol,
}

/// The file system that the guest has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// 9p over virtio, without a cache.
    NineP,
    /// virtio-fs, with virtiofsd's default cache.
    VirtioFs,
}

impl SharedDirectory {
    /// The modules that the guest needs, for the kernel's command line.
    pub fn kernel_parameter(&self) -> String {
        let modules = match self.protocol {
            Protocol::NineP => "9p,9pnet_virtio",
            Protocol::VirtioFs => "virtiofs",
        };
        format!("guest.modules={modules}")
    }

    /// Mounts it in the guest, as a command of the guest's shell.
    pub fn mount_command(&self, target: &str) -> String {
        let Mount { type_, source, options, .. } = self.mount(target);
        let options = options.join(",");
        format!("mkdir -p {target} && mount -t {type_} -o {options} {source} {target}")
    }

    /// A mount of a container's specification. By 9p it is mounted once at a time.
    pub fn mount(&self, target: &str) -> Mount {
        match self.protocol {
            Protocol::NineP => mount(target, "9p", TAG, &["trans=virtio", "version=9p2000.L"]),
            Protocol::VirtioFs => mount(target, "virtiofs", TAG, &["rw"]),
        }
    }

    /// QEMU's arguments; `socket` is that of [`SharedDirectory::serve`].
    pub(crate) fn arguments(&self, socket: &Path) -> [String; 4] {
        match self.protocol {
            // As root on the host: what the guest makes has the guest's owners, device nodes too.
            Protocol::NineP => [
                "-fsdev".to_owned(),
                format!("local,id={TAG},security_model=passthrough,path={}", self.path.display()),
                "-device".to_owned(),
                format!("virtio-9p-pci,fsdev={TAG},mount_tag={TAG}"),
            ],
            Protocol::VirtioFs => [
                "-chardev".to_owned(),
                format!("socket,id={TAG},path={}", socket.display()),
                "-device".to_owned(),
                format!("vhost-user-fs-pci,chardev={TAG},tag={TAG}"),
            ],
        }
    }

    /// Starts the server at `socket`, where QEMU is none itself.
    pub(crate) async fn serve(
        &self,
        environment: &Environment,
        socket: &Path,
        stderr: &Path,
    ) -> Result<Option<Process>, Error> {
        if self.protocol == Protocol::NineP {
            return Ok(None);
        }
        let mut command = Command::new(environment.virtiofsd()?);
        command.arg("--socket-path").arg(socket).arg("--shared-dir").arg(&self.path);
        // It would leave for a process of its own, which nobody ends.
        command.args(["--sandbox", "none"]);
        start_server("virtiofsd", command, socket, stderr).await.map(Some)
    }
}
