//! The errors of the harness. An environment that lacks something and a guest that fails are
//! different variants.

use std::{io, path::PathBuf, time::Duration};

/// Why a sandbox could not be booted or reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine lacks something.
    #[error("{what} is missing: {remedy}")]
    Missing {
        /// A file, a program or a device.
        what: String,
        /// How to get it.
        remedy: &'static str,
    },
    /// An image with the caller's overrides could not be built.
    #[error("cannot build the guest's image: {0}")]
    Image(Box<image_builder::Error>),
    /// A filter that selects no check.
    #[error("no check has {wanted} in its name: `vm-harness conformance --list` prints them")]
    NoCheck {
        /// The texts of the filter.
        wanted: String,
    },
    /// A name that no check has.
    #[error(
        "no check is named {name:?}: did you mean {near}? `vm-harness conformance --list` prints \
         all"
    )]
    UnknownCheck {
        /// The name.
        name: String,
        /// The names that are most like it.
        near: String,
    },
    /// A policy file of a type that no known agent reads.
    #[error(
        "policy {}: a .rego file (kata-agent) or a .json file (the reference agent) was expected; \
         for another agent put it into a directory for --initrd-extra or \
         VM_HARNESS_INITRD_EXTRA", path.display()
    )]
    Policy {
        /// The file.
        path: PathBuf,
    },
    /// A system call or a file operation of the harness itself failed.
    #[error("cannot {action} {}", .path.display())]
    File {
        /// A verb: "open", "create".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A program of the harness could not be started.
    #[error("cannot start {program}")]
    Spawn {
        /// Its name.
        program: String,
        /// The system's error.
        source: io::Error,
    },
    /// QEMU, or a server of one of its devices, ended while the sandbox was needed.
    #[error("{program} ended ({status}) while the harness waited for {awaited}\n{report}")]
    Ended {
        /// Name of the program.
        program: &'static str,
        /// Its exit status.
        status: String,
        /// What was awaited.
        awaited: String,
        /// The end of the console, standard error, and the command to repeat it.
        report: String,
    },
    /// A program of the harness ended with an error.
    #[error("{command} failed: {message}")]
    Failed {
        /// Its name and its first argument.
        command: String,
        /// What it printed.
        message: String,
    },
    /// A deadline passed.
    #[error("{awaited} did not come within {limit:?}\n{report}")]
    TimedOut {
        /// What was awaited.
        awaited: String,
        /// How long.
        limit: Duration,
        /// The end of the console, standard error, and the command to repeat it.
        report: String,
    },
    /// The guest calibrated its clock wrongly while it booted.
    #[error(
        "the guest's clock is too fast: {guest:?} there are {host:?} here; was the host busy while \
         the guest booted?"
    )]
    Clock {
        /// How long a wait took by the guest's clock.
        guest: Duration,
        /// How long it took by the host's.
        host: Duration,
    },
    /// The agent refused a call of Kata's agent protocol.
    #[error("the agent answered {call} with an error")]
    Agent {
        /// The method.
        call: &'static str,
        /// Its answer.
        source: ttrpc::Error,
    },
    /// A connection to the plugin's port failed.
    #[error("no process serves vsock port {port} of the guest")]
    PortNotServed {
        /// The port.
        port: u32,
        /// The error of the connection.
        source: io::Error,
    },
    /// The observer in the guest answered with an error.
    #[error("the observer in the guest failed: {0}")]
    Observer(String),
    /// A QMP command of the harness failed.
    #[error("the harness's QMP connection failed: {0}")]
    Monitor(String),
    /// The container engine refused a call.
    #[error("the container engine answered {call} with an error: {message}")]
    Cri {
        /// The method.
        call: &'static str,
        /// What it said.
        message: String,
    },
    /// An environment variable has an invalid value.
    #[error("{name}={value} is not one of {expected}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// The valid values.
        expected: &'static str,
    },
}

impl Error {
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    /// Whether this machine lacks something, so that every guest would fail.
    pub(crate) fn is_of_the_machine(&self) -> bool {
        matches!(
            self,
            Self::Missing { .. } | Self::File { .. } | Self::Spawn { .. } | Self::Variable { .. }
        )
    }

    /// Returns the error and all its sources on one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            let message = error.downcast_ref().map_or_else(|| error.to_string(), refusal);
            text.push_str(&format!(": {message}"));
            source = error.source();
        }
        text
    }
}

/// Returns the code and the message of a reply that is an error. kata-agent appends a stack
/// backtrace to the message, after an empty line.
fn refusal(error: &ttrpc::Error) -> String {
    match error {
        ttrpc::Error::RpcStatus(status) => {
            let message = status.message.split("\n\n").next().unwrap_or_default();
            format!("{:?}: {message}", status.code())
        }
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_agent_is_told_without_its_backtrace() {
        let message = "EPERM: not permitted\n\nStack backtrace:\n   0: <unknown>";
        let status = ttrpc::get_status(ttrpc::Code::INTERNAL, message);
        let error =
            Error::Agent { call: "CreateContainer", source: ttrpc::Error::RpcStatus(status) };
        assert_eq!(
            error.chain(),
            "the agent answered CreateContainer with an error: INTERNAL: EPERM: not permitted"
        );
    }
}
