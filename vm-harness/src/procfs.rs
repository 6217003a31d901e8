//! What [`proc(5)`](https://man7.org/linux/man-pages/man5/proc.5.html) reports about processes:
//! [`/proc/PID/stat`](https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html) of the host, and
//! the text of
//! [`/proc/PID/mountinfo`](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html), which
//! comes from the guest.

use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

/// `/proc/PID/stat` of one process, at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessStat {
    /// The letter of the process's state: `R`, `S`, `T`, `Z` and others.
    pub state: char,
    /// Time in user and kernel mode, in clock ticks.
    ticks: u64,
}

impl ProcessStat {
    /// Reads the file of a process; `None` once the process was reaped.
    pub fn of(process: u32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        // A program's name may contain anything, parentheses included.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_whitespace();
        let state = fields.next()?.chars().next()?;
        let mut times = fields.skip(10).map_while(|field| field.parse::<u64>().ok());
        Some(Self { state, ticks: times.next()? + times.next()? })
    }

    /// Returns the processor time that the process used so far, in user and kernel mode.
    pub fn processor_time(&self) -> Option<Duration> {
        let per_second = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
        Some(Duration::from_millis(self.ticks * 1000 / per_second))
    }
}

/// Returns the sorted lines of a `mountinfo` without their first two fields: the mount ID and the
/// parent's ID are new for every mount.
pub(crate) fn mounts(mountinfo: &str) -> Vec<String> {
    let mut mounts: Vec<String> = mountinfo
        .lines()
        .map(|line| line.splitn(3, ' ').last().unwrap_or_default().to_owned())
        .collect();
    mounts.sort();
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_and_times_are_found_behind_any_program_name() {
        let stat = "7 (a) R (b) S 1 7 7 0 -1 4194560 9 0 0 0 30 12 5 5 20 0 1 0 100 2 3\n";
        assert_eq!(ProcessStat::parse(stat), Some(ProcessStat { state: 'S', ticks: 42 }));
        assert_eq!(ProcessStat::parse("7 (a"), None);
        assert!(ProcessStat::of(std::process::id()).is_some());
    }

    #[test]
    fn mounts_are_compared_without_their_ids() {
        let mountinfo = "30 1 0:5 / /sys rw - sysfs sysfs rw\n29 1 0:4 / /proc rw - proc proc rw\n";
        assert_eq!(
            mounts(mountinfo),
            ["0:4 / /proc rw - proc proc rw", "0:5 / /sys rw - sysfs sysfs rw"]
        );
    }
}
