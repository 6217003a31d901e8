//! What `repair` prints: what it found of each volume and what it did, as one JSON object or a line
//! each.

use serde::{Deserialize, Serialize};

use crate::{
    listing::State,
    output::{FailureBody, Timings},
    printable::printable,
};

/// What became of a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Repaired {
    /// [`SCHEMA`](crate::output::SCHEMA).
    pub schema: u32,
    /// `repair`
    pub command: String,
    /// All of it in a word.
    pub result: Whole,
    /// Every volume of which anything was there, in the order of the ids.
    pub volumes: Vec<Mended>,
    /// Why not all is well, if so; its exit code is the command's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<FailureBody>,
    /// How long the stages took.
    pub timings_us: Timings,
}

/// What became of all volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Whole {
    /// Something was completed or undone, and all is well.
    #[serde(rename = "repaired")]
    Repaired,
    /// All was well.
    #[serde(rename = "unchanged")]
    Unchanged,
    /// Something is left.
    #[serde(rename = "incomplete")]
    Incomplete,
    /// With `--dry-run`: something would be completed or undone.
    #[serde(rename = "would repair")]
    WouldRepair,
}

/// One volume, or one use of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mended {
    /// The volume's id; empty for a descriptor that belongs to none.
    pub id: String,
    /// The container that it is recorded for.
    pub container: String,
    /// The path there.
    pub device_path: String,
    /// The real path on the host.
    pub source: String,
    /// What was found.
    pub was: Found,
    /// What was done.
    pub did: Did,
    /// What is there now.
    pub now: Now,
    /// Why it was done, or why it could not be.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Found {
    /// A volume in this state.
    Volume(State),
    /// A descriptor of ours in QEMU that nothing uses.
    Descriptor(UnusedDescriptor),
}

/// Its word in the JSON form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnusedDescriptor {
    /// `unused descriptor`
    #[serde(rename = "unused descriptor")]
    Unused,
}

/// What was done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Did {
    /// What was begun is brought to its end: a plug, or an unplug.
    #[serde(rename = "completed")]
    Completed,
    /// It is taken away.
    #[serde(rename = "undone")]
    Undone,
    /// It was well, and was not touched.
    #[serde(rename = "kept")]
    Kept,
    /// It could not be decided or done.
    #[serde(rename = "failed")]
    Failed,
    /// With `--dry-run`.
    #[serde(rename = "would complete")]
    WouldComplete,
    /// With `--dry-run`.
    #[serde(rename = "would undo")]
    WouldUndo,
}

/// What is there afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Now {
    /// All of it.
    Attached,
    /// Nothing.
    Gone,
    /// What was there before, as far as is known.
    Unknown,
}

impl Found {
    fn text(self) -> &'static str {
        match self {
            Self::Volume(state) => state.text(),
            Self::Descriptor(UnusedDescriptor::Unused) => "unused descriptor",
        }
    }
}

impl Did {
    fn text(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Undone => "undone",
            Self::Kept => "kept",
            Self::Failed => "failed",
            Self::WouldComplete => "would complete",
            Self::WouldUndo => "would undo",
        }
    }
}

impl Now {
    fn text(self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::Gone => "gone",
            Self::Unknown => "unknown",
        }
    }
}

impl Repaired {
    /// The exit status.
    pub fn exit_code(&self) -> u8 {
        self.error.as_ref().map_or(0, |error| error.exit_code)
    }
}

/// Lines for people.
pub(crate) fn lines(repaired: &Repaired) -> String {
    let mut lines: Vec<_> = repaired.volumes.iter().map(line).collect();
    if lines.is_empty() {
        lines.push("nothing of ours is there".to_owned());
    }
    lines.join("\n")
}

fn line(mended: &Mended) -> String {
    let volume = if mended.id.is_empty() { "no volume" } else { mended.id.as_str() };
    let place = match mended.container.as_str() {
        "" => String::new(),
        container => {
            format!(" at {} in container {}", printable(&mended.device_path), printable(container))
        }
    };
    let why = if mended.why.is_empty() {
        String::new()
    } else {
        format!(" ({})", printable(&mended.why))
    };
    let (was, did, now) = (mended.was.text(), mended.did.text(), mended.now.text());
    match mended.did {
        Did::Kept => format!("{volume}{place}: {was}: {did}{why}"),
        Did::Failed => format!("{volume}{place}: {was}: {did}{why}"),
        _ => format!("{volume}{place}: {was}: {did}, {now}{why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::SCHEMA;

    fn repaired() -> Repaired {
        let mended = Mended {
            id: "0123456789abcdef".into(),
            container: "c1".into(),
            device_path: "/dev/\u{1b}".into(),
            source: "/dev/sdb".into(),
            was: Found::Volume(State::ContainerGone),
            did: Did::Undone,
            now: Now::Gone,
            why: "its container is gone".into(),
        };
        let descriptor = Mended {
            id: String::new(),
            container: String::new(),
            device_path: String::new(),
            source: String::new(),
            was: Found::Descriptor(UnusedDescriptor::Unused),
            did: Did::WouldUndo,
            now: Now::Unknown,
            why: String::new(),
        };
        Repaired {
            schema: SCHEMA,
            command: "repair".into(),
            result: Whole::WouldRepair,
            volumes: vec![mended, descriptor],
            error: None,
            timings_us: Timings(vec![("total".into(), 7)]),
        }
    }

    #[test]
    fn the_json_form_is_stable() {
        let expected = concat!(
            r#"{"schema":1,"command":"repair","result":"would repair","volumes":[{"id":"0123456789abcdef","#,
            r#""container":"c1","device_path":"/dev/\u001b","source":"/dev/sdb","was":"stale: container gone","#,
            r#""did":"undone","now":"gone","why":"its container is gone"},{"id":"","container":"","device_path":"","#,
            r#""source":"","was":"unused descriptor","did":"would undo","now":"unknown"}],"timings_us":{"total":7}}"#
        );
        assert_eq!(serde_json::to_string(&repaired()).unwrap(), expected);
        assert_eq!(serde_json::from_str::<Repaired>(expected).unwrap(), repaired());
    }

    #[test]
    fn people_read_a_line_for_each() {
        let expected = "0123456789abcdef at /dev/\\u{1b} in container c1: stale: container gone: undone, gone (its \
             container is gone)\nno volume: unused descriptor: would undo, unknown";
        assert_eq!(lines(&repaired()), expected);
        assert_eq!(
            lines(&Repaired { volumes: Vec::new(), ..repaired() }),
            "nothing of ours is there"
        );
    }
}
