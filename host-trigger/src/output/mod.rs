//! What a command prints and records: one JSON object or a few lines for people on standard output,
//! errors for people on standard error, an audit record in syslog or a file.

use std::path::Path;

use serde::Serialize;

use crate::{Error, diagnostics, error::ErrorBody, format::Format};

pub(crate) mod audit;
mod audit_file;
mod audit_record;
pub mod envelope;
mod file_kind;
pub mod findings;
pub mod listing;
mod node_listing;
pub mod node_report;
mod output_file;
pub(crate) mod pods;
pub mod prometheus;
pub mod repair_report;
pub mod report;
pub mod schema;
mod standard_output;
pub mod stats_report;
mod syslog;
pub mod table;

/// Prints a result: `document` as JSON, or what `human` returns.
///
/// # Errors
/// It cannot be written to standard output.
pub(crate) fn print_result(
    format: Format,
    document: &impl Serialize,
    human: impl FnOnce() -> String,
) -> Result<(), Error> {
    match format {
        Format::Human => print(&human()),
        Format::Json => print_json(document),
    }
}

/// Prints an error: for people on standard error, for programs `document` on standard output. If
/// that cannot be written, standard error gets both errors.
pub(crate) fn print_error(format: Format, error: &ErrorBody, document: &impl Serialize) {
    match format {
        Format::Human => print_error_lines(error),
        Format::Json => {
            if let Err(e) = print_json(document) {
                print_error_lines(error);
                print_error_lines(&ErrorBody::from(&e));
            }
        }
    }
}

/// Prints an error for people.
pub(crate) fn print_error_lines(error: &ErrorBody) {
    diagnostics::line(&format!("error: {}", error.message));
    if let Some(remedy) = &error.remedy {
        diagnostics::line(&format!("remedy: {remedy}"));
    }
}

fn print_json(value: &impl Serialize) -> Result<(), Error> {
    // Serialization fails only for maps whose keys are no strings, and for paths that are not
    // UTF-8 (see `path_text`).
    let text = serde_json::to_string(value);
    print(&text.map_err(|e| Error::OutputLost { source: e.into() })?)
}

/// Prints `text` and a newline to standard output.
fn print(text: &str) -> Result<(), Error> {
    write(format!("{text}\n").as_bytes())
}

/// Writes `text` to standard output. A reader that closes its end early has what it wanted: the
/// work is done anyway, and the exit status says so.
///
/// # Errors
/// It cannot be written.
pub(crate) fn write(text: &[u8]) -> Result<(), Error> {
    standard_output::write(text).map_err(|source| Error::OutputLost { source })
}

/// Replaces the file `path` by one with `text` and a newline, as a whole.
///
/// # Errors
/// It cannot be written, or is no regular file. The file is then as it was.
pub(crate) fn replace_file(path: &Path, text: &str) -> Result<(), Error> {
    output_file::replace(path, format!("{text}\n").as_bytes())
        .map_err(|source| Error::OutputFile { path: path.to_owned(), source })
}
