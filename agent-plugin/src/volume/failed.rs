//! Why a request failed, and in which state it left the guest.

use crate::error::{BoxedError, Error, Result};

/// In a box, as an error is: a result is moved at each `?`.
pub(crate) type Failed = Box<FailedRequest>;

/// Why a request failed, and in which state it left the guest.
#[derive(Debug)]
pub(crate) struct FailedRequest {
    pub(crate) error: BoxedError,
    /// The volume that failed, where one did.
    pub(crate) serial: Option<String>,
    /// Errors of the rollback.
    pub(crate) left: Vec<BoxedError>,
    /// A part is done and is not rolled back: a repeated request continues from there.
    pub(crate) partial: bool,
}

impl From<BoxedError> for Failed {
    #[cold]
    #[inline(never)]
    fn from(error: BoxedError) -> Failed {
        Box::new(FailedRequest { error, serial: None, left: Vec::new(), partial: false })
    }
}

impl From<Error> for Failed {
    #[cold]
    #[inline(never)]
    fn from(error: Error) -> Failed {
        Failed::from(BoxedError::from(error))
    }
}

impl FailedRequest {
    /// Whether the guest is as it was before the request.
    pub(crate) fn is_rolled_back(&self) -> bool {
        self.left.is_empty() && !self.partial
    }
}

/// Names the volume that a result is about.
pub(super) trait OfVolume<T> {
    fn of(self, serial: &str) -> Result<T, Failed>;
}

impl<T> OfVolume<T> for Result<T> {
    fn of(self, serial: &str) -> Result<T, Failed> {
        self.map_err(|error| of_volume(error, serial))
    }
}

#[cold]
#[inline(never)]
fn of_volume(error: BoxedError, serial: &str) -> Failed {
    let mut failed = Failed::from(error);
    failed.serial = Some(serial.to_owned());
    failed
}
