//! What a sandbox uses: descriptors and memory of QEMU, memory of the agent and of the guest. Read
//! from [`proc(5)`](https://man7.org/linux/man-pages/man5/proc.5.html) of host and guest.

use std::{fmt, path::Path};

use guest_observer::{Reply, Request};

use crate::{Error, Sandbox};

/// Descriptors and memory at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Open descriptors of QEMU, without sockets: their number changes with QEMU's clients.
    pub qemu_descriptors: usize,
    /// QEMU's anonymous memory. The guest's memory is shared memory and not part of it.
    pub qemu_kb: u64,
    /// QEMU's executable memory: TCG's translation of all code that the guest ever ran. It grows by
    /// a megabyte for each process that is started in a container.
    pub qemu_code_kb: u64,
    /// The agent's anonymous memory.
    pub agent_kb: u64,
    /// The guest's available memory.
    pub guest_free_kb: u64,
}

impl Footprint {
    /// Reads the footprint of a sandbox.
    ///
    /// # Errors
    /// QEMU has ended, or the observer in the guest does not answer.
    pub async fn of(sandbox: &Sandbox) -> Result<Self, Error> {
        let observer = sandbox.observer();
        let agent = match observer.ask(&Request::AgentState).await? {
            Reply::AgentState(agent) => agent,
            other => return Err(Error::Observer(format!("unexpected reply {other:?}"))),
        };
        let guest = observer.run(&["/bin/busybox", "cat", "/proc/meminfo"]).await?.stdout;
        let qemu = format!("/proc/{}", sandbox.guest().qemu_id());
        let maps =
            std::fs::read_to_string(format!("{qemu}/smaps")).map_err(Error::file("read", &qemu))?;
        let descriptors =
            std::fs::read_dir(format!("{qemu}/fd")).map_err(Error::file("read", &qemu))?;
        Ok(Self {
            qemu_descriptors: descriptors
                .flatten()
                .filter(|entry| !is_socket(&entry.path()))
                .count(),
            qemu_kb: anonymous_kb(&maps, false),
            qemu_code_kb: anonymous_kb(&maps, true),
            agent_kb: agent.rss_anon_kb,
            guest_free_kb: number(&guest, "MemAvailable:"),
        })
    }

    /// Returns what grew since `earlier`, a line each. Memory may grow a little: the size of a heap
    /// varies, and a guest's available memory was seen to differ by 18 MB (a disk takes 0.3 MB).
    pub fn growth_since(&self, earlier: &Self) -> Vec<String> {
        let mut growth = Vec::new();
        if self.qemu_descriptors != earlier.qemu_descriptors {
            growth.push(format!(
                "QEMU's descriptors were {} and are {}",
                earlier.qemu_descriptors, self.qemu_descriptors
            ));
        }
        // TCG needs memory to administer its translations: 95 kB for each megabyte were measured
        // with QEMU 10.0, 180 kB with 7.2.
        let translation_kb = self.qemu_code_kb.saturating_sub(earlier.qemu_code_kb) / 4;
        for (what, more, less, slack_kb) in [
            ("QEMU's memory grew", self.qemu_kb, earlier.qemu_kb, 4096 + translation_kb),
            ("the agent's memory grew", self.agent_kb, earlier.agent_kb, 512),
            ("the guest's free memory shrank", earlier.guest_free_kb, self.guest_free_kb, 24_576),
        ] {
            if more > less + slack_kb {
                growth.push(format!("{what} by {} kB", more - less));
            }
        }
        growth
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { qemu_descriptors, qemu_kb, agent_kb, guest_free_kb, .. } = self;
        write!(
            f,
            "QEMU {qemu_descriptors:>5} descriptors {qemu_kb:>7} kB, agent {agent_kb:>6} kB, \
             guest {guest_free_kb:>7} kB free"
        )
    }
}

fn is_socket(descriptor: &Path) -> bool {
    std::fs::read_link(descriptor)
        .is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
}

/// Returns the anonymous memory of all executable mappings of a `/proc/PID/smaps`, or of all
/// others.
fn anonymous_kb(maps: &str, executable: bool) -> u64 {
    let (mut sum, mut included) = (0, false);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("Anonymous:"), Some(size)) if included => {
                sum += size.parse::<u64>().unwrap_or_default()
            }
            (Some(key), Some(permissions)) if !key.ends_with(':') => {
                included = permissions.contains('x') == executable;
            }
            _ => {}
        }
    }
    sum
}

/// Returns the number of the line `key NUMBER kB`.
fn number(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_reported_above_the_normal_variation() {
        let early = Footprint {
            qemu_descriptors: 30,
            qemu_kb: 9000,
            qemu_code_kb: 0,
            agent_kb: 900,
            guest_free_kb: 90_000,
        };
        let settled = Footprint { qemu_kb: 9100, agent_kb: 1000, guest_free_kb: 89_000, ..early };
        assert_eq!(settled.growth_since(&early), Vec::<String>::new());
        let leaky = Footprint {
            qemu_descriptors: 31,
            qemu_kb: 19_000,
            agent_kb: 1900,
            guest_free_kb: 50_000,
            ..early
        };
        assert_eq!(leaky.growth_since(&early).len(), 4);
        assert_eq!(number("A: 1 kB\nMemAvailable:\t  42 kB\n", "MemAvailable:"), 42);
        let maps = "1-2 rw-p 0 0:0 0 [heap]\nRss: 9 kB\nAnonymous:   8 kB\n3-4 rwxp 0 0:0 0\nAnonymous:  500 kB\n";
        assert_eq!((anonymous_kb(maps, false), anonymous_kb(maps, true)), (8, 500));
    }
}
