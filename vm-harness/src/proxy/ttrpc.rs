//! The framing of a connection to the agent: the line `CONNECT <port>` of a [hybrid
//! vsock](https://github.com/firecracker-microvm/firecracker/blob/main/docs/vsock.md) and its
//! answer `OK <port>`, then frames of
//! [ttrpc](https://github.com/containerd/ttrpc/blob/main/PROTOCOL.md): a header of ten bytes
//! (length, stream, type, flags) and a message.

use std::collections::HashMap;

use protobuf::Message as _;
use serde_json::{Value, json};

use super::{
    framing::{Frame, Framing, Side},
    message::Message,
};

const HEADER: usize = 10;
/// The maximum size of a message of ttrpc.
const LARGEST: usize = 4 << 20;
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;
/// The name of the handshake, as of a command.
const CONNECT: &str = "CONNECT";

/// The state of one connection.
#[derive(Debug, Default)]
pub struct TtrpcFraming {
    client_shook_hands: bool,
    server_shook_hands: bool,
    /// Method of each stream.
    methods: HashMap<u32, String>,
}

impl Framing for TtrpcFraming {
    fn next_frame(&mut self, from: Side, bytes: &[u8]) -> Option<Frame> {
        let (shook_hands, message) = match from {
            Side::Client => (&mut self.client_shook_hands, Message::Command(CONNECT.to_owned())),
            Side::Server => (&mut self.server_shook_hands, Message::Reply(CONNECT.to_owned())),
        };
        if !*shook_hands {
            let length = bytes.iter().position(|&byte| byte == b'\n')? + 1;
            *shook_hands = true;
            let shown = Value::from(String::from_utf8_lossy(&bytes[..length]).trim().to_owned());
            return Some(Frame { length, message: Some(message), shown: Some(shown) });
        }
        self.ttrpc_frame(bytes)
    }

    fn command_was_dropped(&mut self) {}
}

impl TtrpcFraming {
    fn ttrpc_frame(&mut self, bytes: &[u8]) -> Option<Frame> {
        let header = bytes.get(..HEADER)?;
        let number = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (payload, stream, kind) = (number(0) as usize, number(4), header[8]);
        if payload > LARGEST {
            // Not a valid frame: passed on unchanged.
            let shown = json!({ "bytes": bytes.len() });
            return Some(Frame { length: bytes.len(), message: None, shown: Some(shown) });
        }
        let length = HEADER + payload;
        let payload = bytes.get(HEADER..length)?;
        let mut shown = json!({ "stream": stream, "bytes": length });
        let message = match kind {
            REQUEST => ttrpc::Request::parse_from_bytes(payload).ok().map(|request| {
                shown["request"] = Value::from(format!("{}/{}", request.service, request.method));
                self.methods.insert(stream, request.method.clone());
                Message::Command(request.method)
            }),
            RESPONSE => self.methods.get(&stream).map(|method| {
                shown["response"] = Value::from(method.as_str());
                Message::Reply(method.clone())
            }),
            _ => None,
        };
        Some(Frame { length, message, shown: Some(shown) })
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
    fn handshake_requests_and_responses_are_distinguished() {
        let mut connection = TtrpcFraming::default();
        let (client, server) = (Side::Client, Side::Server);
        assert!(connection.next_frame(client, b"CONNECT 10").is_none());
        let connect = connection.next_frame(client, b"CONNECT 1024\nrest").unwrap();
        assert_eq!((connect.length, connect.message), (13, Some(command("CONNECT"))));
        let answer = connection.next_frame(server, b"OK 1024\n").unwrap();
        assert_eq!((answer.length, answer.message), (8, Some(reply_to("CONNECT"))));

        let request =
            ttrpc::Request { service: "s".into(), method: "Attach".into(), ..Default::default() };
        let bytes = frame(3, REQUEST, &request.write_to_bytes().unwrap());
        assert!(connection.next_frame(client, &bytes[..bytes.len() - 1]).is_none());
        let request = connection.next_frame(client, &[bytes.clone(), vec![1]].concat()).unwrap();
        assert_eq!((request.length, request.message), (bytes.len(), Some(command("Attach"))));
        assert_eq!(request.shown.unwrap()["request"], "s/Attach");
        let mut reply =
            |stream| connection.next_frame(server, &frame(stream, RESPONSE, b"")).unwrap().message;
        assert_eq!(reply(3), Some(reply_to("Attach")));
        assert_eq!(reply(5), None);
    }

    #[test]
    fn invalid_frame_is_passed_on_unchanged() {
        let mut connection = TtrpcFraming {
            client_shook_hands: true,
            server_shook_hands: true,
            ..TtrpcFraming::default()
        };
        let invalid = connection.next_frame(Side::Server, &[0xff; 32]).unwrap();
        assert_eq!((invalid.length, invalid.message), (32, None));
    }
}
