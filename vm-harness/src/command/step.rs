//! What a person sees while something takes its time.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// A line on a terminal that says what is awaited and for how long. Nothing where standard error is no terminal.
pub(super) struct Waiting(ProgressBar);

impl Waiting {
    pub(super) fn start(what: &str) -> Self {
        let bar =
            if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    /// Says what is awaited now.
    pub(super) fn now(&self, what: &str) {
        self.0.set_message(what.to_owned());
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
    #[case(Duration::from_micros(23_900), "23 ms")]
    #[case(Duration::from_millis(999), "999 ms")]
    #[case(Duration::from_millis(2449), "2.4 s")]
    fn times_are_short(#[case] time: Duration, #[case] expected: &str) {
        assert_eq!(shown(time), expected);
    }
}
