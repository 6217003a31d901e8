//! What can go wrong before the agent runs.

use std::io;

/// An error of `guest-init`; it ends the guest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file or a mount point.
    #[error("{path}: {source}")]
    At {
        /// What was worked on.
        path: String,
        source: io::Error,
    },
    /// A module that the kernel refuses.
    #[error(
        "loading module {path} with parameters {parameters:?}: {source} (the kernel's log says more)"
    )]
    Module { path: String, parameters: String, source: io::Error },
    /// `guest.modules` names a module that the image does not hold.
    #[error("guest.modules names {0:?}, which this image does not hold")]
    UnknownModule(String),
    /// The loopback interface.
    #[error("bringing lo up: {0}")]
    Loopback(#[from] rtnetlink::Error),
    /// A string with a NUL byte where the kernel takes a C string.
    #[error("a name or parameter holds a NUL byte")]
    NulByte,
}

/// Adds the path to an I/O error: `File::open(path).map_err(at(path))`.
pub(crate) fn at(path: &str) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::At { path, source }
}
