//! What a request may leave behind in the agent: threads and descriptors of PID 1, as the observer
//! reads them from [`proc(5)`](https://man7.org/linux/man-pages/man5/proc.5.html).

use std::{collections::BTreeSet, time::Duration};

use guest_observer::{AgentState, Reply, Request, Thread};
use tokio::time::Instant;

use crate::{Error, Sandbox};

/// How the names of the plugin's threads begin (agent-plugin/src/thread.rs).
const PLUGIN: &str = "block-volume";

/// How long the end of a request may take: the agent closes a connection shortly after its client
/// did.
const SETTLING: Duration = Duration::from_secs(3);

/// How long threads of the agent's own may remain. A runtime keeps those of its pool for a while
/// after their last work, tokio for ten seconds.
const POOL: Duration = Duration::from_secs(15);

/// Threads and descriptors of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentSnapshot {
    /// The mount namespaces of its threads: only the agent's own.
    pub namespaces: BTreeSet<u64>,
    /// The plugin's threads, by ID and name.
    pub plugin_threads: BTreeSet<String>,
    /// All its other threads.
    pub other_threads: BTreeSet<String>,
    /// The files of its open descriptors; sockets without their numbers.
    pub descriptors: Vec<String>,
}

impl AgentSnapshot {
    /// Reads the current state. Does not call the agent.
    pub(super) async fn of(sandbox: &Sandbox) -> Result<Self, Error> {
        match sandbox.observer().ask(&Request::AgentState).await? {
            Reply::AgentState(state) => Ok(Self::from(state)),
            other => Err(Error::Observer(format!("unexpected reply {other:?}"))),
        }
    }

    /// Waits until the state is as in `self`, and returns it, or what it is at the deadline.
    /// Meanwhile the agent is not called, so that its own pool becomes quiet. Threads that have
    /// ended since are no difference.
    ///
    /// # Errors
    /// The observer does not answer.
    pub async fn settled(&self, sandbox: &Sandbox) -> Result<Self, Error> {
        let start = Instant::now();
        loop {
            let now = Self::of(sandbox).await?.compared_with(self);
            let limit = match (now == *self, now.differs_in_other_threads_only(self)) {
                (true, _) => return Ok(now),
                (false, true) => POOL,
                (false, false) => SETTLING,
            };
            if start.elapsed() > sandbox.guest().scaled(limit) {
                return Ok(now);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Returns this state without what may differ from `before`: threads that have ended. A new
    /// thread is a difference even if another one has ended.
    fn compared_with(mut self, before: &Self) -> Self {
        self.plugin_threads.extend(before.plugin_threads.iter().cloned());
        self.other_threads.extend(before.other_threads.iter().cloned());
        self
    }

    fn differs_in_other_threads_only(&self, before: &Self) -> bool {
        Self { other_threads: before.other_threads.clone(), ..self.clone() } == *before
    }
}

impl Sandbox {
    /// Whether a request is still worked on, or its end: each has a thread of the plugin's.
    ///
    /// # Errors
    /// The observer does not answer.
    pub(crate) async fn has_plugin_threads(&self) -> Result<bool, Error> {
        Ok(!AgentSnapshot::of(self).await?.plugin_threads.is_empty())
    }

    /// Waits until no request is worked on: what a killed caller has not committed is rolled back.
    ///
    /// # Errors
    /// The observer does not answer, or a request does not end.
    pub async fn until_plugin_is_idle(&self) -> Result<(), Error> {
        let limit = self.guest().scaled(SETTLING);
        let start = Instant::now();
        while self.has_plugin_threads().await? {
            if start.elapsed() > limit {
                return Err(Error::Observer("a request to the plugin does not end".to_owned()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

impl From<AgentState> for AgentSnapshot {
    fn from(state: AgentState) -> Self {
        let named = |thread: &Thread| format!("thread {} ({})", thread.tid, thread.comm);
        let of_the_plugin = |thread: &&Thread| thread.comm.starts_with(PLUGIN);
        Self {
            namespaces: state.threads.iter().map(|thread| thread.mount_namespace).collect(),
            plugin_threads: state.threads.iter().filter(of_the_plugin).map(named).collect(),
            other_threads: state
                .threads
                .iter()
                .filter(|thread| !of_the_plugin(thread))
                .map(named)
                .collect(),
            descriptors: state.fds.iter().map(|target| without_number(target)).collect(),
        }
    }
}

/// Removes the number from `socket:[123]` and similar: it is new for every connection.
fn without_number(target: &str) -> String {
    match target.split_once(":[") {
        Some((kind, _)) => kind.to_owned(),
        None => target.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(threads: &[(u32, &str)], fds: &[&str]) -> AgentSnapshot {
        let thread =
            |&(tid, comm): &(u32, &str)| Thread { tid, mount_namespace: 1, comm: comm.to_owned() };
        AgentSnapshot::from(AgentState {
            threads: threads.iter().map(thread).collect(),
            fds: fds.iter().map(|&target| target.to_owned()).collect(),
            voluntary_switches: 0,
            rss_anon_kb: 0,
            rss_file_kb: 0,
        })
    }

    #[test]
    fn a_thread_that_ended_is_no_difference_and_a_new_one_is() {
        let before = state(&[(1, "agent"), (7, "tokio-rt-worker")], &["socket:[1]"]);
        let fewer = state(&[(1, "agent")], &["socket:[2]"]).compared_with(&before);
        assert_eq!(fewer, before);
        // As many as before: the pool's thread has ended and hides a new one in the count.
        let hidden = state(&[(1, "agent"), (9, "x")], &["socket:[1]"]).compared_with(&before);
        assert!(hidden != before && hidden.differs_in_other_threads_only(&before));
    }

    #[test]
    fn threads_of_the_plugin_are_told_by_their_names() {
        let before = state(&[(1, "agent")], &[]);
        for name in ["block-volume", "block-volume-ns", "block-volume-io"] {
            let now = state(&[(1, "agent"), (2, name)], &[]).compared_with(&before);
            assert_eq!(now.plugin_threads, [format!("thread 2 ({name})")].into());
            assert!(!now.differs_in_other_threads_only(&before), "it gets no time of the pool's");
        }
    }
}
