//! The wait for the holders of a volume in the guest, who are to release it. The guest waits and
//! detaches the volume as soon as it is free. Neither lock nor connection to QEMU is held
//! meanwhile, so afterwards everything has to be read anew.

use std::time::{Duration, Instant};

use block_volume_api::block_volume::{Detachment, Reason};

use super::{detach, session::Guest};
use crate::{Deadline, Error, left_behind::LeftBehind};

/// A wait that lasted less than this part of what was asked for ended early: the guest's clock is
/// not that wrong.
const EARLY: u32 = 16;
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How a wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Waited {
    /// The guest has detached the volume, and left this behind.
    Detached(Vec<LeftBehind>),
    /// Another request for the volume ended the wait.
    Ended,
}

/// The pause before the guest is asked again. It never ends a wait: only a guest that does not
/// wait when it is asked to, or two runs that end each other's waits, would otherwise be asked
/// without pause.
#[derive(Debug)]
pub(crate) struct Pause(Duration);

impl Pause {
    pub(crate) fn new() -> Self {
        Self(FIRST_PAUSE)
    }

    /// Pauses after a wait that lasted `lasted` where `asked` was asked for.
    pub(crate) async fn after(&mut self, lasted: Duration, asked: Duration, patience: Deadline) {
        if lasted >= asked / EARLY {
            self.0 = FIRST_PAUSE;
            return;
        }
        tokio::time::sleep(self.0.min(patience.remaining())).await;
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
    }
}

/// Whether the guest refuses to detach because of holders, and has changed nothing.
pub(crate) fn is_busy(error: &Error) -> bool {
    matches!(
        error,
        Error::InUse { .. } | Error::Guest { reason: Reason::REASON_BUSY, undone: true, .. }
    )
}

/// Waits until `patience` by this host's clock: the guest is not believed how long it has waited.
///
/// # Errors
/// The holders keep the volume, or the guest refuses or does not reply.
pub(crate) async fn wait(
    guest: &Guest,
    detachment: &Detachment,
    pause: &mut Pause,
    patience: Deadline,
    deadline: Deadline,
) -> Result<Waited, Error> {
    loop {
        let (asked, began) = (patience.remaining(), Instant::now());
        let waited = detach::detach(guest, detachment, false, asked, deadline).await;
        let ended = match waited {
            Ok(done) => return Ok(Waited::Detached(done.left_behind)),
            Err(Error::Guest { reason: Reason::REASON_CANCELLED, undone: true, .. }) => true,
            Err(busy) if is_busy(&busy) => {
                if patience.remaining() < FIRST_PAUSE {
                    return Err(busy);
                }
                false
            }
            Err(e) => return Err(e),
        };
        pause.after(began.elapsed(), asked, patience).await;
        if ended {
            return Ok(Waited::Ended);
        }
    }
}
