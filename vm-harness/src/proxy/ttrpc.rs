//! The agent's connection as a proxy sees it: the line `CONNECT <port>` of a [hybrid
//! vsock](https://github.com/firecracker-microvm/firecracker/blob/main/docs/vsock.md) and its
//! answer `OK <port>`, then frames of
//! [ttrpc](https://github.com/containerd/ttrpc/blob/main/PROTOCOL.md): a header of ten bytes
//! (length, stream, type, flags) and a message.

use std::collections::HashMap;

use protobuf::Message as _;
use serde_json::{Value, json};

use super::{Message, Protocol, Side, Taken};

const HEADER: usize = 10;
/// What both sides bring at most.
const LARGEST: usize = 4 << 20;
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;
/// The name of the handshake's question.
const CONNECT: &str = "CONNECT";

/// The state of one connection.
#[derive(Debug, Default)]
pub struct Ttrpc {
    asked_to_connect: bool,
    connected: bool,
    /// Method of each stream.
    asked: HashMap<u32, String>,
}

impl Protocol for Ttrpc {
    fn take(&mut self, from: Side, bytes: &[u8]) -> Option<Taken> {
        let (shakes_hands, message) = match from {
            Side::Client => (&mut self.asked_to_connect, Message::Command(CONNECT.to_owned())),
            Side::Server => (&mut self.connected, Message::Reply(CONNECT.to_owned())),
        };
        if !*shakes_hands {
            let length = bytes.iter().position(|&byte| byte == b'\n')? + 1;
            *shakes_hands = true;
            let shown = Value::from(String::from_utf8_lossy(&bytes[..length]).trim().to_owned());
            return Some(Taken { length, message: Some(message), shown: Some(shown) });
        }
        self.frame(bytes)
    }

    fn never_came(&mut self) {}
}

impl Ttrpc {
    fn frame(&mut self, bytes: &[u8]) -> Option<Taken> {
        let header = bytes.get(..HEADER)?;
        let number = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (payload, stream, kind) = (number(0) as usize, number(4), header[8]);
        if payload > LARGEST {
            // No frame of anybody's: it passes as it is.
            let shown = json!({ "bytes": bytes.len() });
            return Some(Taken { length: bytes.len(), message: None, shown: Some(shown) });
        }
        let length = HEADER + payload;
        let payload = bytes.get(HEADER..length)?;
        let mut shown = json!({ "stream": stream, "bytes": length });
        let message = match kind {
            REQUEST => ttrpc::Request::parse_from_bytes(payload).ok().map(|request| {
                shown["request"] = Value::from(format!("{}/{}", request.service, request.method));
                self.asked.insert(stream, request.method.clone());
                Message::Command(request.method)
            }),
            RESPONSE => self.asked.get(&stream).map(|method| {
                shown["response"] = Value::from(method.as_str());
                Message::Reply(method.clone())
            }),
            _ => None,
        };
        Some(Taken { length, message, shown: Some(shown) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::{command, reply_to};

    fn frame(stream: u8, kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend([0, 0, 0, stream, kind, 0]);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn handshake_requests_and_responses_are_told_from_each_other() {
        let mut connection = Ttrpc::default();
        let (client, server) = (Side::Client, Side::Server);
        assert!(connection.take(client, b"CONNECT 10").is_none());
        let hello = connection.take(client, b"CONNECT 1024\nrest").unwrap();
        assert_eq!((hello.length, hello.message), (13, Some(command("CONNECT"))));
        let answer = connection.take(server, b"OK 1024\n").unwrap();
        assert_eq!((answer.length, answer.message), (8, Some(reply_to("CONNECT"))));

        let request =
            ttrpc::Request { service: "s".into(), method: "Attach".into(), ..Default::default() };
        let bytes = frame(3, REQUEST, &request.write_to_bytes().unwrap());
        assert!(connection.take(client, &bytes[..bytes.len() - 1]).is_none());
        let taken = connection.take(client, &[bytes.clone(), vec![1]].concat()).unwrap();
        assert_eq!((taken.length, taken.message), (bytes.len(), Some(command("Attach"))));
        assert_eq!(taken.shown.unwrap()["request"], "s/Attach");
        let reply = |stream| frame(stream, RESPONSE, b"");
        assert_eq!(connection.take(server, &reply(3)).unwrap().message, Some(reply_to("Attach")));
        assert_eq!(connection.take(server, &reply(5)).unwrap().message, None);
    }

    #[test]
    fn a_frame_that_nobody_sends_passes_as_it_is() {
        let mut connection = Ttrpc { asked_to_connect: true, connected: true, ..Ttrpc::default() };
        let taken = connection.take(Side::Server, &[0xff; 32]).unwrap();
        assert_eq!((taken.length, taken.message), (32, None));
    }
}
