//! Rollback: reverts the steps of a command that failed, and what an interrupted run left. It goes
//! by what QEMU and the guest have, not by what was noted: the same code reverts a step that
//! failed, one whose reply was lost, and a run that was killed halfway.
//!
//! | file | rolls back |
//! |---|---|
//! | `plug` | a hot-plug that failed |
//! | `leftover` | what an interrupted run left of a volume that is to be plugged now |
//! | `resize` | a resize that the guest did not follow |
//!
//! The guest comes first:
//! [`device_del`](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html#command-QMP-qdev.device_del)
//! of a SCSI disk is a surprise removal. QEMU's part is `qemu::removal`.

use std::{io::ErrorKind, time::Duration};

use block_volume_qmp::{COMMAND_TIMEOUT, Qmp, QmpError};

use crate::{Deadline, Error, kata::sandbox::Sandbox};

pub(crate) mod leftover;
pub(crate) mod plug;
pub(crate) mod resize;

/// A QEMU that has ended closes its connection immediately; one that is stopped does not.
pub(crate) const LIVENESS_TIMEOUT: Duration = Duration::from_millis(500);

/// Whether QEMU runs, as far as can be told. If it has ended, the VM has ended with it, and nothing
/// of any volume is left.
pub(crate) async fn is_alive(sandbox: &Sandbox) -> bool {
    !matches!(reconnect(sandbox, Deadline::after(LIVENESS_TIMEOUT)).await, Ok(None))
}

/// Connects to QEMU again, after the former connection was closed. `None` if QEMU has ended, and
/// the VM with it.
///
/// # Errors
/// QEMU runs, and does not respond.
pub(crate) async fn reconnect(sandbox: &Sandbox, deadline: Deadline) -> Result<Option<Qmp>, Error> {
    // QEMU may be busy with the command that was interrupted; it sends its greeting after that.
    match sandbox.connect_qmp_within(deadline, COMMAND_TIMEOUT, &[]).await {
        Ok((qmp, _)) => Ok(Some(qmp)),
        Err(Error::NoQmpSocket { .. } | Error::SandboxStarting { .. }) => Ok(None),
        Err(Error::Qmp(QmpError::Connect { source, .. }))
            if matches!(source.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}
