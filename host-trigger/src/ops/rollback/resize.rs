//! Rolls back a resize that the guest did not follow: an image that this run has grown gets its
//! former length, unless the guest may have used the added part.

use std::path::Path;

use block_volume_api::block_volume::Detachment;
use block_volume_qmp::Qmp;

use crate::{
    Deadline, Error,
    kata::{agent::Agent, sandbox::Sandbox},
    ops::{disk_size, guest_request::ROLLBACK_TIME},
    volume_id::VolumeId,
};

/// The rollback of one resize.
#[derive(Debug)]
pub(crate) struct ResizeRollback<'a> {
    pub(crate) sandbox: &'a Sandbox,
    pub(crate) deadline: Deadline,
    pub(crate) qmp: &'a mut Qmp,
    pub(crate) agent: &'a Agent,
    pub(crate) id: &'a VolumeId,
    /// The path of the source.
    pub(crate) path: &'a Path,
    /// What the guest is asked about.
    pub(crate) request: &'a Detachment,
    /// The size before the resize.
    pub(crate) before: u64,
    /// Only this run has added to the image.
    pub(crate) is_revertible: bool,
}

impl ResizeRollback<'_> {
    /// Rolls back what may have been done, if that is safe. Returns the error of the command.
    pub(crate) async fn run(&mut self, cause: Error) -> Error {
        let deadline = self.deadline.max(Deadline::after(ROLLBACK_TIME));
        let left = match self.revert(deadline).await {
            Ok(None) => return cause,
            Ok(Some(left)) => left,
            Err(e) => format!("volume {}: {}", self.id, e.message()),
        };
        Error::Incomplete { cause: Box::new(cause), left: vec![left] }
    }

    /// Returns what is left; `None` for nothing.
    async fn revert(&mut self, deadline: Deadline) -> Result<Option<String>, Error> {
        self.qmp.set_deadline(deadline);
        if !self.qmp.is_usable() {
            self.qmp.close();
            match super::reconnect(self.sandbox, deadline).await? {
                Some(qmp) => *self.qmp = qmp,
                // The VM ended with QEMU, and an image has the length that it has.
                None => {
                    return Ok(Some(format!("QEMU has ended; check the size of {:?}", self.path)));
                }
            }
        }
        let now = disk_size::in_qemu(self.qmp, self.id).await?;
        if now == self.before {
            return Ok(None);
        }
        let left = format!("QEMU has volume {} with {now} bytes, the guest may not", self.id);
        if !self.is_revertible {
            return Ok(Some(left));
        }
        let in_guest = disk_size::in_guest(self.agent, self.request, deadline).await?;
        if in_guest.is_none_or(|disk| disk.size != self.before) {
            return Ok(Some(left));
        }
        disk_size::set_in_qemu(self.qmp, self.id, self.path, self.before).await?;
        Ok((disk_size::in_qemu(self.qmp, self.id).await? != self.before).then_some(left))
    }
}
