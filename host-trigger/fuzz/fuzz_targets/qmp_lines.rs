//! QEMU's lines: the greeting, replies and events that are kept, and everything else that is
//! dropped. A parser of whole lines is the reference for the shortcuts.
//!
//! Input: the ID of the first command (4 bytes), the number of commands (1 byte), the offset at
//! which the stream is split into two reads (2 bytes), the stream.

#![no_main]

use std::fmt;

use block_volume_qmp::fuzz::{MAX_EVENTS, Passed, is_kept, lines};
use libfuzzer_sys::fuzz_target;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

fuzz_target!(|input: &[u8]| {
    let Some((head, stream)) = input.split_at_checked(7) else { return };
    let first = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    let count = head[4];
    let cut = usize::from(u16::from_le_bytes([head[5], head[6]])).min(stream.len());
    let (start, rest) = stream.split_at(cut);
    let passed = lines(&[start, rest], first, count.into()).expect("no line is too long");

    let whole =
        stream.iter().rposition(|&byte| byte == b'\n').map_or(&[][..], |end| &stream[..=end]);
    let Some(expected) = expected(whole, first, count) else { return };
    let Passed { greeting, replies, events } = passed;
    let names: Vec<_> = events.into_iter().map(|event| event.name).collect();
    assert_eq!(names, expected.events);
    let parse = |line: &[u8]| serde_json::from_slice(line).expect("what is kept is JSON");
    assert_eq!(greeting.map(|line| parse(&line)), expected.greeting);
    let replies: Vec<Value> = replies.iter().map(|line| parse(line)).collect();
    assert_eq!(replies, expected.replies);
});

#[derive(Default)]
struct Expected {
    greeting: Option<Value>,
    events: Vec<String>,
    replies: Vec<Value>,
}

/// Returns what must be kept; `None` if a line is not a JSON object or is ambiguous.
fn expected(stream: &[u8], first: u32, count: u8) -> Option<Expected> {
    let mut expected = Expected::default();
    for line in stream.split_inclusive(|&byte| byte == b'\n') {
        let Keys(mut keys) = serde_json::from_slice(line).ok()?;
        keys.sort_unstable();
        if keys.windows(2).any(|two| two[0] == two[1]) {
            return None;
        }
        let value: Value = serde_json::from_slice(line).ok()?;
        if let Some(name) = value["event"].as_str() {
            // QEMU never writes a key with escapes.
            if !line.windows(7).any(|word| word == b"\"event\"") {
                return None;
            }
            expected.events.extend(is_kept(name).then(|| name.to_owned()));
        } else if expected.greeting.is_some() {
            // Each command has one reply, in the order of the commands.
            let next = first.wrapping_add(u32::try_from(expected.replies.len()).ok()?);
            if expected.replies.len() < count.into() && value["id"] == next {
                expected.replies.push(value);
            }
        } else if value.get("return").is_none() && value.get("error").is_none() {
            expected.greeting = Some(value);
        }
    }
    (expected.events.len() <= MAX_EVENTS).then_some(expected)
}

/// The keys of an object, duplicates included.
struct Keys(Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Keys;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = Vec::new();
                while let Some((key, IgnoredAny)) = map.next_entry()? {
                    keys.push(key);
                }
                Ok(Keys(keys))
            }
        }
        deserializer.deserialize_map(Object)
    }
}
