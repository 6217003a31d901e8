//! What a command prints and records: one JSON object or a few lines for people on standard output,
//! errors for people on standard error, an audit record in syslog or a file.

use std::io::Write;

use serde::Serialize;

use crate::{diagnostics, error::ErrorBody, format::Format};

pub(crate) mod audit;
pub mod envelope;
pub mod findings;
pub mod listing;
pub(crate) mod prometheus;
pub mod repair_report;
pub mod report;
pub mod schema;
pub mod stats_report;
pub(crate) mod table;

/// Prints a result: `document` as JSON, or what `human` returns.
pub(crate) fn print_result(
    format: Format,
    document: &impl Serialize,
    human: impl FnOnce() -> String,
) {
    match format {
        Format::Human => print(&human()),
        Format::Json => print_json(document),
    }
}

/// Prints an error: for people on standard error, for programs `document` on standard output.
pub(crate) fn print_error(format: Format, error: &ErrorBody, document: &impl Serialize) {
    match format {
        Format::Human => print_error_lines(error),
        Format::Json => print_json(document),
    }
}

/// Prints an error for people.
pub(crate) fn print_error_lines(error: &ErrorBody) {
    diagnostics::line(&format!("error: {}", error.message));
    if let Some(remedy) = &error.remedy {
        diagnostics::line(&format!("remedy: {remedy}"));
    }
}

fn print_json(value: &impl Serialize) {
    // Serialization fails only for maps whose keys are no strings, and for paths that are not
    // UTF-8; no type has either.
    print(&serde_json::to_string(value).unwrap_or_default());
}

/// Prints to standard output. A reader that closes its end early has what it wanted: the work is
/// done anyway, and the exit status says so.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}
