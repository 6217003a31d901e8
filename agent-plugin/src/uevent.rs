//! The kernel's device events ([netlink(7)](https://man7.org/linux/man-pages/man7/netlink.7.html),
//! `NETLINK_KOBJECT_UEVENT`): `add@/devices/…` and `KEY=value` pairs, separated by NUL bytes.
//!
//! The kernel drops events when the receive buffer is full, and from then on all events until the
//! buffer was emptied, even where it has room again. It reports this once (ENOBUFS), when it begins
//! to drop: sysfs may not yet show at that moment what the dropped events are about. The socket
//! stays usable.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_KOBJECT_UEVENT};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

use crate::{
    block::DeviceNumber,
    error::{Error, Result},
    fault,
    text::decimal,
};

/// Room for the ten events of each of 256 disks, and for many other events. The memory is used only
/// while events are pending.
const RECEIVE_BUFFER: usize = 8 << 20;

/// The kernel's environment of an event has 2,048 bytes, and the path before it at most 4,096.
const LARGEST_EVENT: usize = 8 << 10;

/// One event, borrowed from the socket's buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uevent<'a> {
    /// "add", "remove", "change", …
    pub action: &'a str,
    /// Path below `/sys`.
    pub devpath: &'a str,
    /// "block", "scsi", …
    pub subsystem: &'a str,
    /// "disk" or "partition" in subsystem "block"; empty where there is none.
    pub devtype: &'a str,
    /// The device number, if the device has one.
    pub number: Option<DeviceNumber>,
    /// Whether a process has asked the kernel for it (Linux 4.13 and later tell): `udevadm
    /// trigger`, or udev itself when a disk was closed that was open for writing. Nothing has
    /// happened to the device.
    pub is_synthetic: bool,
}

impl<'a> Uevent<'a> {
    /// Parses a message of the kernel. `None` for anything else, such as the messages of udev.
    pub fn parse(message: &'a [u8]) -> Option<Uevent<'a>> {
        // A value may have any bytes: it is left out alone, and not the event.
        let mut parts = message.split(|&byte| byte == 0).map(str::from_utf8);
        let (action, devpath) = parts.next()?.ok()?.split_once('@')?;
        let mut event = Uevent {
            action,
            devpath,
            subsystem: "",
            devtype: "",
            number: None,
            is_synthetic: false,
        };
        let (mut major, mut minor) = (None, None);
        for (key, value) in parts.filter_map(|part| part.ok()?.split_once('=')) {
            match key {
                "SUBSYSTEM" => event.subsystem = value,
                "DEVTYPE" => event.devtype = value,
                "MAJOR" => major = decimal(value),
                "MINOR" => minor = decimal(value),
                "SYNTH_UUID" => event.is_synthetic = true,
                _ => {}
            }
        }
        event.number = major.zip(minor).map(|(major, minor)| DeviceNumber { major, minor });
        Some(event)
    }

    /// Whether it announces a whole disk that can be used from now on.
    pub fn adds_disk(&self) -> bool {
        self.action == "add" && self.is_about_disk()
    }

    /// Whether it reports a change of a whole disk, for example of its size.
    pub fn changes_disk(&self) -> bool {
        self.action == "change" && self.is_about_disk()
    }

    fn is_about_disk(&self) -> bool {
        !self.is_synthetic && self.subsystem == "block" && self.devtype == "disk"
    }
}

/// What [`UeventSocket::receive`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Received<'a> {
    /// An event of the kernel.
    Event(Uevent<'a>),
    /// A message that the kernel did not send, or that is not an event.
    Foreign,
    /// Events were lost: read sysfs.
    Overflow,
    /// Nothing is pending: poll the socket.
    Nothing,
}

/// A socket that receives events from the moment it is opened.
#[derive(Debug)]
pub struct UeventSocket {
    socket: Socket,
    buffer: Vec<u8>,
    /// Events are dropped until nothing is pending any more.
    drops: bool,
}

impl UeventSocket {
    /// Opens a socket with a buffer that one request does not fill.
    ///
    /// # Errors
    /// The kernel refuses a socket.
    pub fn open() -> Result<UeventSocket> {
        UeventSocket::with_receive_buffer(
            fault::value("uevent-receive-buffer").unwrap_or(RECEIVE_BUFFER),
        )
    }

    /// Opens a socket with a receive buffer of `bytes`.
    ///
    /// # Errors
    /// The kernel refuses a socket.
    pub fn with_receive_buffer(bytes: usize) -> Result<UeventSocket> {
        let failed = |call| Error::system::<io::Error>(call, &"the uevent socket");
        let mut socket = Socket::new(NETLINK_KOBJECT_UEVENT).map_err(failed("socket"))?;
        setsockopt(&socket, RcvBufForce, &bytes)
            .map_err(|errno| failed("setsockopt(SO_RCVBUFFORCE)")(errno.into()))?;
        socket.bind(&SocketAddr::new(0, 1)).map_err(failed("bind"))?;
        Ok(UeventSocket { socket, buffer: Vec::with_capacity(LARGEST_EVENT), drops: false })
    }

