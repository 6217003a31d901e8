//! The framing of [QMP](https://www.qemu.org/docs/master/interop/qmp-spec.html): lines of JSON,
//! each a greeting, a command, a reply or an event. A reply belongs to the command with its ID, or
//! without IDs to the oldest command.

use serde_json::Value;

use super::{
    framing::{Frame, Framing, Side},
    message::Message,
};

/// The state of one connection.
#[derive(Debug, Default)]
pub struct QmpFraming {
    greeted: bool,
    /// ID (null if it has none) and name of each command that was passed on.
    commands: Vec<(Value, String)>,
}

impl Framing for QmpFraming {
    fn next_frame(&mut self, from: Side, bytes: &[u8]) -> Option<Frame> {
        let length = bytes.iter().position(|&byte| byte == b'\n')? + 1;
        let line = &bytes[..length];
        let shown = serde_json::from_slice(line)
            .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(line).trim().to_owned()));
        let message = match from {
            Side::Client => self.client_message(&shown),
            Side::Server => self.server_message(&shown),
        };
        // An empty line only carries descriptors.
        Some(Frame { length, message, shown: (shown != "").then_some(shown) })
    }

    fn command_was_dropped(&mut self) {
        self.commands.pop();
    }
}

impl QmpFraming {
    fn client_message(&mut self, line: &Value) -> Option<Message> {
        let name = line["execute"].as_str().or_else(|| line["exec-oob"].as_str())?.to_owned();
        self.commands.push((line["id"].clone(), name.clone()));
        Some(Message::Command(name))
    }

    fn server_message(&mut self, line: &Value) -> Option<Message> {
        if let Some(name) = line["event"].as_str() {
            return Some(Message::Event(name.to_owned()));
        }
        if line.get("QMP").is_some() {
            return (!std::mem::replace(&mut self.greeted, true)).then_some(Message::Greeting);
        }
        let is_reply = line.get("return").is_some() || line.get("error").is_some();
        let index = self.commands.iter().position(|(id, _)| is_reply && *id == line["id"])?;
        // An ID is used once. Its command may have been delivered twice, then two replies come.
        let name = match line["id"] {
            Value::Null => self.commands.remove(index).1,
            _ => self.commands[index].1.clone(),
        };
        Some(Message::Reply(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::{command, event, greeting, reply_to};

    #[test]
    fn kinds_of_lines_are_distinguished_with_ids_and_without() {
        let mut qmp = QmpFraming::default();
        let mut message = |from, line: &str| qmp.next_frame(from, line.as_bytes()).unwrap().message;
        let (client, server) = (Side::Client, Side::Server);
        assert_eq!(message(server, "{\"QMP\": {}}\r\n"), Some(greeting()));
        assert_eq!(message(client, "{\"execute\": \"a\", \"id\": 7}\n"), Some(command("a")));
        assert_eq!(message(client, "{\"execute\": \"b\"}\n"), Some(command("b")));
        assert_eq!(message(client, "{\"execute\": \"c\"}\n"), Some(command("c")));
        assert_eq!(message(server, "{\"event\": \"E\", \"data\": {}}\n"), Some(event("E")));
        assert_eq!(message(server, "{\"return\": {}}\n"), Some(reply_to("b")));
        assert_eq!(message(server, "{\"error\": {}, \"id\": 7}\n"), Some(reply_to("a")));
        assert_eq!(message(server, "{\"return\": {}, \"id\": 8}\n"), None);
        assert_eq!(message(server, "{\"return\": {}}\n"), Some(reply_to("c")));
        assert_eq!(message(server, "no JSON\n"), None);
    }

    #[test]
    fn incomplete_line_is_no_frame_yet() {
        assert!(QmpFraming::default().next_frame(Side::Client, b"{\"execute\"").is_none());
        let frame = QmpFraming::default().next_frame(Side::Client, b"\n{\"execute\"").unwrap();
        assert_eq!((frame.length, frame.message, frame.shown), (1, None, None));
    }
}
