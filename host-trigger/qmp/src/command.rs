//! A command of the
//! [QMP reference](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html), and the form in
//! which it is sent.

use std::os::fd::{AsFd, BorrowedFd};

use serde_json::{Value, json};

/// A command that is not sent yet.
#[derive(Debug, Clone)]
pub struct Command<'a> {
    pub(crate) name: &'a str,
    arguments: Value,
    pub(crate) descriptor: Option<BorrowedFd<'a>>,
}

impl<'a> Command<'a> {
    /// The command `name` with `arguments`, an object.
    pub fn new(name: &'a str, arguments: Value) -> Self {
        Self { name, arguments, descriptor: None }
    }

    /// `add-fd`: passes `fd` to QEMU, into the set `set` or a new one, with the free text `opaque`.
    /// QEMU adds to a set that exists, whoever made it. The reply is a
    /// [`PassedFd`](crate::PassedFd).
    pub fn add_fd(fd: &'a impl AsFd, set: Option<u64>, opaque: &str) -> Self {
        let arguments = match set {
            Some(set) => json!({"fdset-id": set, "opaque": opaque}),
            None => json!({"opaque": opaque}),
        };
        Self { name: "add-fd", arguments, descriptor: Some(fd.as_fd()) }
    }

    /// The line that is sent. QEMU reads it byte by byte, so it is short.
    pub(crate) fn line(&self, id: u32) -> String {
        let name = Value::from(self.name);
        match self.arguments.as_object() {
            Some(arguments) if arguments.is_empty() => {
                format!("{{\"id\":{id},\"execute\":{name}}}\n")
            }
            _ => {
                format!("{{\"id\":{id},\"execute\":{name},\"arguments\":{}}}\n", self.arguments)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_one_short_line() {
        let line = Command::new("query-status", json!({})).line(7);
        assert_eq!(line, "{\"id\":7,\"execute\":\"query-status\"}\n");
        let null = std::fs::File::open("/dev/null").unwrap();
        let line = Command::add_fd(&null, Some(1 << 30), "a\nb").line(7);
        let expected = concat!(
            r#"{"id":7,"execute":"add-fd","arguments":{"fdset-id":1073741824,"opaque":"a\nb"}}"#,
            "\n"
        );
        assert_eq!(line, expected);
    }
}
