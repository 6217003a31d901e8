//! The guest's own nodes of block devices, in
//! [devtmpfs](https://docs.kernel.org/filesystems/devtmpfs.html).
//!
//! A device is opened by its number. The kernel makes a node of the device's name, and udev may run
//! programs that move or replace it: then a private node is opened, on a tmpfs of its own that is
//! mounted nowhere.

use std::fs::File;

use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    sys::stat::{Mode, SFlag, fstat, mknodat},
};

use crate::{block::DeviceNumber, inode::Inode, mount, named::c_name};

/// Opens the block device `number`; `name` is the kernel's. Does not wait for a medium.
pub(crate) fn open_block_device(
    name: &str,
    number: DeviceNumber,
    flags: OFlag,
) -> Result<File, Errno> {
    let flags = flags | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let path = c_name(format!("/dev/{name}").as_bytes())?;
    let is_its_node = |inode: Inode| inode.kind == SFlag::S_IFBLK && inode.device == number;
    let opened = if Inode::followed(&path).is_ok_and(is_its_node) {
        open(path.as_c_str(), flags, Mode::empty())?
    } else {
        let private = mount::new_tmpfs()?;
        mknodat(&private, c"disk", SFlag::S_IFBLK, Mode::S_IRUSR, number.to_raw())?;
        openat(&private, c"disk", flags, Mode::empty())?
    };
    // It may have been replaced in between.
    if DeviceNumber::from_raw(fstat(&opened)?.st_rdev) == number {
        Ok(File::from(opened))
    } else {
        Err(Errno::ENXIO)
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::MetadataExt as _, path::Path};

    use super::*;
    use crate::sysfs;

    #[test]
    fn a_device_is_opened_by_its_number_whatever_its_name_leads_to() {
        let number: DeviceNumber =
            sysfs::read(Path::new("/sys/class/block/loop6/dev")).unwrap().unwrap();
        for name in ["loop6", "loop7", "null", "absent", "../etc/passwd"] {
            let opened = open_block_device(name, number, OFlag::O_RDONLY);
            let opened = opened.unwrap_or_else(|errno| panic!("these tests need root: {errno}"));
            let found = opened.metadata().unwrap().rdev();
            assert_eq!(DeviceNumber::from_raw(found), number, "{name}");
        }
    }

    #[test]
    fn a_device_that_does_not_exist_is_not_opened() {
        let number = DeviceNumber { major: 259, minor: 1_048_575 };
        assert_eq!(open_block_device("null", number, OFlag::O_RDONLY).unwrap_err(), Errno::ENXIO);
    }
}
