//! A directory of the host in the guest, as Kata shares the containers' files with its guests: by
//! [virtio-fs](https://docs.kernel.org/filesystems/virtiofs.html), which
//! [virtiofsd](https://gitlab.com/virtio-fs/virtiofsd) serves, or by
//! [9p](https://docs.kernel.org/filesystems/9p.html), which QEMU serves itself.
//!
//! Debian's cloud kernels have neither, its generic kernel has both as modules.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Environment, Error, Process, process::start_server};

/// The tag of the device, which the guest mounts.
pub(crate) const TAG: &str = "share";

/// A directory of the host that the guest can mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedDirectory {
    /// Its path on the host.
    pub path: PathBuf,
    /// The protocol between guest and host.
    pub protocol: Protocol,
}

/// The protocol of a shared directory, and the guest's file system for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// 9p over virtio, without a cache.
    NineP,
    /// virtio-fs, with virtiofsd's default cache.
    VirtioFs,
}

impl SharedDirectory {
    /// Returns the parameter of the kernel command line that loads the modules for it.
    pub fn kernel_parameter(&self) -> String {
        let modules = match self.protocol {
            Protocol::NineP => "9p,9pnet_virtio",
            Protocol::VirtioFs => "virtiofs",
        };
        format!("guest.modules={modules}")
    }

    /// Returns the shell command that mounts it in the guest.
    pub fn mount_command(&self, target: &str) -> String {
        let (file_system, options) = self.file_system();
        let options = options.join(",");
        format!("mkdir -p {target} && mount -t {file_system} -o {options} {TAG} {target}")
    }

    /// Returns the guest's file system, and its mount options.
    pub(crate) fn file_system(&self) -> (&'static str, &'static [&'static str]) {
        match self.protocol {
            Protocol::NineP => ("9p", &["trans=virtio", "version=9p2000.L"]),
            Protocol::VirtioFs => ("virtiofs", &["rw"]),
        }
    }

    /// Returns QEMU's arguments; `socket` is that of [`SharedDirectory::serve`].
    pub(crate) fn arguments(&self, socket: &Path) -> [String; 4] {
        match self.protocol {
            // QEMU runs as root: files that the guest makes have the guest's owners, and it can
            // make device nodes.
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

    /// Starts the server on `socket`, unless QEMU serves the directory itself.
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
        // With its own sandbox it would continue in a forked process, which the harness cannot end.
        command.args(["--sandbox", "none"]);
        start_server("virtiofsd", command, socket, stderr).await.map(Some)
    }
}
