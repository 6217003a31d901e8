//! How the fake agent unplugs: says that the disks are released, and detaches them.

use block_volume_api::{
    block_volume::{
        DetachRequest, DetachResponse, Detachment, Reason, Released, UnplugResponse,
        unplug_response::Step,
    },
    block_volume_ttrpc::BlockVolume,
};
use ttrpc::r#async::{ServerStreamSender, TtrpcContext};

use super::fake_agent::{FakeAgent, failure};

/// What the agent does with a request to unplug that it does not refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUnplug {
    Detaches,
    /// It is of an earlier version.
    HasNoMethod,
    /// Says that the disks are released, and fails then.
    FailsWhenReleased(Reason, bool),
    /// Says that the disks are released, and detaches them when there is a permit in
    /// `may_detach`.
    DetachesWithPermit,
    /// Ends the stream without having detached anything.
    SaysNothing,
    /// Says that another disk is released.
    ReleasesAnother,
}

fn step(step: Step) -> UnplugResponse {
    UnplugResponse { step: Some(step), ..Default::default() }
}

impl FakeAgent {
    /// Serves one request to unplug.
    pub(super) async fn release_and_detach(
        &self,
        context: &TtrpcContext,
        request: DetachRequest,
        stream: ServerStreamSender<UnplugResponse>,
    ) -> ttrpc::Result<()> {
        let on_unplug = *self.on_unplug.lock().unwrap();
        if on_unplug == OnUnplug::HasNoMethod {
            let status = ttrpc::get_status(ttrpc::Code::UNIMPLEMENTED, "Unplug method");
            return Err(ttrpc::Error::RpcStatus(status));
        }
        if on_unplug == OnUnplug::SaysNothing {
            return Ok(());
        }
        let refuses = *self.is_held.borrow()
            || *self.hangs_on_detach.lock().unwrap()
            || self.detach_failure.lock().unwrap().is_some();
        if !refuses {
            let of = |one: &Detachment| one.attachment.serial.clone();
            let serials = match on_unplug {
                OnUnplug::ReleasesAnother => vec!["another".to_owned()],
                _ => request.detachments.iter().map(of).collect(),
            };
            let released = Released { serials, ..Default::default() };
            stream.send(&step(Step::Released(released))).await?;
        }
        match on_unplug {
            OnUnplug::FailsWhenReleased(reason, undone) => {
                let failure = failure(reason, undone);
                let reply = DetachResponse { failure, ..Default::default() };
                return stream.send(&step(Step::Detached(reply))).await;
            }
            OnUnplug::DetachesWithPermit => self.may_detach.acquire().await.unwrap().forget(),
            _ => {}
        }
        let reply = BlockVolume::detach(self, context, request).await?;
        stream.send(&step(Step::Detached(reply))).await
    }
}
