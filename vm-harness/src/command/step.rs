//! What a person sees while something takes its time.

use std::{
    fmt::Write,
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use super::awaited;

/// What takes less is not worth a line.
const PATIENCE: Duration = Duration::from_secs(1);

/// A line on a terminal that says what is done, for how long, and what the harness waits for, if it
/// takes longer than a second. Nothing where standard error is no terminal.
pub(super) struct Waiting(ProgressBar);

impl Waiting {
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
                let _ = line.write_str(&progress(&what, state.elapsed(), &awaited::now()));
            };
            bar.set_style(style.with_key("line", line));
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    /// Takes the line away.
    pub(super) fn end(&self) {
        self.0.finish_and_clear();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.end();
    }
}

fn progress(what: &str, elapsed: Duration, awaited: &str) -> String {
    match (elapsed >= PATIENCE, awaited) {
        (false, _) => String::new(),
        (true, "") => format!("{what} ({} s)", elapsed.as_secs()),
        (true, awaited) => format!("{what} ({} s): waiting for {awaited}", elapsed.as_secs()),
    }
}

/// Does `work`, and says what it was and how long it took.
pub(super) async fn step<T>(what: &str, work: impl Future<Output = T>) -> T {
    let waiting = Waiting::start(what);
    let start = Instant::now();
    let result = work.await;
    let elapsed = start.elapsed();
    waiting.end();
    eprintln!("{:>9}  {what}", shown(elapsed));
    result
}

fn shown(time: Duration) -> String {
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
    fn only_what_takes_its_time_is_worth_a_line(
        #[case] millis: u64,
        #[case] awaited: &str,
        #[case] line: &str,
    ) {
        assert_eq!(progress("booting", Duration::from_millis(millis), awaited), line);
    }

    #[rstest::rstest]
    #[case(Duration::from_micros(23_900), "23 ms")]
    #[case(Duration::from_millis(999), "999 ms")]
    #[case(Duration::from_millis(2449), "2.4 s")]
    fn times_are_short(#[case] time: Duration, #[case] expected: &str) {
        assert_eq!(shown(time), expected);
    }
}
