//! [QMP](https://www.qemu.org/docs/master/interop/qmp-spec.html) as a proxy sees it: lines of JSON,
//! each a greeting, a command, a reply or an event. A reply is told by its id, or by the order of
//! the commands where they have none.

use serde_json::Value;

use super::{Message, Protocol, Side, Taken};

/// The state of one connection.
#[derive(Debug, Default)]
pub struct Qmp {
    greeted: bool,
    /// Id, null without, and name of each command that was passed on.
    asked: Vec<(Value, String)>,
}

impl Protocol for Qmp {
    fn take(&mut self, from: Side, bytes: &[u8]) -> Option<Taken> {
        let length = bytes.iter().position(|&byte| byte == b'\n')? + 1;
        let line = &bytes[..length];
        let shown = serde_json::from_slice(line)
            .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(line).trim().to_owned()));
        let message = match from {
            Side::Client => self.question(&shown),
            Side::Server => self.told(&shown),
        };
        // An empty line only carries descriptors.
        Some(Taken { length, message, shown: (shown != "").then_some(shown) })
    }

    fn never_came(&mut self) {
        self.asked.pop();
    }
}

impl Qmp {
    fn question(&mut self, line: &Value) -> Option<Message> {
        let name = line["execute"].as_str().or_else(|| line["exec-oob"].as_str())?.to_owned();
        self.asked.push((line["id"].clone(), name.clone()));
        Some(Message::Command(name))
    }

    fn told(&mut self, line: &Value) -> Option<Message> {
        if let Some(name) = line["event"].as_str() {
            return Some(Message::Event(name.to_owned()));
        }
        if line.get("QMP").is_some() {
            return (!std::mem::replace(&mut self.greeted, true)).then_some(Message::Greeting);
        }
        let is_answer = line.get("return").is_some() || line.get("error").is_some();
        let index = self.asked.iter().position(|(id, _)| is_answer && *id == line["id"])?;
        // An id is used once, but its command may come twice, and then its answer does.
        let name = match line["id"] {
            Value::Null => self.asked.remove(index).1,
            _ => self.asked[index].1.clone(),
        };
        Some(Message::Reply(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::{command, event, greeting, reply_to};

    #[test]
    fn lines_are_told_from_each_other_with_ids_and_without() {
        let mut qmp = Qmp::default();
        let mut message = |from, line: &str| qmp.take(from, line.as_bytes()).unwrap().message;
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
    fn a_line_that_is_not_whole_is_waited_for() {
        assert!(Qmp::default().take(Side::Client, b"{\"execute\"").is_none());
        let taken = Qmp::default().take(Side::Client, b"\n{\"execute\"").unwrap();
        assert_eq!((taken.length, taken.message, taken.shown), (1, None, None));
    }
}
