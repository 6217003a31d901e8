//! The flags for limits, the same for `hot-plug` and `throttle`.

use clap::Args;

use crate::{
    Error,
    qemu::throttle::{LARGEST, LimitChange},
    size::parse_size,
};

/// The limits on the command line.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
#[group(skip)]
pub struct LimitArgs {
    /// Operations per second
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_count)]
    pub iops: Option<u64>,

    /// Reads per second
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_count)]
    pub iops_read: Option<u64>,

    /// Writes per second
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_count)]
    pub iops_write: Option<u64>,

    /// Bytes per second, such as 10MiB
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = parse_rate)]
    pub bps: Option<u64>,

    /// Bytes read per second
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = parse_rate)]
    pub bps_read: Option<u64>,

    /// Bytes written per second
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = parse_rate)]
    pub bps_write: Option<u64>,

    /// Operations per second during a burst; 0: no burst
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_count)]
    pub burst_iops: Option<u64>,

    /// Reads per second during a burst
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_count)]
    pub burst_iops_read: Option<u64>,

    /// Writes per second during a burst
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_count)]
    pub burst_iops_write: Option<u64>,

    /// Bytes per second during a burst
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = parse_rate)]
    pub burst_bps: Option<u64>,

    /// Bytes read per second during a burst
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = parse_rate)]
    pub burst_bps_read: Option<u64>,

    /// Bytes written per second during a burst
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = parse_rate)]
    pub burst_bps_write: Option<u64>,

    /// Longest burst in seconds, for the bursts that are given [default: unchanged, or 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_seconds)]
    pub burst_seconds: Option<u64>,
}

impl LimitArgs {
    /// The change that they ask for.
    ///
    /// # Errors
    /// No volume could have these limits.
    pub(crate) fn change(&self) -> Result<LimitChange, Error> {
        let each = [
            (self.iops, self.burst_iops),
            (self.iops_read, self.burst_iops_read),
            (self.iops_write, self.burst_iops_write),
            (self.bps, self.burst_bps),
            (self.bps_read, self.burst_bps_read),
            (self.bps_write, self.burst_bps_write),
        ];
        if self.burst_seconds.is_some() && each.iter().all(|(_, burst)| burst.is_none()) {
            return Err(Error::InvalidLimits {
                why: "--burst-seconds needs a burst, such as --burst-iops".into(),
            });
        }
        let change = LimitChange { each, burst_seconds: self.burst_seconds };
        change.check()?;
        Ok(change)
    }
}

fn parse_rate(text: &str) -> Result<u64, String> {
    parse_size(text, LARGEST)
}

fn parse_count(text: &str) -> Result<u64, String> {
    if text.starts_with('-') {
        return Err("it is negative".to_owned());
    }
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("expected a whole number".to_owned());
    }
    let number = text.parse().ok().filter(|&number| number <= LARGEST);
    number.ok_or_else(|| format!("it is more than the {LARGEST} that QEMU accepts"))
}

fn parse_seconds(text: &str) -> Result<u64, String> {
    parse_count(text).and_then(|seconds| {
        if seconds > 0 { Ok(seconds) } else { Err("a burst lasts at least a second".to_owned()) }
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rstest::rstest;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        limits: LimitArgs,
    }

    fn parse(words: &[&str]) -> Result<LimitChange, String> {
        let line = Line::try_parse_from([&["x"], words].concat()).map_err(|e| e.to_string())?;
        line.limits.change().map_err(|e| e.message())
    }

    #[test]
    fn flags_become_a_change() {
        let change =
            parse(&["--iops", "100", "--burst-iops", "200", "--burst-seconds", "3"]).unwrap();
        assert_eq!((change.each[0], change.burst_seconds), ((Some(100), Some(200)), Some(3)));
        let change = parse(&["--bps-read", "2MiB", "--bps-write", "0"]).unwrap();
        assert_eq!((change.each[4], change.each[5]), ((Some(2 << 20), None), (Some(0), None)));
        assert!(parse(&[]).unwrap().is_empty());
    }

    #[rstest]
    #[case(&["--iops", "-5"], "it is negative")]
    #[case(&["--bps-read", "-5MiB"], "it is negative")]
    #[case(&["--iops", "1000000000000001"], "more than the 1000000000000000")]
    #[case(&["--iops", "99999999999999999999"], "more than the 1000000000000000")]
    #[case(&["--bps", "1EiB"], "more than the 1000000000000000")]
    #[case(&["--iops", "ten"], "expected a whole number")]
    #[case(&["--iops", "+5"], "expected a whole number")]
    #[case(&["--iops", ""], "expected a whole number")]
    #[case(&["--bps", "10M"], "expected bytes")]
    #[case(&["--iops", "5", "--burst-iops", "6", "--burst-seconds", "0"], "at least a second")]
    #[case(&["--iops", "5", "--burst-seconds", "6"], "--burst-seconds needs a burst")]
    #[case(&["--iops", "100", "--burst-iops", "50"], "below the limit")]
    #[case(&["--iops", "100", "--iops-read", "50"], "exclude each other")]
    fn invalid_limits_are_refused(#[case] words: &[&str], #[case] why: &str) {
        let error = parse(words).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}
