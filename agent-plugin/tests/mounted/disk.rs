//! An image with a file system, as a disk.

use std::process::Command;

use agent_plugin::{
    block::DeviceNumber, device_node::NodePath, file_system::Kind, mounted::MountIdentity,
};
use tempfile::NamedTempFile;

use super::{loop_device::LoopDevice, mount::PATH};

pub(crate) const MIB: u64 = 1 << 20;

/// An image as a disk.
pub(crate) struct Disk {
    pub(crate) image: NamedTempFile,
    pub(crate) name: String,
    pub(crate) number: DeviceNumber,
    device: LoopDevice,
}

pub(crate) fn run(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).output().expect(words[0]);
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Disk {
    pub(crate) fn blank(size: u64) -> Disk {
        let image = NamedTempFile::new().unwrap();
        image.as_file().set_len(size).unwrap();
        let device = LoopDevice::over(image.path());
        Disk { name: device.name().to_owned(), number: device.number(), device, image }
    }

    pub(crate) fn with(kind: Kind) -> Disk {
        let disk = Disk::blank(if kind == Kind::Ext4 { 32 * MIB } else { 320 * MIB });
        disk.make(kind);
        disk
    }

    fn make(&self, kind: Kind) {
        let node = self.node();
        match kind {
            Kind::Ext4 => run(&["mkfs.ext4", "-q", &node]),
            Kind::Xfs => run(&["mkfs.xfs", "-q", &node]),
            Kind::Btrfs => run(&["mkfs.btrfs", "-q", &node]),
            other => panic!("no test makes {other}"),
        };
    }

    pub(crate) fn node(&self) -> String {
        self.device.node()
    }

    pub(crate) fn identity(&self) -> MountIdentity {
        let path = NodePath::new(PATH).unwrap();
        MountIdentity::new("s1", "c1", &path, Some(self.number))
    }

    /// Whether it can be claimed: nothing has it mounted.
    pub(crate) fn is_free(&self) -> bool {
        let excl = nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_EXCL;
        nix::fcntl::open(self.node().as_str(), excl, nix::sys::stat::Mode::empty()).is_ok()
    }
}
