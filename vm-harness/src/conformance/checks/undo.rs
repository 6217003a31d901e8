//! All or nothing: what a request did before it failed is undone, and nothing cuts it in the
//! middle.

use std::time::{Duration, Instant};

use block_volume_api::block_volume::Reason;

use super::super::{
    Stage,
    check::check,
    direct::{assert_done, assert_refused},
};
use super::Check;
use crate::ContainerOptions;

pub(super) const CHECKS: &[Check] = &[
    check!(
        "undo",
        failure_of_one_volume_undoes_the_others,
        "one volume of two cannot come: the other one's disk and node go"
    ),
    check!(
        "undo",
        caller_that_goes_away_leaves_nothing_behind,
        "a caller that hangs up cuts nothing: Detach ends it, the next Attach works"
    ),
    check!(
        "undo",
        container_that_ends_ends_the_wait,
        "a request for a container that ends fails at once, and says so"
    ),
];

const PATH: &str = "/dev/conformance";

async fn failure_of_one_volume_undoes_the_others(stage: &Stage) {
    let before = stage.snapshot().await;
    let disk = stage.add_disk().await;
    let there = disk.to(&stage.ruled, PATH);
    // The one fails in the wait, the other behind it, when the first volume has its node already.
    let never = stage.nowhere().to(&stage.ruled, "/dev/conformance-never");
    let mut taken = stage.nowhere().to(&stage.ruled, "/dev/null");
    let answer = stage.attach(vec![there.clone(), never], Duration::from_millis(1500)).await;
    assert_refused(&answer.failure, Reason::REASON_TIMED_OUT);
    let second = stage.add_disk().await;
    (taken.serial, taken.address) = (second.serial.clone(), second.to(&stage.ruled, PATH).address);
    let answer = stage.attach(vec![there, taken], stage.soon()).await;
    assert_refused(&answer.failure, Reason::REASON_PATH_TAKEN);
    stage.remove(&disk).await;
    stage.remove(&second).await;
    stage.assert_as_before(&before).await;
}

async fn caller_that_goes_away_leaves_nothing_behind(stage: &Stage) {
    let before = stage.snapshot().await;
    let disk = stage.nowhere();
    let attachment = disk.to(&stage.container, PATH);
    let waiting = stage.attach(vec![attachment.clone()], Duration::from_secs(600));
    // Long enough to be in the wait; the answer cannot come.
    let gone = tokio::time::timeout(Duration::from_millis(500), waiting).await;
    assert!(gone.is_err(), "a disk that is not there was attached");
    assert_done(&stage.detach(attachment.clone()).await.failure);
    stage.assert_as_before(&before).await;
    stage.add(&disk).await;
    assert_done(&stage.attach(vec![attachment.clone()], stage.soon()).await.failure);
    assert!(
        stage.container.read(PATH, 0..4096).await == disk.volume.bytes(0..4096),
        "other bytes than the host's"
    );
    assert_done(&stage.detach(attachment).await.failure);
    stage.remove(&disk).await;
}

async fn container_that_ends_ends_the_wait(stage: &Stage) {
    let container = stage.sandbox().start_container_with(&ContainerOptions::default()).await;
    let limit = Duration::from_secs(600);
    let start = Instant::now();
    let attach = stage.attach(vec![stage.nowhere().to(&container, PATH)], limit);
    let kill = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        container.kill().await.unwrap_or_else(|error| panic!("{}", error.chain()));
    };
    let told = tokio::time::timeout(stage.soon() * 2, async { tokio::join!(attach, kill) }).await;
    let Ok((answer, ())) = told else {
        panic!("the request did not notice within {:?}", start.elapsed())
    };
    assert_refused(&answer.failure, Reason::REASON_CONTAINER_NOT_RUNNING);
    let answer = stage.attach(vec![stage.nowhere().to(&container, PATH)], stage.soon()).await;
    assert_refused(&answer.failure, Reason::REASON_CONTAINER_NOT_RUNNING);
    container.remove().await.unwrap_or_else(|error| panic!("{}", error.chain()));
    let answer = stage.attach(vec![stage.nowhere().to(&container, PATH)], stage.soon()).await;
    assert_refused(&answer.failure, Reason::REASON_CONTAINER_NOT_FOUND);
}
