//! Errors before the agent runs.

use std::io;

/// An error of `guest-init`. It powers the guest off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// An I/O error of a file or a mount point.
    #[error("{path}: {source}")]
    At {
        /// The file or mount point.
        path: String,
        source: io::Error,
    },
    /// A module that the kernel refused.
    #[error(
        "loading module {path} with parameters {parameters:?}: {source} (see the kernel's log)"
    )]
    Module { path: String, parameters: String, source: io::Error },
    /// A module of `guest.modules`, or one that the kernel asks for.
    #[error("this image does not have the module {0:?} of guest.modules")]
    UnknownModule(String),
    /// An error of the loopback interface.
    #[error("bringing lo up: {0}")]
    Loopback(#[from] rtnetlink::Error),
    /// A NUL byte in a string that the kernel takes as a C string.
    #[error("a name or parameter contains a NUL byte")]
    NulByte,
}

/// Adds the path to an I/O error: `File::open(path).map_err(at(path))`.
pub(crate) fn at(path: &str) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::At { path, source }
}