    /// Receives the next event of the kernel, without waiting. Reports lost events when the kernel
    /// does, and again after the last pending event: from then on none is lost.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn receive(&mut self) -> Result<Received<'_>> {
        self.buffer.clear();
        match self.socket.recv_from(&mut self.buffer, libc::MSG_DONTWAIT) {
            // Only the kernel has port 0. Processes can send to this group as well.
            Ok((_, sender)) if sender.port_number() != 0 => Ok(Received::Foreign),
            Ok(_) if fault::wants("uevent", "lost") => Ok(Received::Foreign),
            Ok(_) if fault::wants("uevent", "overflow") => Ok(Received::Overflow),
            Ok(_) => Ok(Uevent::parse(&self.buffer).map_or(Received::Foreign, Received::Event)),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) if std::mem::take(&mut self.drops) => Ok(Received::Overflow),
                Some(libc::EAGAIN) => Ok(Received::Nothing),
                Some(libc::ENOBUFS) => {
                    self.drops = true;
                    Ok(Received::Overflow)
                }
                _ => Err(Error::system("recvfrom", &"the uevent socket")(error)),
            },
        }
    }
}

impl AsFd for UeventSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const ADD: &[u8] =
        b"add@/devices/virtio0/host0/target0:0:5/0:0:5:3/block/sda\0ACTION=add\0SUBSYSTEM=block\0\
        MAJOR=8\0MINOR=0\0DEVNAME=sda\0DEVTYPE=disk\0DISKSEQ=1\0SEQNUM=529\0";

    #[test]
    fn an_added_disk_is_understood() {
        let event = Uevent::parse(ADD).unwrap();
        assert!(event.adds_disk());
        assert_eq!(event.devpath, "/devices/virtio0/host0/target0:0:5/0:0:5:3/block/sda");
        assert_eq!(event.number, Some(DeviceNumber { major: 8, minor: 0 }));
    }

    #[rstest]
    #[case::partition("add@/x/block/sda/sda1\0SUBSYSTEM=block\0DEVTYPE=partition\0")]
    #[case::other_action("change@/x/block/sda\0SUBSYSTEM=block\0DEVTYPE=disk\0")]
    #[case::other_subsystem("add@/x/block/sda\0SUBSYSTEM=bsg\0DEVTYPE=disk\0")]
    #[case::no_environment("add@/x/block/sda")]
    #[case::synthetic("add@/x/block/sda\0SUBSYSTEM=block\0SYNTH_UUID=0\0DEVTYPE=disk\0")]
    fn other_events_add_no_disk(#[case] message: &str) {
        assert!(!Uevent::parse(message.as_bytes()).unwrap().adds_disk());
    }

    #[rstest]
    #[case(b"change@/x/block/sda\0SUBSYSTEM=block\0RESIZE=1\0DEVTYPE=disk\0", true)]
    #[case::of_the_scsi_device(b"change@/x/0:0:5:3\0SUBSYSTEM=scsi\0DEVTYPE=scsi_device\0", false)]
    #[case::partition(b"change@/x/block/sda/sda1\0SUBSYSTEM=block\0DEVTYPE=partition\0", false)]
    #[case::synthetic(b"change@/x/block/sda\0SYNTH_UUID=0\0SUBSYSTEM=block\0DEVTYPE=disk\0", false)]
    #[case::other_action(ADD, false)]
    fn a_changed_disk_is_understood(#[case] message: &[u8], #[case] changes: bool) {
        assert_eq!(Uevent::parse(message).unwrap().changes_disk(), changes);
    }

    #[rstest]
    #[case::udev(b"libudev\0\xfe\xed\xca\xfe")]
    #[case::empty(b"")]
    #[case::not_text(b"add@/\xff\0A=x")]
    fn other_messages_are_no_events(#[case] message: &[u8]) {
        assert_eq!(Uevent::parse(message), None);
    }

    #[test]
    fn a_value_that_is_no_text_hides_no_event() {
        let message = b"change@/devices/virtual/block/dm-0\0DM_NAME=\xff\0SUBSYSTEM=block\0";
        let event = Uevent::parse(message).unwrap();
        assert_eq!((event.action, event.subsystem), ("change", "block"));
    }

    #[test]
    fn half_a_device_number_is_none() {
        assert_eq!(Uevent::parse(b"add@/x\0MAJOR=8\0").unwrap().number, None);
        assert_eq!(Uevent::parse(b"add@/x\0MAJOR=8\0MINOR=x\0").unwrap().number, None);
    }
}
