//! The progress line on a terminal, and the lines with the time of each step.

use std::{
    fmt::Write,
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use super::wait_status;

/// The progress line appears after this time.
const DELAY: Duration = Duration::from_secs(1);

/// A line on a terminal that shows what is done, for how long, and what the harness waits for. It
/// appears after a second, and only if standard error is a terminal.
pub(super) struct ProgressLine(ProgressBar);

impl ProgressLine {
    pub(super) fn start(what: &str) -> Self {
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new_spinner()
        } else {
            ProgressBar::hidden()
        };
        if let Ok(style) = ProgressStyle::with_template("{line}") {
            let what = what.to_owned();
            let line = move |state: &ProgressState, line: &mut dyn Write| {
                // A line that cannot be written is not shown.
                let _ = line.write_str(&text(&what, state.elapsed(), &wait_status::current()));
            };
            bar.set_style(style.with_key("line", line));
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    /// Removes the line.
    pub(super) fn end(&self) {
        self.0.finish_and_clear();
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.end();
    }
}

fn text(what: &str, elapsed: Duration, awaited: &str) -> String {
    match (elapsed >= DELAY, awaited) {
        (false, _) => String::new(),
        (true, "") => format!("{what} ({} s)", elapsed.as_secs()),
        (true, awaited) => format!("{what} ({} s): waiting for {awaited}", elapsed.as_secs()),
    }
}

/// Does `work`, and prints what it was and how long it took.
pub(super) async fn step<T>(what: &str, work: impl Future<Output = T>) -> T {
    let line = ProgressLine::start(what);
    let start = Instant::now();
    let result = work.await;
    let elapsed = start.elapsed();
    line.end();
    eprintln!("{:>9}  {what}", shown(elapsed));
    result
}

pub(super) fn shown(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case(999, "x", "")]
    #[case(1000, "", "booting (1 s)")]
    #[case(2500, "the agent's first answer", "booting (2 s): waiting for the agent's first answer")]
    fn progress_line_appears_after_a_second(
        #[case] millis: u64,
        #[case] awaited: &str,
        #[case] line: &str,
    ) {
        assert_eq!(text("booting", Duration::from_millis(millis), awaited), line);
    }

    #[rstest::rstest]
    #[case(Duration::from_micros(23_900), "23 ms")]
    #[case(Duration::from_millis(999), "999 ms")]
    #[case(Duration::from_millis(2449), "2.4 s")]
    fn times_are_short(#[case] time: Duration, #[case] expected: &str) {
        assert_eq!(shown(time), expected);
    }
}
