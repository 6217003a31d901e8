//! The floor of the speed comparison, the least that a hot-plug can take: only a SCSI scan and the
//! wait for its block event, and for a file system its mount.
//!
//! Interfaces: `/sys/class/scsi_host/hostN/scan` and uevents over
//! [`netlink(7)`](https://man7.org/linux/man-pages/man7/netlink.7.html), `NETLINK_KOBJECT_UEVENT`.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    str,
    time::{Duration, Instant},
};

use guest_observer::Address;
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, umount2},
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv,
            setsockopt, socket, sockopt,
        },
        time::TimeVal,
    },
};

/// The time limit for a block event.
const DEADLINE: Duration = Duration::from_secs(10);
/// Where file systems are mounted.
const PLACE: &str = "/run/floor";
/// The kernel limits an event's environment to 2 KiB and its header to a path.
const LARGEST_EVENT: usize = 8192;

/// An open uevent socket.
pub(crate) struct Uevents(OwnedFd);

impl Uevents {
    pub(crate) fn open() -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkKObjectUEvent,
        )?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(DEADLINE.as_secs() as i64, 0))?;
        // Group 1: events from the kernel.
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
        Ok(Self(fd))
    }

    /// Drains the socket: it may hold an earlier event of the same address.
    fn drain(&mut self) -> io::Result<()> {
        let mut buffer = [0; LARGEST_EVENT];
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Scans `address` and returns the name of the block device that appears there.
pub(crate) fn scan(uevents: &mut Uevents, address: Address) -> io::Result<String> {
    let Address { host, target, lun } = address;
    let marker = format!("/{host}:0:{target}:{lun}/block/");
    uevents.drain()?;
    let start = Instant::now();
    fs::write(format!("/sys/class/scsi_host/host{host}/scan"), format!("0 {target} {lun}"))?;
    let mut buffer = [0; LARGEST_EVENT];
    while start.elapsed() < DEADLINE {
        match recv(uevents.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => {
                if let Some(name) = added_block(&buffer[..length], &marker) {
                    return Ok(name.to_owned());
                }
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    let message = format!("no block device at {host}:0:{target}:{lun} within {DEADLINE:?}");
    Err(io::Error::new(io::ErrorKind::TimedOut, message))
}

/// Removes the SCSI device at `address`.
pub(crate) fn delete(address: Address) -> io::Result<()> {
    let Address { host, target, lun } = address;
    fs::write(format!("/sys/class/scsi_device/{host}:0:{target}:{lun}/device/delete"), "1")
}

/// Mounts the ext4 file system of a disk in the guest.
pub(crate) fn mount(name: &str) -> io::Result<()> {
    let (node, none) = (format!("/dev/{name}"), None::<&str>);
    match fs::create_dir(PLACE) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    Ok(nix::mount::mount(Some(node.as_str()), PLACE, Some("ext4"), flags, none)?)
}

/// Unmounts it.
pub(crate) fn unmount() -> io::Result<()> {
    Ok(umount2(PLACE, MntFlags::empty())?)
}

/// Returns NAME of an event's header `add@/devices/…/H:0:T:L/block/NAME`. Partitions, which are
/// below that path, give `None`.
fn added_block<'a>(event: &'a [u8], marker: &str) -> Option<&'a str> {
    let header = str::from_utf8(event.split(|&byte| byte == 0).next()?).ok()?;
    let (_, name) = header.strip_prefix("add@")?.split_once(marker)?;
    (!name.contains('/')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKER: &str = "/0:0:5:3/block/";
    const PATH: &str =
        "/devices/pci0000:00/0000:00:01.0/virtio0/host0/target0:0:5/0:0:5:3/block/sda";

    fn name(header: &str) -> Option<String> {
        let event = format!("{header}\0ACTION=x\0SUBSYSTEM=block");
        added_block(event.as_bytes(), MARKER).map(str::to_owned)
    }

    #[test]
    fn the_disk_at_the_address_is_accepted() {
        assert_eq!(name(&format!("add@{PATH}")).as_deref(), Some("sda"));
    }

    #[test]
    fn partitions_other_actions_and_other_addresses_are_ignored() {
        assert_eq!(name(&format!("add@{PATH}/sda1")), None);
        assert_eq!(name(&format!("remove@{PATH}")), None);
        assert_eq!(name(&format!("add@{}", PATH.replace("0:0:5:3", "0:0:5:33"))), None);
        assert_eq!(name(&format!("add@{}", PATH.replace("0:0:5:3", "10:0:5:3"))), None);
    }
}
