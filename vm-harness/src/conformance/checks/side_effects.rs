//! The plugin's effects on the agent that embeds it: none may remain.

use std::time::{Duration, Instant};

use guest_observer::{AgentState, Reply, Request};

use super::super::{Fixture, check::check, raw_client::MIB};
use super::Check;
use crate::Volume;

pub(super) const CHECKS: &[Check] = &[
    check!(
        "side_effects",
        agent_answers_while_a_request_waits,
        "the agent's own calls continue: the request holds none of its locks",
        breaks: "The glue holds the sandbox's lock while the plugin works, or does work that blocks on \
         the only thread of the agent's runtime.",
        look: "The glue's functions: no await, and no system call that may wait, while the lock is \
         held."
    ),
    check!(
        "side_effects",
        threads_and_descriptors_stay_as_many,
        "after plugs and unplugs the agent has as many threads and descriptors as before",
        breaks: "The glue starts a thread or opens a descriptor for each request and does not end it. \
         Threads of the agent's own pool are no fault: they end within ten seconds, and the check \
         waits for that.",
        look: "The message has each new thread and descriptor. block-volume* are the plugin's threads, \
         all others the agent's."
    ),
    check!(
        "side_effects",
        agent_stays_in_its_mount_namespace,
        "no thread of the agent is left in a container's mount namespace",
        breaks: "Code of the agent calls setns on a thread that it does not end, such as a thread of its \
         pool.",
        look: "The name of the thread in the message: block-volume* are the plugin's, all others the \
         agent's."
    ),
    check!(
        "side_effects",
        idle_agent_sleeps_as_before,
        "with a volume plugged the agent does not wake up more often than without",
        breaks: "A timer, or a loop that polls, runs in the glue while a volume is plugged.",
        look: "strace or perf of PID 1 in a guest that `vm-harness boot` runs: what wakes it up."
    ),
    check!(
        "side_effects",
        kernel_reports_no_fault,
        "the guest's kernel printed no warning, oops or lockup",
        breaks: "A fault of the guest's kernel, in most cases a known one of an old version.",
        look: "The line in the message, and the kernel's lines after it on the console; \
         docs/guest-kernel.md."
    ),
];

const PATH: &str = "/dev/conformance";

async fn agent_answers_while_a_request_waits(fixture: &Fixture) {
    let wait = fixture.short_limit();
    let attachment = fixture.absent_disk().attachment(&fixture.container, PATH);
    let waiting = fixture.attach(vec![attachment.clone()], wait);
    tokio::pin!(waiting);
    let early = tokio::time::timeout(Duration::from_millis(300), &mut waiting).await;
    assert!(early.is_err(), "a disk that does not exist was attached");
    let work = async {
        fixture
            .sandbox()
            .agent()
            .details()
            .await
            .unwrap_or_else(|error| panic!("{}", error.chain()));
        // In the same container and in another one.
        fixture.container.exec(&["true"]).await;
        fixture.sibling.exec(&["true"]).await;
    };
    tokio::select! {
        () = work => {}
        _ = &mut waiting => {
            panic!("the agent did not start a process in a container within {wait:?}")
        }
    }
    let detached = fixture.detach(attachment).await;
    assert!(detached.failure.is_none(), "{}", detached.failure.message);
    waiting.await;
}

async fn threads_and_descriptors_stay_as_many(fixture: &Fixture) {
    // What the first call allocates once is no leak.
    cycle(fixture).await;
    let before = fixture.snapshot().await;
    for _ in 0..3 {
        cycle(fixture).await;
    }
    fixture.assert_as_before(&before).await;
}

async fn agent_stays_in_its_mount_namespace(fixture: &Fixture) {
    let own = fixture.sandbox().observer().shell("stat -L -c %i /proc/self/ns/mnt").await;
    let volume = Volume::image(MIB);
    fixture.plug(&fixture.container, &volume, PATH).await;
    for thread in agent(fixture).await.threads {
        let found = thread.mount_namespace.to_string();
        assert_eq!(found, own.trim(), "thread {} ({:?}) of the agent", thread.tid, thread.comm);
    }
    fixture.unplug(&fixture.container, PATH).await;
}

async fn idle_agent_sleeps_as_before(fixture: &Fixture) {
    cycle(fixture).await;
    let without = fewest_wakeups(fixture).await;
    let volume = Volume::image(MIB);
    fixture.plug(&fixture.container, &volume, PATH).await;
    let with = fewest_wakeups(fixture).await;
    fixture.unplug(&fixture.container, PATH).await;
    assert!(with <= without, "{with} wake-ups in {WINDOW:?} with a volume, {without} without");
}

async fn kernel_reports_no_fault(fixture: &Fixture) {
    let splat = fixture.sandbox().guest().console().splat();
    assert_eq!(splat, None);
}

async fn cycle(fixture: &Fixture) {
    let volume = Volume::image(MIB);
    fixture.plug(&fixture.filtered, &volume, PATH).await;
    fixture.unplug(&fixture.filtered, PATH).await;
}

async fn agent(fixture: &Fixture) -> AgentState {
    match fixture.sandbox().observer().ask(&Request::AgentState).await {
        Ok(Reply::AgentState(agent)) => agent,
        other => panic!("unexpected reply of the observer: {other:?}"),
    }
}

/// How long the agent's wake-ups are counted at a time.
const WINDOW: Duration = Duration::from_secs(1);

/// Returns the number of wake-ups of the agent's threads in the quietest window. After a request
/// the threads of its pools remain for some seconds, so several windows are counted, until one has
/// no wake-up.
async fn fewest_wakeups(fixture: &Fixture) -> u64 {
    let end = Instant::now() + fixture.short_limit().max(Duration::from_secs(15));
    let mut fewest = u64::MAX;
    let mut before = agent(fixture).await;
    while fewest > 0 && Instant::now() < end {
        tokio::time::sleep(WINDOW).await;
        let after = agent(fixture).await;
        // The count of a thread that has ended is lost.
        if after.threads.len() == before.threads.len() {
            fewest = fewest.min(after.voluntary_switches.saturating_sub(before.voluntary_switches));
        }
        before = after;
    }
    fewest
}
