//! The JSON envelope: the same for every verb, for success and for failure. `docs/json.md` explains
//! it, and `docs/json.schema.json` is generated from these types.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
    ser::SerializeMap,
};

use crate::{Error, error::ErrorBody, stopwatch::Stopwatch};

/// The version of the JSON form. It changes only if something is renamed or removed.
pub const SCHEMA: u32 = 1;

/// What a command prints as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Envelope<B> {
    /// The version of the JSON form, 1.
    pub schema: u32,
    /// The command or verb, such as `hot-plug`.
    pub command: String,
    /// What came of it.
    pub result: Outcome,
    /// Whether the command ran with `--dry-run`: `result` and `volumes` then say what would be
    /// done.
    pub dry_run: bool,
    /// The part that depends on the verb.
    #[serde(flatten)]
    pub body: B,
    /// Why the command failed; present if and only if `result` is `error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
    /// How long the stages took; absent if the command failed before it could measure them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timings_us: Option<Timings>,
}

/// The part of a verb that failed: nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NoBody {}

/// What came of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// `hot-plug`: at least one volume was attached.
    Attached,
    /// `node enable`: Kata starts the wrapper for new sandboxes.
    Enabled,
    /// `node disable`: Kata starts QEMU itself for new sandboxes.
    Disabled,
    /// Everything was as requested already.
    Unchanged,
    /// `hot-unplug`: the volume is gone from its container, from the guest and from QEMU.
    Detached,
    /// `hot-unplug --without-guest`: the host has the volume again; the guest was not asked, and
    /// may still have its part.
    Abandoned,
    /// `resize`: QEMU and the guest have the new size.
    Resized,
    /// `throttle`: QEMU has the new limits.
    Throttled,
    /// `repair`: something was completed or rolled back, and nothing is left.
    Repaired,
    /// `list`: the volumes are listed. `node status`: the runtime classes are.
    Listed,
    /// `inspect`: the volume is inspected.
    Inspected,
    /// `stats`: the counters were read.
    Counted,
    /// `check`: nothing is wrong.
    Ok,
    /// `check`: volumes can be plugged, and there is something to know.
    Warning,
    /// `check`: no volume can be plugged.
    Problem,
    /// The command failed: see `error`.
    Error,
}

impl<B> Envelope<B> {
    /// The envelope of a command that succeeded.
    pub(crate) fn new(command: &str, result: Outcome, body: B) -> Self {
        Self {
            schema: SCHEMA,
            command: command.to_owned(),
            result,
            dry_run: false,
            body,
            error: None,
            timings_us: None,
        }
    }

    pub(crate) fn with_dry_run(self, dry_run: bool) -> Self {
        Self { dry_run, ..self }
    }

    pub(crate) fn with_timings(self, watch: Stopwatch) -> Self {
        Self { timings_us: Some(Timings(watch.finish())), ..self }
    }

    /// Makes it the envelope of a command that failed, if there is an error.
    pub(crate) fn with_error(self, error: Option<&Error>) -> Self {
        match error {
            Some(error) => {
                Self { result: Outcome::Error, error: Some(ErrorBody::from(error)), ..self }
            }
            None => self,
        }
    }
}

impl Envelope<NoBody> {
    /// The envelope of a command that failed before it had a result.
    pub(crate) fn failed(command: &str, error: &Error) -> Self {
        Self::new(command, Outcome::Error, NoBody {}).with_error(Some(error))
    }
}

/// Stages and their microseconds, in order; an object in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timings(pub Vec<(String, u64)>);

impl JsonSchema for Timings {
    fn schema_name() -> Cow<'static, str> {
        "Timings".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        std::collections::BTreeMap::<String, u64>::json_schema(generator)
    }
}

impl Serialize for Timings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, micros) in &self.0 {
            map.serialize_entry(name, micros)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Timings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Stages;
        impl<'de> Visitor<'de> for Stages {
            type Value = Timings;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("stages and their microseconds")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Timings, A::Error> {
                let mut stages = Vec::new();
                while let Some(stage) = map.next_entry()? {
                    stages.push(stage);
                }
                Ok(Timings(stages))
            }
        }
        deserializer.deserialize_map(Stages)
    }
}
