//! The node's journal
//! ([`journalctl`](https://man7.org/linux/man-pages/man1/journalctl.1.html)).

use std::path::Path;

use serde_json::Value;
use tokio::process::Command;

use super::program::run;

/// How many characters of a line are shown.
const LENGTH: usize = 500;
/// How many lines a failure shows.
pub(super) const OF_A_FAILURE: u32 = 60;
/// How many lines show what a scenario that still runs is doing.
pub(super) const OF_A_MINUTE: u32 = 15;

/// Returns the last `lines`, of everything; an error in their place if there are none. Each line
/// begins with its time since the boot in microseconds.
pub(super) async fn tail(root: &Path, lines: u32) -> String {
    let mut command = Command::new("journalctl");
    command.args(["--no-pager", "--output", "short-monotonic", "--lines", &lines.to_string()]);
    match command.arg("--root").arg(root).kill_on_drop(true).output().await {
        Ok(output) => shortened(&String::from_utf8_lossy(&output.stdout)),
        Err(error) => format!("no journal: {error}"),
    }
}

/// Cuts each line: containerd prints its whole configuration as one.
fn shortened(text: &str) -> String {
    text.lines().flat_map(|line| line.chars().take(LENGTH).chain(['\n'])).collect()
}

/// Returns the lines of `tail` that came after `earlier`, which was the journal's end.
pub(super) fn lines_since<'a>(earlier: &str, tail: &'a str) -> &'a str {
    let known = earlier.lines().next_back().and_then(|last| Some((tail.rfind(last)?, last)));
    known.map_or(tail, |(at, last)| tail[at + last.len()..].trim_start_matches('\n'))
}

/// Returns the audit records of `ecr-runtime` so far.
///
/// # Panics
/// The journal cannot be read, or has a record that is not JSON.
pub(super) async fn audit_records() -> Vec<Value> {
    // What was sent to the journal's socket before this is in the journal after it.
    run(&["journalctl", "--sync"]).await;
    let text = run(&[
        "journalctl",
        "SYSLOG_FACILITY=10",
        "--identifier",
        "ecr-runtime",
        "--output",
        "cat",
        "--no-pager",
    ]);
    let record = |line: &str| {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("no record ({error}): {line}"))
    };
    text.await.lines().map(record).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case::the_first_report("", "[1] a\n[2] b\n", "[1] a\n[2] b\n")]
    #[case::nothing_new("[1] a\n[2] b\n", "[1] a\n[2] b\n", "")]
    #[case::one_more("[1] a\n[2] b\n", "[2] b\n[3] c\n", "[3] c\n")]
    #[case::more_than_are_shown("[1] a\n", "[8] h\n[9] i\n", "[8] h\n[9] i\n")]
    fn lines_are_reported_once(#[case] earlier: &str, #[case] tail: &str, #[case] new: &str) {
        assert_eq!(lines_since(earlier, tail), new);
    }

    #[test]
    fn long_lines_are_cut() {
        let (long, cut) = ("ä".repeat(LENGTH + 1), "ä".repeat(LENGTH));
        assert_eq!(shortened(&format!("a\n{long}\nb\n")), format!("a\n{cut}\nb\n"));
    }
}
