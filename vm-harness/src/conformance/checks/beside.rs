//! What the plugin costs the agent that it lives in: nothing that stays.

use std::time::{Duration, Instant};

use guest_observer::{AgentState, Reply, Request};

use super::super::{Stage, check::check, direct::MIB};
use super::Check;
use crate::Volume;

pub(super) const CHECKS: &[Check] = &[
    check!(
        "beside",
        agent_answers_while_a_request_waits,
        "the agent's own calls go on: none of its locks is held meanwhile"
    ),
    check!(
        "beside",
        threads_and_descriptors_stay_as_many,
        "after plugs and unplugs the agent has as many as before"
    ),
    check!(
        "beside",
        agent_stays_in_its_mount_namespace,
        "no thread of the agent is left in a container's mount namespace"
    ),
    check!(
        "beside",
        idle_agent_sleeps_as_before,
        "with a volume plugged the agent wakes up no more often than without"
    ),
    check!(
        "beside",
        kernel_reports_no_fault,
        "the guest's kernel printed no warning, no oops, no lockup"
    ),
];

const PATH: &str = "/dev/conformance";

async fn agent_answers_while_a_request_waits(stage: &Stage) {
    let wait = stage.soon();
    let attachment = stage.nowhere().to(&stage.container, PATH);
    let waiting = stage.attach(vec![attachment.clone()], wait);
    tokio::pin!(waiting);
    let early = tokio::time::timeout(Duration::from_millis(300), &mut waiting).await;
    assert!(early.is_err(), "a disk that is not there was attached");
    let work = async {
        stage.sandbox().agent().details().await.unwrap_or_else(|error| panic!("{}", error.chain()));
        // In the same container, and in another one.
        stage.container.exec(&["true"]).await;
        stage.sibling.exec(&["true"]).await;
    };
    tokio::select! {
        () = work => {}
        _ = &mut waiting => panic!("the agent did not get to a process in a container within {wait:?}"),
    }
    let detached = stage.detach(attachment).await;
    assert!(detached.failure.is_none(), "{}", detached.failure.message);
    waiting.await;
}

async fn threads_and_descriptors_stay_as_many(stage: &Stage) {
    // What is made once, at the first call, is no leak.
    cycle(stage).await;
    let before = stage.snapshot().await;
    for _ in 0..3 {
        cycle(stage).await;
    }
    stage.assert_as_before(&before).await;
}

async fn agent_stays_in_its_mount_namespace(stage: &Stage) {
    let own = stage.sandbox().observer().shell("stat -L -c %i /proc/self/ns/mnt").await;
    let volume = Volume::image(MIB);
    stage.plug(&stage.container, &volume, PATH).await;
    for thread in agent(stage).await.threads {
        let found = thread.mount_namespace.to_string();
        assert_eq!(found, own.trim(), "thread {} ({:?}) of the agent", thread.tid, thread.comm);
    }
    stage.unplug(&stage.container, PATH).await;
}

async fn idle_agent_sleeps_as_before(stage: &Stage) {
    cycle(stage).await;
    let without = fewest_wakeups(stage).await;
    let volume = Volume::image(MIB);
    stage.plug(&stage.container, &volume, PATH).await;
    let with = fewest_wakeups(stage).await;
    stage.unplug(&stage.container, PATH).await;
    assert!(with <= without, "{with} wake-ups in {WINDOW:?} with a volume, {without} without");
}

async fn kernel_reports_no_fault(stage: &Stage) {
    let splat = stage.sandbox().guest().console().splat();
    assert_eq!(splat, None);
}

async fn cycle(stage: &Stage) {
    let volume = Volume::image(MIB);
    stage.plug(&stage.ruled, &volume, PATH).await;
    stage.unplug(&stage.ruled, PATH).await;
}

async fn agent(stage: &Stage) -> AgentState {
    match stage.sandbox().observer().ask(&Request::AgentState).await {
        Ok(Reply::AgentState(agent)) => agent,
        other => panic!("the observer answers {other:?}"),
    }
}

/// How long the agent is watched at a time.
const WINDOW: Duration = Duration::from_secs(1);

/// Of the agent's threads, in the quietest window: what was asked of it before leaves threads of
/// its pools for some seconds. An agent that is silent is watched for one window.
async fn fewest_wakeups(stage: &Stage) -> u64 {
    let end = Instant::now() + stage.soon().max(Duration::from_secs(15));
    let mut fewest = u64::MAX;
    let mut before = agent(stage).await;
    while fewest > 0 && Instant::now() < end {
        tokio::time::sleep(WINDOW).await;
        let after = agent(stage).await;
        // A thread that has ended took its count with it.
        if after.threads.len() == before.threads.len() {
            fewest = fewest.min(after.voluntary_switches.saturating_sub(before.voluntary_switches));
        }
        before = after;
    }
    fewest
}
