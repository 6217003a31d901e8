//! The sending side: commands with an
//! [ID](https://www.qemu.org/docs/master/interop/qmp-spec.html) each, and with their descriptors
//! ([`SCM_RIGHTS`](https://man7.org/linux/man-pages/man7/unix.7.html)).
//!
//! QEMU reads its monitor byte by byte, and stops reading while it executes a command. It gets a
//! descriptor together with the first byte of the message that carries it, and `add-fd` takes the
//! descriptor that came last (`tcp_chr_recv`, `qmp_add_fd`). So a command with a descriptor is a
//! message of its own: also who relays a monitor can tell whose descriptor it is then.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    os::fd::{AsRawFd, BorrowedFd},
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::{io::Interest, net::UnixStream};

use crate::Command;

/// Commands that are to be sent.
#[derive(Debug, Default)]
pub(crate) struct Outbox<'a> {
    messages: VecDeque<Message<'a>>,
}

/// Bytes, and the descriptor that is sent with the first of them.
#[derive(Debug)]
struct Message<'a> {
    descriptor: Option<BorrowedFd<'a>>,
    bytes: Vec<u8>,
    sent: usize,
}

impl<'a> Outbox<'a> {
    /// The commands get the IDs from `first` on.
    pub(crate) fn new(commands: &[Command<'a>], first: u32) -> Self {
        let mut messages: VecDeque<Message<'a>> = VecDeque::new();
        for (command, id) in commands.iter().zip(first..) {
            let line = command.line(id);
            let joins = |message: &&mut Message<'_>| {
                message.descriptor.is_none() && command.descriptor.is_none()
            };
            match messages.back_mut().filter(joins) {
                Some(message) => message.bytes.extend(line.as_bytes()),
                None => messages.push_back(Message {
                    descriptor: command.descriptor,
                    bytes: line.into_bytes(),
                    sent: 0,
                }),
            }
        }
        Self { messages }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Sends as much as the socket takes now.
    pub(crate) fn send(&mut self, socket: &UnixStream) -> io::Result<()> {
        while let Some(message) = self.messages.front_mut() {
            match socket.try_io(Interest::WRITABLE, || message.send(socket)) {
                Ok(()) if message.sent == message.bytes.len() => drop(self.messages.pop_front()),
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

impl Message<'_> {
    fn send(&mut self, socket: &UnixStream) -> io::Result<()> {
        let numbers = self.descriptor.filter(|_| self.sent == 0).map(|fd| [fd.as_raw_fd()]);
        let rights = numbers.as_ref().map(|numbers| ControlMessage::ScmRights(numbers));
        self.sent += sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(&self.bytes[self.sent..])],
            rights.as_slice(),
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_command_with_a_descriptor_is_a_message_of_its_own() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let query = || Command::new("query-status", json!({}));
        let add = || Command::add_fd(&null, None, "");
        let outbox = Outbox::new(&[query(), add(), query(), query(), add(), add()], 5);
        let message = |message: &Message<'_>| {
            let lines = str::from_utf8(&message.bytes).unwrap().lines();
            let id = |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].clone();
            (message.descriptor.is_some(), lines.map(id).collect::<Vec<_>>())
        };
        let messages: Vec<_> = outbox.messages.iter().map(message).collect();
        let expected = [
            (false, vec![json!(5)]),
            (true, vec![json!(6)]),
            (false, vec![json!(7), json!(8)]),
            (true, vec![json!(9)]),
            (true, vec![json!(10)]),
        ];
        assert_eq!(messages, expected);
    }
}
