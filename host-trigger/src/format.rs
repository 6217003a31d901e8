//! The format of the output.

/// How the result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Lines for people
    Human,
    /// One JSON object on standard output, for success and for failure
    Json,
}
