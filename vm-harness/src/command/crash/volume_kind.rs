//! What the container gets of a volume: a device node, or its file system.

use clap::ValueEnum;
use vm_harness::{Container, EcrRuntime, FileSystem, LoopOptions, Sandbox, Volume};

const MIB: u64 = 1 << 20;
const HELLO: (&str, &[u8]) = ("hello", b"from the host");

/// The kind of a case's volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum VolumeKind {
    /// A device node (`--device-path`).
    Device,
    /// A mounted file system (`--mount-path`).
    FileSystem,
}

impl VolumeKind {
    /// Returns the path in the container of every case's volume, and of that of a concurrent
    /// command.
    pub(super) fn paths(self) -> [&'static str; 2] {
        match self {
            Self::Device => ["/dev/xvda", "/dev/xvdb"],
            Self::FileSystem => ["/dev/data/first", "/dev/data/second"],
        }
    }

    /// Returns the option that takes the path.
    pub(super) fn option(self) -> &'static str {
        match self {
            Self::Device => "--device-path",
            Self::FileSystem => "--mount-path",
        }
    }

    /// Returns the key of the path in the output.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Device => "device_path",
            Self::FileSystem => "mount_path",
        }
    }

    pub(super) fn volume(self) -> Volume {
        match self {
            Self::Device => Volume::loop_device(MIB),
            Self::FileSystem => FileSystem::Ext4.loop_device(&[HELLO], LoopOptions::default()),
        }
    }

    /// Adds a hot-plug of this volume.
    pub(super) fn hot_plug(
        self,
        call: EcrRuntime,
        sandbox: &Sandbox,
        container: &Container,
        volume: (&Volume, &str),
    ) -> EcrRuntime {
        match self {
            Self::Device => call.hot_plug(sandbox.id(), container.id(), &[volume]),
            Self::FileSystem => call.mount(sandbox.id(), container.id(), &[volume]),
        }
    }

    /// Checks that the container reads there what the host wrote to the volume.
    pub(super) async fn check_bytes(
        self,
        container: &Container,
        volume: &Volume,
        path: &str,
    ) -> Result<(), String> {
        let (file, expected) = match self {
            Self::Device => (path.to_owned(), volume.bytes(0..65536)),
            Self::FileSystem => (format!("{path}/{}", HELLO.0), HELLO.1.to_vec()),
        };
        let read = ["dd", &format!("if={file}"), "bs=64k", "count=1"];
        let read = container.try_exec(&read, b"").await.map_err(|error| error.chain())?;
        match read.stdout == expected {
            true => Ok(()),
            false => Err(format!("the container reads other bytes: {}", read.error_text())),
        }
    }

    /// Checks what is on a volume that was removed from a guest that lives.
    pub(super) fn check_volume(self, volume: &Volume) -> Result<(), String> {
        match self {
            Self::Device => Ok(()),
            Self::FileSystem => FileSystem::Ext4.check(volume),
        }
    }
}
