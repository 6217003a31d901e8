//! Why a request failed, and in which state it left the guest.

use crate::error::{Error, Result};

/// Why a request failed, and in which state it left the guest.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) error: Box<Error>,
    /// The volume that failed, where one did.
    pub(crate) serial: Option<String>,
    /// Errors of the rollback.
    pub(crate) left: Vec<Error>,
    /// A part is done and is not rolled back: a repeated request continues from there.
    pub(crate) partial: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed { error: Box::new(error), serial: None, left: Vec::new(), partial: false }
    }
}

impl Failed {
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
        self.map_err(|error| Failed { serial: Some(serial.to_owned()), ..Failed::from(error) })
    }
}
