//! `block-volume throttle`: the limits of a volume that is plugged become other ones, at once and
//! without the guest's part
//! ([`block_set_io_throttle`](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html#command-QMP-block.block_set_io_throttle)).
//! One command of QEMU changes all of them together, so that there is nothing to undo.

use std::path::PathBuf;

use clap::Args;

use crate::{
    Deadline, Error, choice,
    cli::{Target, Which},
    limits::{Change, LARGEST, Limits},
    lock,
    output::{Outcome, Report, SCHEMA, Timings},
    reach,
    sandbox::Place,
    signals::Signals,
    size::parse_size,
    stopwatch::Stopwatch,
    survey::Subject,
};

/// Limits how many operations and bytes a second a volume gets
///
/// Works at once, on a volume in use as well. Only the limits that are given change; 0 is
/// unlimited. A limit for reads and writes together excludes those for reads or writes alone: to go
/// from one to the other, set the old one to 0 in the same call. The limits go with the volume when
/// it is unplugged.
#[derive(Debug, Args)]
pub struct Throttle {
    /// How to reach the sandbox.
    #[command(flatten)]
    pub target: Target,

    /// The container's id, or the start of it; only a volume of this container is meant
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,

    /// Which volume.
    #[command(flatten)]
    pub which: Which,

    /// Only checks what can be checked, and says what would be done; changes nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Which limits.
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// The limits that are given.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
#[group(skip)]
pub struct LimitArgs {
    /// Operations a second
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_count)]
    pub iops: Option<u64>,

    /// Reads a second
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_count)]
    pub iops_read: Option<u64>,

    /// Writes a second
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_count)]
    pub iops_write: Option<u64>,

    /// Bytes a second, such as 10MiB
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = parse_rate)]
    pub bps: Option<u64>,

    /// Bytes read a second
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = parse_rate)]
    pub bps_read: Option<u64>,

    /// Bytes written a second
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = parse_rate)]
    pub bps_write: Option<u64>,

    /// Up to so many operations a second for a while; 0: no more than the limit
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_count)]
    pub burst_iops: Option<u64>,

    /// The same for reads
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_count)]
    pub burst_iops_read: Option<u64>,

    /// The same for writes
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_count)]
    pub burst_iops_write: Option<u64>,

    /// Up to so many bytes a second for a while
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = parse_rate)]
    pub burst_bps: Option<u64>,

    /// The same for bytes read
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = parse_rate)]
    pub burst_bps_read: Option<u64>,

    /// The same for bytes written
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = parse_rate)]
    pub burst_bps_write: Option<u64>,

    /// How long a burst that is given may last, in seconds [default: as before, or 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_seconds)]
    pub burst_seconds: Option<u64>,
}

impl LimitArgs {
    /// What is to change.
    ///
    /// # Errors
    /// No volume could get these limits.
    pub(crate) fn change(&self) -> Result<Change, Error> {
        let each = [
            (self.iops, self.burst_iops),
            (self.iops_read, self.burst_iops_read),
            (self.iops_write, self.burst_iops_write),
            (self.bps, self.burst_bps),
            (self.bps_read, self.burst_bps_read),
            (self.bps_write, self.burst_bps_write),
        ];
        if self.burst_seconds.is_some() && each.iter().all(|(_, burst)| burst.is_none()) {
            return Err(Error::Limits {
                why: "--burst-seconds needs a burst, such as --burst-iops".into(),
            });
        }
        let change = Change { each, burst_seconds: self.burst_seconds };
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
    number.ok_or_else(|| format!("it is more than the {LARGEST} that QEMU takes"))
}

fn parse_seconds(text: &str) -> Result<u64, String> {
    parse_count(text).and_then(|seconds| {
        if seconds > 0 { Ok(seconds) } else { Err("a burst lasts a second at least".to_owned()) }
    })
}

/// Runs the verb.
///
/// # Errors
/// The limits are what they were.
pub async fn run(verb: &Throttle, run_dir: Option<PathBuf>) -> Result<Report, Error> {
    let mut watch = Stopwatch::new();
    let deadline = Deadline::after(verb.target.timeout);
    let mut signals = Signals::catch()?;
    choice::check(&verb.which)?;
    let change = verb.limits.change()?;
    if change.is_empty() {
        return Err(Error::Limits { why: "no limit is given, such as --iops or --bps".into() });
    }
    let place = Place::find(&verb.target.search(run_dir, verb.container.as_deref())?)?;
    watch.lap("find");
    let _lock = signals.unless_caught(lock::acquire(&place.lock_directory(), deadline)).await?;
    watch.lap("lock");

    let prepare = async {
        let (mut qmp, registry) = reach::ask_qemu(&place, deadline).await?;
        let known = choice::find(&verb.which, verb.container.as_deref(), &place, &registry)?;
        let id = known.id.clone();
        if !known.presence.device {
            return Err(Error::HalfPlugged { volume: id.to_string() });
        }
        let subject = Subject::new(&mut qmp, &registry, &place.sandbox, known).await?;
        let present = Limits::read(&mut qmp).await?.remove(&id).unwrap_or_default();
        Ok((qmp, id, subject.volume, present))
    };
    let (mut qmp, id, mut volume, present) = signals.unless_caught(prepare).await?;
    watch.lap("qemu");
    volume.throttle = change.of(&id, &present)?;
    let result = if volume.throttle == present {
        Outcome::Unchanged
    } else if verb.dry_run {
        Outcome::WouldThrottle
    } else {
        // Short, and not cut by a signal: who sends one is told what holds.
        volume.throttle.write(&mut qmp, &id).await?;
        Outcome::Throttled
    };
    watch.lap("throttle");
    Ok(Report {
        schema: SCHEMA,
        command: "throttle".to_owned(),
        result,
        volumes: vec![volume],
        broke: Vec::new(),
        timings_us: Timings(watch.finish()),
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

    fn parse(words: &[&str]) -> Result<Change, String> {
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
    #[case(&["--iops", "5", "--burst-iops", "6", "--burst-seconds", "0"], "a second at least")]
    #[case(&["--iops", "5", "--burst-seconds", "6"], "--burst-seconds needs a burst")]
    #[case(&["--iops", "100", "--burst-iops", "50"], "below the limit")]
    #[case(&["--iops", "100", "--iops-read", "50"], "exclude each other")]
    fn odd_limits_are_refused(#[case] words: &[&str], #[case] why: &str) {
        let error = parse(words).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}
