//! All or nothing: a request that fails is rolled back, and nothing interrupts it halfway.

use std::time::{Duration, Instant};

use block_volume_api::block_volume::{Access, Reason};
use protobuf::EnumOrUnknown;

use super::super::{
    Fixture,
    check::check,
    raw_client::{assert_refused, assert_succeeded},
};
use super::Check;
use crate::ContainerOptions;

pub(super) const CHECKS: &[Check] = &[
    check!(
        "rollback",
        failure_of_one_volume_rolls_back_the_others,
        "if one of two volumes fails, disk and node of the other are removed",
        breaks: "The agent keeps something of a request that failed, or the rollback cannot enter the \
         container any more.",
        look: "The message has each difference; the agent's log says what a rollback could not remove."
    ),
    check!(
        "rollback",
        caller_that_goes_away_leaves_nothing_behind,
        "a request whose caller hangs up is ended by Detach, and the next Attach works",
        breaks: "ttrpc drops the future of a request whose caller hangs up: work that runs in the future \
         itself, in the glue, stops half way.",
        look: "What the glue awaits: it must only look up and authorize, and change nothing."
    ),
    check!(
        "rollback",
        container_that_ends_ends_the_wait,
        "a request for a container that ends fails immediately, with that reason",
        breaks: "The glue gives the plugin a pidfd of another process, or keeps a removed container in \
         its list, or calls a stopped container running.",
        look: "The pidfd in the glue's Container, and its errors ContainerError::Stopped and Unknown."
    ),
];

const PATH: &str = "/dev/conformance";

async fn failure_of_one_volume_rolls_back_the_others(fixture: &Fixture) {
    let before = fixture.snapshot().await;
    let disk = fixture.add_disk().await;
    let present = disk.attachment(&fixture.filtered, PATH);
    // The first request fails while it waits for a disk; the second later, when the first volume
    // has its node already.
    let never = fixture.absent_disk().attachment(&fixture.filtered, "/dev/conformance-never");
    let answer = fixture.attach(vec![present.clone(), never], Duration::from_millis(1500)).await;
    assert_refused(&answer.failure, Reason::REASON_TIMED_OUT);
    let second = fixture.add_disk().await;
    let mut writable = second.attachment(&fixture.filtered, "/dev/conformance-writable");
    writable.access = EnumOrUnknown::new(Access::ACCESS_READ_ONLY);
    let answer = fixture.attach(vec![present, writable], fixture.short_limit()).await;
    assert_refused(&answer.failure, Reason::REASON_IDENTITY_MISMATCH);
    fixture.remove(&disk).await;
    fixture.remove(&second).await;
    fixture.assert_as_before(&before).await;
}

async fn caller_that_goes_away_leaves_nothing_behind(fixture: &Fixture) {
    let before = fixture.snapshot().await;
    let disk = fixture.absent_disk();
    let attachment = disk.attachment(&fixture.container, PATH);
    let waiting = fixture.attach(vec![attachment.clone()], Duration::from_secs(600));
    // Long enough for the request to wait; no answer can come.
    let early = tokio::time::timeout(Duration::from_millis(500), waiting).await;
    assert!(early.is_err(), "a disk that does not exist was attached");
    assert_succeeded(&fixture.detach(attachment.clone()).await.failure);
    fixture.assert_as_before(&before).await;
    fixture.add(&disk).await;
    assert_succeeded(
        &fixture.attach(vec![attachment.clone()], fixture.short_limit()).await.failure,
    );
    assert!(
        fixture.container.read(PATH, 0..4096).await == disk.volume.bytes(0..4096),
        "other bytes than the host's"
    );
    assert_succeeded(&fixture.detach(attachment).await.failure);
    fixture.remove(&disk).await;
}

async fn container_that_ends_ends_the_wait(fixture: &Fixture) {
    let container = fixture.sandbox().start_container_with(&ContainerOptions::default()).await;
    let limit = Duration::from_secs(600);
    let start = Instant::now();
    let attach = fixture.attach(vec![fixture.absent_disk().attachment(&container, PATH)], limit);
    let kill = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        container.kill().await.unwrap_or_else(|error| panic!("{}", error.chain()));
    };
    let ended = async { tokio::join!(attach, kill) };
    let Ok((answer, ())) = tokio::time::timeout(fixture.short_limit() * 2, ended).await else {
        panic!("the request did not end within {:?}", start.elapsed())
    };
    assert_refused(&answer.failure, Reason::REASON_CONTAINER_NOT_RUNNING);
    let answer = fixture
        .attach(vec![fixture.absent_disk().attachment(&container, PATH)], fixture.short_limit())
        .await;
    assert_refused(&answer.failure, Reason::REASON_CONTAINER_NOT_RUNNING);
    container.remove().await.unwrap_or_else(|error| panic!("{}", error.chain()));
    let answer = fixture
        .attach(vec![fixture.absent_disk().attachment(&container, PATH)], fixture.short_limit())
        .await;
    assert_refused(&answer.failure, Reason::REASON_CONTAINER_NOT_FOUND);
}
