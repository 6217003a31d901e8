//! The guest's clock against the host's.
//!
//! A kernel calibrates its clock while it boots
//! ([`tsc`](https://docs.kernel.org/virt/kvm/x86/timekeeping.html)). Under emulation on a busy host
//! the result may be several times too fast, and a saved boot would keep it for every later test:
//! each wait in the guest would end too early.

use std::time::{Duration, Instant};

use super::observer::Observer;
use crate::Error;

/// A clock may be so much faster: `/proc/uptime` has hundredths of a second.
const TOLERANCE: f64 = 1.1;

/// The same time by both clocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Measured {
    /// Between two readings of the guest's clock.
    guest: Duration,
    /// Between the moments before the first reading was requested and after the second arrived.
    host: Duration,
}

impl Measured {
    /// Measures while the guest sleeps for `time`.
    ///
    /// # Errors
    /// The observer does not answer.
    pub(super) async fn during(observer: &Observer, time: Duration) -> Result<Self, Error> {
        let script = format!("cat /proc/uptime; sleep {}; cat /proc/uptime", time.as_secs_f64());
        let start = Instant::now();
        let ran = observer.run(&["/bin/busybox", "sh", "-c", &script]).await?;
        let host = start.elapsed();
        match elapsed(&ran.stdout) {
            Some(guest) => Ok(Self { guest, host }),
            None => Err(Error::Observer(format!("{script}: {ran:?}"))),
        }
    }

    /// # Errors
    /// [`Error::Clock`]: the guest's clock is too fast. (One that is too slow cannot be told from a
    /// host that is busy.)
    pub(super) fn check(self) -> Result<(), Error> {
        let Self { guest, host } = self;
        match guest.as_secs_f64() > host.as_secs_f64() * TOLERANCE {
            true => Err(Error::Clock { guest, host }),
            false => Ok(()),
        }
    }
}

/// The time between two readings of `/proc/uptime`.
fn elapsed(readings: &str) -> Option<Duration> {
    let mut seconds = readings.lines().map(|line| line.split(' ').next()?.parse::<f64>().ok());
    let (first, second) = (seconds.next()??, seconds.next()??);
    Duration::try_from_secs_f64(second - first).ok()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::right(250, 260, true)]
    #[case::on_a_busy_host(250, 4000, true)]
    #[case::within_the_tolerance(260, 250, true)]
    #[case::three_times_too_fast(250, 84, false)]
    #[case::a_third_too_fast(250, 188, false)]
    fn only_a_clock_that_is_too_fast_is_an_error(
        #[case] guest: u64,
        #[case] host: u64,
        #[case] right: bool,
    ) {
        let [guest, host] = [guest, host].map(Duration::from_millis);
        assert_eq!(Measured { guest, host }.check().is_ok(), right);
    }

    #[test]
    fn the_time_between_two_readings_is_computed() {
        assert_eq!(elapsed("5.25 1.00\n5.75 1.10\n"), Some(Duration::from_millis(500)));
        assert_eq!(elapsed("5.25 1.00\n"), None);
        assert_eq!(elapsed("6.25 1.00\n5.75 1.10\n"), None);
    }
}
