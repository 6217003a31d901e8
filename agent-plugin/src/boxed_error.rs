//! An error as it is returned.

use std::{fmt, mem::ManuallyDrop, ops::Deref};

use crate::{
    agent::Denied,
    error::{Conflict, Error, FileSystemError, Mismatch, Unsupported},
};

/// An [`Error`] on its way up: one pointer, since a result is moved at each `?`. What drops a
/// `Box<Error>` would be compiled once more in every part of the crate; this is compiled once.
pub struct BoxedError(ManuallyDrop<Box<Error>>);

#[expect(unsafe_code, reason = "ManuallyDrop keeps its contents from being dropped inline")]
impl Drop for BoxedError {
    #[cold]
    #[inline(never)]
    fn drop(&mut self) {
        // SAFETY: nothing else drops it or takes it out, and it is not used any more.
        unsafe { ManuallyDrop::drop(&mut self.0) }
    }
}

impl Deref for BoxedError {
    type Target = Error;

    fn deref(&self) -> &Error {
        &self.0
    }
}

impl From<Error> for BoxedError {
    #[cold]
    #[inline(never)]
    fn from(error: Error) -> BoxedError {
        BoxedError(ManuallyDrop::new(Box::new(error)))
    }
}

impl From<Conflict> for BoxedError {
    fn from(conflict: Conflict) -> BoxedError {
        Error::Conflict(Box::new(conflict)).into()
    }
}

impl From<Mismatch> for BoxedError {
    fn from(mismatch: Mismatch) -> BoxedError {
        Error::IdentityMismatch(Box::new(mismatch)).into()
    }
}

impl From<FileSystemError> for Error {
    fn from(error: FileSystemError) -> Error {
        Error::FileSystem(Box::new(error))
    }
}

impl From<FileSystemError> for BoxedError {
    fn from(error: FileSystemError) -> BoxedError {
        Error::from(error).into()
    }
}

impl From<Unsupported> for BoxedError {
    fn from(unsupported: Unsupported) -> BoxedError {
        Error::Unsupported(unsupported).into()
    }
}

impl From<Denied> for BoxedError {
    fn from(denied: Denied) -> BoxedError {
        Error::Denied(denied).into()
    }
}

impl fmt::Debug for BoxedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for BoxedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&**self, f)
    }
}
