//! QEMU's [events](https://www.qemu.org/docs/master/interop/qmp-spec.html#asynchronous-events), of
//! which a hostile QEMU can send any number, of any length. Therefore only the events that are used
//! are kept, and of their data only the members that are used.

use std::fmt;

use serde::{
    Deserialize,
    de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

/// The number of events that wait for their receiver; later ones are dropped.
pub(crate) const MAX_EVENTS: usize = 1024;
/// The events that are kept. vm-harness uses the last two. Of those after the first one only the
/// names are used: each may be the end of a job or an export.
pub(crate) const KEPT: [&str; 8] = [
    "DEVICE_DELETED",
    "BLOCK_JOB_COMPLETED",
    "BLOCK_JOB_CANCELLED",
    "BLOCK_JOB_ERROR",
    "JOB_STATUS_CHANGE",
    "BLOCK_EXPORT_DELETED",
    "MIGRATION",
    "RESUME",
];
/// The members of an event's data that are kept.
const KEPT_MEMBERS: [&str; 3] = ["device", "path", "status"];
/// The longest value of a member that is kept. The ID of a device and its path are shorter.
const MAX_MEMBER_LENGTH: usize = 1024;

/// An asynchronous message of QEMU.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The event's name, for instance `DEVICE_DELETED`.
    pub name: String,
    /// The members of the event's data that are kept; null if there are none.
    pub data: Value,
}

/// What a line is, as far as events are concerned.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// An event that is used.
    Kept(Event),
    /// Another event.
    Dropped,
    /// No event.
    Other,
}

/// Reads a line that is no longer than any event may be.
pub(super) fn read(line: &[u8]) -> Kind {
    #[derive(Deserialize)]
    struct Line {
        event: String,
        #[serde(default)]
        data: Members,
    }
    // Parse only lines that may be an event.
    if !line.windows(NAME.len()).any(|bytes| bytes == NAME) {
        return Kind::Other;
    }
    match serde_json::from_slice(line) {
        Ok(Line { event, data }) if KEPT.contains(&event.as_str()) => {
            let data = if data.0.is_empty() { Value::Null } else { data.0.into() };
            Kind::Kept(Event { name: event, data })
        }
        Ok(_) => Kind::Dropped,
        Err(_) => Kind::Other,
    }
}

const NAME: &[u8] = b"\"event\"";

/// The members that are kept of any JSON value.
#[derive(Default)]
struct Members(Map<String, Value>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
        let mut kept = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            if KEPT_MEMBERS.contains(&name.as_str()) {
                let Text(text) = map.next_value()?;
                kept.extend(text.map(|text| (name, text.into())));
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Members(kept))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Members, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Members::default())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Members, E> {
        Ok(Members::default())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Members, E> {
        Ok(Members::default())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Members, E> {
        Ok(Members::default())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Members, E> {
        Ok(Members::default())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Members, E> {
        Ok(Members::default())
    }

    fn visit_unit<E: Error>(self) -> Result<Members, E> {
        Ok(Members::default())
    }
}

/// A short string, or nothing for any other JSON value.
struct Text(Option<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Any {
            Text(String),
            Other(IgnoredAny),
        }
        Ok(Self(match Any::deserialize(deserializer)? {
            Any::Text(text) if text.len() <= MAX_MEMBER_LENGTH => Some(text),
            Any::Text(_) | Any::Other(_) => None,
        }))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case(r#"{"timestamp": {"seconds": 1}, "event": "DEVICE_DELETED", "data": {"device": "d", "path": "/d"}}"#, json!({"device": "d", "path": "/d"}))]
    #[case::others_are_left_out(r#"{"event": "DEVICE_DELETED", "data": {"device": "d", "more": [[{}]]}}"#, json!({"device": "d"}))]
    #[case::no_string(r#"{"event": "DEVICE_DELETED", "data": {"device": {"path": "x"}}}"#, json!(null))]
    #[case::no_data(r#"{"event": "DEVICE_DELETED"}"#, json!(null))]
    #[case::a_list(r#"{"event": "DEVICE_DELETED", "data": [{"device": "d"}]}"#, json!(null))]
    #[case::a_number(r#"{"event": "DEVICE_DELETED", "data": -1.5}"#, json!(null))]
    fn an_event_that_is_used_keeps_the_members_that_are_used(
        #[case] line: &str,
        #[case] data: Value,
    ) {
        assert_eq!(
            read(line.as_bytes()),
            Kind::Kept(Event { name: "DEVICE_DELETED".into(), data })
        );
    }

    #[test]
    fn a_long_value_is_left_out() {
        let long = "x".repeat(MAX_MEMBER_LENGTH + 1);
        let line = json!({"event": "DEVICE_DELETED", "data": {"device": long, "path": "/d"}});
        let Kind::Kept(event) = read(line.to_string().as_bytes()) else { panic!("{line}") };
        assert_eq!(event.data, json!({"path": "/d"}));
    }

    #[rstest]
    #[case(r#"{"event": "RTC_CHANGE", "data": {"offset": 1}}"#, Kind::Dropped)]
    #[case(r#"{"return": {"event": 1}}"#, Kind::Other)]
    #[case(r#"{"return": "\"event\""}"#, Kind::Other)]
    #[case("\"event\"", Kind::Other)]
    fn other_lines_are_no_events_that_are_used(#[case] line: &str, #[case] kind: Kind) {
        assert_eq!(read(line.as_bytes()), kind);
    }
}
