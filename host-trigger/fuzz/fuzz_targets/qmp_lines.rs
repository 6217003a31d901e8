//! QEMU's lines before qapi gets them: events taken out, answers to anybody else dropped, ids
//! removed, lists kept. A parser of the whole line is the judge of what the short cuts do.
//!
//! Input: the number of the last command (4 bytes), where the stream is cut in two reads (2 bytes),
//! the stream.

#![no_main]

use std::fmt;

use host_trigger::fuzz::{Passed, lines};
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
    let passed = runtime.block_on(lines(first.chain(second), last)).expect("all lines are short");

    let whole =
        stream.iter().rposition(|&byte| byte == b'\n').map_or(&[][..], |end| &stream[..=end]);
    let Some(expected) = expected(whole, last) else { return };
    let Passed { bytes, events, list } = passed;
    let names: Vec<_> = events.into_iter().map(|event| event.name).collect();
    assert_eq!(names, expected.events);
    let answers: Vec<Value> = bytes
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.trim_ascii().is_empty())
        .map(|line| serde_json::from_slice(line).expect("an answer is JSON, as it was"))
        .collect();
    assert_eq!(answers.len(), expected.answers.len(), "{answers:?}");
    let mut cut_out = None;
    for (answer, expected) in answers.into_iter().zip(expected.answers) {
        let is_empty_list = answer == serde_json::json!({"return": []});
        if answer != expected {
            assert!(is_empty_list && expected["return"].is_array(), "{answer} for {expected}");
        }
        cut_out = if is_empty_list { Some(expected) } else { cut_out };
    }
    if let Some(list) = list {
        let list: Value = serde_json::from_slice(&list).expect("a list is JSON, as it was");
        assert_eq!(Some(&list["return"]), cut_out.as_ref().map(|expected| &expected["return"]));
    }
});

#[derive(Default)]
struct Expected {
    events: Vec<String>,
    answers: Vec<Value>,
}

/// `None` where a line is no JSON object, or one that can be read in two ways.
fn expected(stream: &[u8], last: u32) -> Option<Expected> {
    let mut expected = Expected::default();
    let mut greeted = false;
    // There is one answer to each command, and none before the first command.
    let mut answered = 0;
    for line in stream.split_inclusive(|&byte| byte == b'\n') {
        let Keys(mut keys) = serde_json::from_slice(line).ok()?;
        keys.sort_unstable();
        if keys.windows(2).any(|two| two[0] == two[1]) {
            return None;
        }
        let mut value: Value = serde_json::from_slice(line).ok()?;
        if let Some(name) = value["event"].as_str() {
            // A key that is written with escapes is not QEMU's.
            if !line.windows(7).any(|word| word == b"\"event\"") {
                return None;
            }
            expected.events.push(name.to_owned());
        } else if greeted {
            let object = value.as_object_mut()?;
            if object.remove("id")? == last && answered != last {
                answered = last;
                expected.answers.push(value);
            }
        } else if value.get("return").is_none() && value.get("error").is_none() {
            greeted = true;
            expected.answers.push(value);
        }
    }
    (expected.events.len() <= 1024).then_some(expected)
}

/// The keys of an object, also those that are there twice.
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
