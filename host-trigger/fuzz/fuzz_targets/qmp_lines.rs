//! QEMU's lines before qapi reads them: events are removed, replies to other clients dropped, IDs
//! removed, lists kept. A parser of whole lines is the reference for the shortcuts.
//!
//! Input: the ID of the last command (4 bytes), the offset at which the stream is split into two
//! reads (2 bytes), the stream.

#![no_main]

use std::fmt;

use block_volume_qmp::fuzz::{Passed, is_kept, lines};
use libfuzzer_sys::fuzz_target;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use tokio::{io::AsyncReadExt as _, runtime::Builder};

fuzz_target!(|input: &[u8]| {
    let Some((head, stream)) = input.split_at_checked(6) else { return };
    let last = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    let cut = usize::from(u16::from_le_bytes([head[4], head[5]])).min(stream.len());
    let runtime = Builder::new_current_thread().build().expect("a runtime");
    let (first, second) = stream.split_at(cut);
    let passed = runtime.block_on(lines(first.chain(second), last)).expect("no line is too long");

    let whole =
        stream.iter().rposition(|&byte| byte == b'\n').map_or(&[][..], |end| &stream[..=end]);
    let Some(expected) = expected(whole, last) else { return };
    let Passed { bytes, events, list } = passed;
    let names: Vec<_> = events.into_iter().map(|event| event.name).collect();
    assert_eq!(names, expected.events);
    let replies: Vec<Value> = bytes
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.trim_ascii().is_empty())
        .map(|line| serde_json::from_slice(line).expect("a reply is still JSON"))
        .collect();
    assert_eq!(replies.len(), expected.replies.len(), "{replies:?}");
    let mut kept_list = None;
    for (reply, expected) in replies.into_iter().zip(expected.replies) {
        let is_empty_list = reply == serde_json::json!({"return": []});
        if reply != expected {
            assert!(is_empty_list && expected["return"].is_array(), "{reply} for {expected}");
        }
        kept_list = if is_empty_list { Some(expected) } else { kept_list };
    }
    if let Some(list) = list {
        let list: Value = serde_json::from_slice(&list).expect("a list is still JSON");
        assert_eq!(Some(&list["return"]), kept_list.as_ref().map(|expected| &expected["return"]));
    }
});

#[derive(Default)]
struct Expected {
    events: Vec<String>,
    replies: Vec<Value>,
}

/// Returns what must be passed on; `None` if a line is not a JSON object or is ambiguous.
fn expected(stream: &[u8], last: u32) -> Option<Expected> {
    let mut expected = Expected::default();
    let mut greeted = false;
    // A command has one reply, and there is none before the first command.
    let mut answered = 0;
    for line in stream.split_inclusive(|&byte| byte == b'\n') {
        let Keys(mut keys) = serde_json::from_slice(line).ok()?;
        keys.sort_unstable();
        if keys.windows(2).any(|two| two[0] == two[1]) {
            return None;
        }
        let mut value: Value = serde_json::from_slice(line).ok()?;
        if let Some(name) = value["event"].as_str() {
            // QEMU never writes a key with escapes.
            if !line.windows(7).any(|word| word == b"\"event\"") {
                return None;
            }
            expected.events.extend(is_kept(name).then(|| name.to_owned()));
        } else if greeted {
            let object = value.as_object_mut()?;
            if object.remove("id")? == last && answered != last {
                answered = last;
                expected.replies.push(value);
            }
        } else if value.get("return").is_none() && value.get("error").is_none() {
            greeted = true;
            expected.replies.push(value);
        }
    }
    (expected.events.len() <= 1024).then_some(expected)
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
