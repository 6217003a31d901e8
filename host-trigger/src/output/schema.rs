//! The JSON Schema of everything that `ecr-runtime --output json` prints, generated from the types.
//! It is checked in as `docs/json.schema.json`, and the outputs of the test suite are validated
//! against it.

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::Value;

use super::{
    envelope::{Envelope, NoBody},
    findings::CheckReport,
    listing::Listing,
    node_report::NodeReport,
    repair_report::RepairReport,
    report::Report,
    stats_report::StatsReport,
};

/// What a command prints on standard output with `--output json`.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum Document {
    /// `hot-plug`, `hot-unplug`, `resize`, `throttle`
    Report(Envelope<Report>),
    /// `list`, `inspect`
    Listing(Envelope<Listing>),
    /// `stats`
    Stats(Envelope<StatsReport>),
    /// `repair`
    Repair(Envelope<RepairReport>),
    /// `check`
    Check(Envelope<CheckReport>),
    /// `node enable`, `node disable`, `node status`
    Node(Envelope<NodeReport>),
    /// Any command that failed
    Error(Envelope<NoBody>),
}

/// The schema, draft 2020-12.
pub fn schema() -> Value {
    let generator = SchemaGenerator::new(SchemaSettings::draft2020_12());
    let mut schema = generator.into_root_schema_for::<Document>();
    schema.insert("title".into(), "Output of ecr-runtime --output json".into());
    schema.to_value()
}
