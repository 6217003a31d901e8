//! Unplug on a ttrpc server: a detach that says when the disks are released. Needs root and
//! util-linux.

mod container;
mod guest;

use agent_plugin::api::block_volume as wire;
use container::start;
use guest::{Guest, attachment, context, detach, guest, reason};
use wire::Reason;

/// All steps of an Unplug: the serials that are released, and the reply.
async fn unplug(
    guest: &Guest,
    request: &wire::DetachRequest,
) -> (Option<Vec<String>>, wire::DetachResponse) {
    let mut stream = guest.client.unplug(context(), request).await.unwrap();
    let mut released = None;
    loop {
        match stream.recv().await.unwrap().expect("a last step").step {
            Some(wire::unplug_response::Step::Released(step)) => released = Some(step.serials),
            Some(wire::unplug_response::Step::Detached(reply)) => return (released, reply),
            step => panic!("{step:?}"),
        }
    }
}

#[tokio::test]
async fn an_unplug_of_a_missing_disk_releases_it_and_asks_the_policy_as_a_detach_does() {
    let guest = guest(Some(start("")), false).await;
    let (mut request, mut kept) = (detach(attachment("c1")), attachment("c1"));
    kept.serial = "fedcba9876543210".into();
    kept.path = "/dev/xvdb".into();
    kept.address.as_mut().unwrap().lun = 2;
    request.detachments.extend(detach(kept).detachments);
    request.detachments[1].keep_disk = true;
    let (released, reply) = unplug(&guest, &request).await;
    assert_eq!(reason(&reply.failure), Reason::REASON_UNSPECIFIED);
    assert_eq!(released.unwrap(), ["0123456789abcdef"], "only the disk that goes is released");
    assert!(reply.detached.len() == 2 && reply.detached.iter().all(|volume| volume.unchanged));

    let detached = guest.client.detach(context(), &request).await.unwrap();
    assert_eq!(reply.detached, detached.detached);
    let asked = guest.agent.asked.lock().unwrap().clone();
    assert_eq!(asked[0], asked[1]);
}

#[tokio::test]
async fn an_unplug_that_takes_a_disk_by_force_or_is_refused_releases_nothing() {
    let guest = guest(Some(start("")), false).await;
    let forced = wire::DetachRequest { force: true, ..detach(attachment("c1")) };
    let (released, reply) = unplug(&guest, &forced).await;
    assert_eq!((released, reply.detached.len()), (None, 1));

    let (released, reply) = unplug(&guest, &detach(attachment("paused"))).await;
    let refused = (released, reason(&reply.failure));
    assert_eq!(refused, (None, Reason::REASON_CONTAINER_NOT_RUNNING));

    let waits = wire::DetachRequest { wait_ms: 1, ..detach(attachment("c1")) };
    let (released, reply) = unplug(&guest, &waits).await;
    assert_eq!((released, reason(&reply.failure)), (None, Reason::REASON_INVALID_REQUEST));
    assert!(reply.failure.message.contains("wait_ms"), "{}", reply.failure.message);
}
