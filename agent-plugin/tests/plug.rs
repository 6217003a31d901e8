//! Plug and Hold on a ttrpc server, up to the point where a disk would be needed. Needs root and
//! util-linux.

mod container;
mod guest;

use agent_plugin::api::{
    block_volume::{self as wire, plug_request, plug_response},
    block_volume_ttrpc::BlockVolumeClient,
};
use container::start;
use guest::{Guest, attach, attachment, context, detach, guest, reason};
use serde_json::json;
use tokio::task::JoinHandle;
use ttrpc::r#async::ClientStream;
use wire::Reason;

/// A conversation on a connection of its own.
struct Plug {
    client: BlockVolumeClient,
    stream: ClientStream<wire::PlugRequest, wire::PlugResponse>,
}

impl Plug {
    async fn open(guest: &Guest) -> Plug {
        let client = guest.connect().await;
        let stream = client.plug(context()).await.unwrap();
        Plug { client, stream }
    }

    /// The number of a test's conversation.
    const NUMBER: u64 = 7;

    fn hold(&self) -> JoinHandle<ttrpc::Result<wire::HoldResponse>> {
        let client = self.client.clone();
        let request = wire::HoldRequest { conversation: Self::NUMBER, ..Default::default() };
        tokio::spawn(async move { client.hold(context(), &request).await })
    }

    async fn send(&self, step: plug_request::Step) {
        let request = wire::PlugRequest { step: Some(step), ..Default::default() };
        self.stream.send(&request).await.unwrap();
    }

    async fn start(&self, container: &str) {
        let request =
            wire::AttachRequest { conversation: Self::NUMBER, ..attach(attachment(container)) };
        self.send(plug_request::Step::Start(request)).await;
    }

    /// The last message, which is a failure.
    async fn failure(mut self) -> wire::Failure {
        let reply = self.stream.recv().await.unwrap();
        let Some(plug_response::Step::Attached(reply)) = reply.step else { panic!("{reply:?}") };
        assert!(reply.attached.is_empty());
        let end = self.stream.recv().await.unwrap_err();
        assert!(matches!(end, ttrpc::Error::RemoteClosed), "{end:?}");
        reply.failure.unwrap()
    }
}

fn reason_of(failure: &wire::Failure) -> Reason {
    reason(&Some(failure.clone()).into())
}

#[tokio::test]
async fn a_plug_is_asked_about_and_refused_as_an_attach_is() {
    let guest = guest(Some(start("")), false).await;
    let plug = Plug::open(&guest).await;
    let hold = plug.hold();
    let mut request = attach(attachment("c1"));
    request.conversation = Plug::NUMBER;
    request.attachments[0].controller = "0000:ff:1f.7".into();
    plug.send(plug_request::Step::Start(request.clone())).await;
    let refused = plug.failure().await;
    assert_eq!(reason_of(&refused), Reason::REASON_NO_CONTROLLER, "{refused:?}");
    assert!(refused.undone && refused.message.contains("0000:ff:1f.7"));
    hold.await.unwrap().unwrap();

    guest.client.attach(context(), &request).await.unwrap();
    let asked = guest.agent.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[0].0, "AttachBlockVolumeRequest");
    assert_eq!(asked[0], asked[1]);
    assert_eq!(asked[0].1["attachments"][0]["lun"], json!(1));
}

#[tokio::test]
async fn a_plug_into_a_container_that_is_gone_has_the_reason_of_an_attach() {
    let guest = guest(None, false).await;
    for (container, expected) in [
        ("unknown", Reason::REASON_CONTAINER_NOT_FOUND),
        ("stopped", Reason::REASON_CONTAINER_NOT_RUNNING),
    ] {
        let plug = Plug::open(&guest).await;
        let hold = plug.hold();
        plug.start(container).await;
        let refused = plug.failure().await;
        assert_eq!(reason_of(&refused), expected, "{refused:?}");
        assert!(refused.undone);
        hold.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_plug_that_the_policy_denies_is_refused() {
    let guest = guest(Some(start("")), true).await;
    let plug = Plug::open(&guest).await;
    let _hold = plug.hold();
    plug.start("c1").await;
    assert_eq!(reason_of(&plug.failure().await), Reason::REASON_DENIED);
}

#[tokio::test]
async fn a_conversation_that_does_not_begin_with_a_request_is_invalid() {
    let guest = guest(Some(start("")), false).await;
    let plug = Plug::open(&guest).await;
    plug.send(plug_request::Step::Go(wire::PlugGo::default())).await;
    assert_eq!(reason_of(&plug.failure().await), Reason::REASON_INVALID_REQUEST);

    let plug = Plug::open(&guest).await;
    plug.send(plug_request::Step::Start(attach(attachment("c1")))).await;
    let refused = plug.failure().await;
    assert_eq!(reason_of(&refused), Reason::REASON_INVALID_REQUEST);
    assert!(refused.message.contains("conversation: 0 must be that of a Hold"), "{refused:?}");
    assert!(guest.agent.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_plug_that_is_not_held_ends_at_its_deadline() {
    let guest = guest(Some(start("")), false).await;
    let plug = Plug::open(&guest).await;
    let request = attach(attachment("c1"));
    let request = wire::AttachRequest { conversation: 8, timeout_ms: 200, ..request };
    let _hold = plug.hold();
    plug.send(plug_request::Step::Start(request)).await;
    let refused = plug.failure().await;
    assert_eq!(reason_of(&refused), Reason::REASON_TIMED_OUT);
    assert!(refused.message.contains("the Hold of this Plug"), "{refused:?}");
    assert!(guest.agent.asked.lock().unwrap().is_empty());
}

/// Waits until the policy is asked, which then decides when it gets a permit.
async fn until_asked(guest: &Guest) {
    while guest.agent.asked.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_detach_cancels_a_plug_that_the_policy_still_thinks_about() {
    let guest = guest(Some(start("")), false).await;
    guest.agent.attach.forget_permits(100);
    let plug = Plug::open(&guest).await;
    let _hold = plug.hold();
    plug.start("c1").await;
    until_asked(&guest).await;
    let reply = guest.client.detach(context(), &detach(attachment("c1"))).await.unwrap();
    assert!(reply.failure.is_none() && reply.detached[0].unchanged, "{reply:?}");
    guest.agent.attach.add_permits(1);
    let refused = plug.failure().await;
    assert_eq!(reason_of(&refused), Reason::REASON_CANCELLED);
    assert!(refused.undone);
}
