//! The framing of a connection to the agent: the line `CONNECT <port>` of a [hybrid
//! vsock](https://github.com/firecracker-microvm/firecracker/blob/main/docs/vsock.md) and its
//! answer `OK <port>`, then frames of
//! [ttrpc](https://github.com/containerd/ttrpc/blob/main/PROTOCOL.md): a header of ten bytes
//! (length, stream, type, flags) and a message.
//!
//! The messages of a stream have the name of their method and of their step: `Plug.start`,
//! `Plug.ready`. `Plug.end` ends a stream.

use std::collections::HashMap;

use block_volume_api::block_volume::{
    PlugRequest, PlugResponse, UnplugResponse, plug_request, plug_response, unplug_response,
};
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
const DATA: u8 = 3;
/// The flag of a message without content.
const NO_DATA: u8 = 4;
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
        self.ttrpc_frame(from, bytes)
    }

    fn command_was_dropped(&mut self) {}
}

impl TtrpcFraming {
    fn ttrpc_frame(&mut self, from: Side, bytes: &[u8]) -> Option<Frame> {
        let header = bytes.get(..HEADER)?;
        let number = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (payload, stream, kind, flags) = (number(0) as usize, number(4), header[8], header[9]);
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
            DATA => self.methods.get(&stream).and_then(|method| {
                let step = match flags & NO_DATA {
                    0 => step(from, method, payload)?,
                    _ => "end",
                };
                let name = format!("{method}.{step}");
                shown["step"] = Value::from(name.as_str());
                Some(match from {
                    Side::Client => Message::Command(name),
                    Side::Server => Message::Reply(name),
                })
            }),
            _ => None,
        };
        Some(Frame { length, message, shown: Some(shown) })
    }
}

/// Returns the step that a message of a stream takes.
fn step(from: Side, method: &str, payload: &[u8]) -> Option<&'static str> {
    Some(match (method, from) {
        ("Plug", Side::Client) => match PlugRequest::parse_from_bytes(payload).ok()?.step? {
            plug_request::Step::Start(_) => "start",
            plug_request::Step::Go(_) => "go",
            plug_request::Step::Commit(_) => "commit",
            _ => return None,
        },
        ("Plug", Side::Server) => match PlugResponse::parse_from_bytes(payload).ok()?.step? {
            plug_response::Step::Ready(_) => "ready",
            plug_response::Step::Prepared(_) => "prepared",
            plug_response::Step::Attached(_) => "attached",
            _ => return None,
        },
        ("Unplug", Side::Server) => match UnplugResponse::parse_from_bytes(payload).ok()?.step? {
            unplug_response::Step::Released(_) => "released",
            unplug_response::Step::Detached(_) => "detached",
            _ => return None,
        },
        _ => return None,
    })
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
    fn messages_of_a_stream_are_named_by_their_steps() {
        let mut connection = TtrpcFraming {
            client_shook_hands: true,
            server_shook_hands: true,
            ..TtrpcFraming::default()
        };
        let mut named = |from, kind, flags, payload: &[u8]| {
            let mut bytes = frame(1, kind, payload);
            bytes[9] = flags;
            connection.next_frame(from, &bytes).unwrap().message
        };
        let request =
            ttrpc::Request { service: "s".into(), method: "Plug".into(), ..Default::default() };
        let request = request.write_to_bytes().unwrap();
        let (client, server) = (Side::Client, Side::Server);
        assert_eq!(named(client, REQUEST, 2 | NO_DATA, &request), Some(command("Plug")));
        let go = plug_request::Step::Go(Default::default());
        let go = PlugRequest { step: Some(go), ..Default::default() }.write_to_bytes().unwrap();
        assert_eq!(named(client, DATA, 0, &go), Some(command("Plug.go")));
        let ready = plug_response::Step::Ready(Default::default());
        let ready =
            PlugResponse { step: Some(ready), ..Default::default() }.write_to_bytes().unwrap();
        assert_eq!(named(server, DATA, 0, &ready), Some(reply_to("Plug.ready")));
        assert_eq!(named(server, DATA, 1 | NO_DATA, b""), Some(reply_to("Plug.end")));
        assert_eq!(named(client, DATA, 0, b""), None);
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
