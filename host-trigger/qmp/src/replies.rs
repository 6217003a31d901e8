//! QEMU's replies to commands that were sent together.

use std::collections::VecDeque;

use qapi::ErrorClass;
use serde::{Deserialize, de::DeserializeOwned};

use crate::{Command, QmpError, wire::weight};

/// The most memory that a reply may take when it is parsed: a list of some ten thousand volumes.
const MAX_WEIGHT: usize = 128 << 20;

/// The replies to commands that were sent together, in the order of the commands. Each is read
/// once.
#[derive(Debug)]
#[must_use = "each reply may be an error"]
pub struct Replies {
    commands: VecDeque<String>,
    lines: VecDeque<Vec<u8>>,
    /// Why there are fewer replies than commands.
    end: Option<End>,
}

/// Why no further reply was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// None came in time.
    TimedOut,
    /// The connection ended, before or after the commands were sent.
    Lost,
}

#[derive(Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
struct Reply<T> {
    #[serde(rename = "return")]
    value: Option<T>,
    error: Option<ErrorBody>,
}

#[derive(Deserialize)]
struct ErrorBody {
    class: ErrorClass,
    desc: String,
}

impl Replies {
    pub(crate) fn new(
        commands: &[Command<'_>],
        lines: VecDeque<Vec<u8>>,
        end: Option<End>,
    ) -> Self {
        Self { commands: commands.iter().map(|it| it.name.to_owned()).collect(), lines, end }
    }

    /// Adds the replies to commands that were sent later.
    pub fn append(&mut self, later: Self) {
        let is_whole = self.lines.len() == self.commands.len();
        self.commands.extend(later.commands);
        self.lines.extend(later.lines);
        if is_whole {
            self.end = later.end;
        }
    }

    /// Reads the reply to the next command.
    ///
    /// # Errors
    /// QEMU refused the command, did not reply to it in time, or is gone; or the reply has another
    /// form. [`QmpError::Disconnected`] also if there is no further command.
    pub fn read<T: DeserializeOwned>(&mut self) -> Result<T, QmpError> {
        let command = self.commands.pop_front().unwrap_or_default();
        let Some(line) = self.lines.pop_front() else {
            // The other replies are missing because this one is.
            return Err(match self.end.replace(End::Lost) {
                Some(End::TimedOut) => QmpError::TimedOut { command },
                Some(End::Lost) | None => QmpError::Disconnected { command },
            });
        };
        if weight(&line) > MAX_WEIGHT {
            return Err(QmpError::Answer { command });
        }
        match serde_json::from_slice(&line) {
            Ok(Reply { error: Some(ErrorBody { class, desc }), .. }) => {
                Err(QmpError::Refused { command, class: format!("{class:?}"), description: desc })
            }
            Ok(Reply { value: Some(value), .. }) => Ok(value),
            Ok(_) | Err(_) => Err(QmpError::Answer { command }),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn replies(lines: &[&str], end: Option<End>) -> Replies {
        let commands = ["a", "b", "c"].map(|name| Command::new(name, json!({})));
        let lines = lines.iter().map(|line| line.as_bytes().to_vec()).collect();
        Replies::new(&commands, lines, end)
    }

    #[test]
    fn each_reply_is_that_to_its_command() {
        let lines = [
            r#"{"return": {}, "id": 1}"#,
            r#"{"id": 2, "error": {"class": "DeviceNotFound", "desc": "d"}}"#,
            r#"{"return": [1], "id": 3}"#,
        ];
        let mut replies = replies(&lines, None);
        assert_eq!(replies.read::<Value>().unwrap(), json!({}));
        let refused = replies.read::<Value>().unwrap_err();
        assert!(
            matches!(&refused, QmpError::Refused { command, class, description }
                if [command, class, description] == ["b", "DeviceNotFound", "d"]),
            "{refused:?}"
        );
        let other = replies.read::<String>().unwrap_err();
        assert!(matches!(&other, QmpError::Answer { command } if command == "c"), "{other:?}");
    }

    #[test]
    fn one_reply_is_late_and_the_others_are_lost() {
        let mut replies = replies(&[r#"{"return": 1, "id": 1}"#], Some(End::TimedOut));
        assert_eq!(replies.read::<u32>().unwrap(), 1);
        let late = replies.read::<u32>().unwrap_err();
        assert!(matches!(&late, QmpError::TimedOut { command } if command == "b"), "{late:?}");
        let lost = replies.read::<u32>().unwrap_err();
        assert!(matches!(&lost, QmpError::Disconnected { command } if command == "c"), "{lost:?}");
    }
}
