//! Errors of a request, and the status code for the caller.

use std::{io, time::Duration};

use ttrpc::Code;

/// An error of the agent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "{0:?} is not an id: letters, digits, '.', '_' and '-', the first a letter or a digit, at most 128"
    )]
    BadId(String),
    #[error("no container {0}")]
    UnknownContainer(String),
    #[error("no process {process} in container {container}")]
    UnknownProcess { container: String, process: String },
    #[error("{0} exists already")]
    Exists(String),
    #[error("container {container} is {state}")]
    WrongState { container: String, state: &'static str },
    #[error("the request has no {0}")]
    Missing(&'static str),
    #[error("this agent does not support {0}")]
    Unsupported(&'static str),
    #[error("cgroup path {0:?}: expected an absolute one with a parent, such as /pod/c1")]
    CgroupPath(String),
    #[error("device rule of type {0:?}: expected a, b or c")]
    DeviceKind(String),
    #[error("policy: {0}")]
    Denied(String),
    #[error("crun {command} ended with status {status}: {log}")]
    Crun { command: String, status: i32, log: String },
    #[error("{awaited} did not happen within {limit:?}")]
    TimedOut { awaited: String, limit: Duration },
    #[error("the process has no terminal")]
    NoTerminal,
    #[error("the process's {0} is closed")]
    Closed(&'static str),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

impl Error {
    /// Returns the code of kata-agent for this error, where it has one of its own.
    fn code(&self) -> Code {
        match self {
            Self::BadId(_)
            | Self::Missing(_)
            | Self::CgroupPath(_)
            | Self::DeviceKind(_)
            | Self::UnknownContainer(_) => Code::INVALID_ARGUMENT,
            Self::UnknownProcess { .. } => Code::NOT_FOUND,
            Self::NoTerminal => Code::UNAVAILABLE,
            Self::Exists(_) => Code::ALREADY_EXISTS,
            Self::WrongState { .. } => Code::FAILED_PRECONDITION,
            Self::Unsupported(_) => Code::UNIMPLEMENTED,
            Self::Denied(_) => Code::PERMISSION_DENIED,
            Self::TimedOut { .. } => Code::DEADLINE_EXCEEDED,
            Self::Closed(_) | Self::Crun { .. } | Self::Io { .. } => Code::INTERNAL,
        }
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code(), error.to_string()))
    }
}

/// Adds the operation: `fs::write(path, text).map_err(at("writing the configuration"))`.
pub(crate) fn at(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_gets_the_code_and_the_text() {
        let ttrpc::Error::RpcStatus(status) = Error::UnknownContainer("c9".into()).into() else {
            panic!("an error of a request is a status");
        };
        assert_eq!((status.code(), status.message()), (Code::INVALID_ARGUMENT, "no container c9"));
    }
}
