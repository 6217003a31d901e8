//! What can go wrong before a test can begin: a broken environment is one thing, a guest that fails
//! is another.

use std::{io, path::PathBuf, time::Duration};

/// Why a sandbox could not be booted or reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine lacks something; the text names the way to get it.
    #[error("{what} is missing: {remedy}")]
    Missing {
        /// A file, a program or a device.
        what: String,
        /// How to get it.
        remedy: &'static str,
    },
    /// An image with the caller's own parts could not be built.
    #[error("cannot build the guest's image: {0}")]
    Image(Box<image_builder::Error>),
    /// A filter that leaves no check.
    #[error("no check has {wanted} in its name: `vm-harness conformance --list` prints them")]
    NoCheck {
        /// What was asked for.
        wanted: String,
    },
    /// A policy of a kind that no known agent reads.
    #[error(
        "policy {}: a .rego file (kata-agent) or a .json file (the reference agent) was expected; for another agent lay it over the \
         guest's root, with --initrd-extra or VM_HARNESS_INITRD_EXTRA", path.display()
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
        /// What it was done to.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A program of the harness could not be started.
    #[error("cannot start {program}")]
    Spawn {
        /// Its name.
        program: String,
        /// The system's answer.
        source: io::Error,
    },
    /// QEMU, or a server of one of its devices, ended while the sandbox was needed.
    #[error("{program} ended ({status}) while the harness waited for {awaited}\n{report}")]
    Ended {
        /// Which program.
        program: &'static str,
        /// Its exit status.
        status: String,
        /// What was awaited.
        awaited: String,
        /// Console tail, standard error and the command to repeat it.
        report: String,
    },
    /// A deadline passed.
    #[error("{awaited} did not come within {limit:?}\n{report}")]
    TimedOut {
        /// What was awaited.
        awaited: String,
        /// How long.
        limit: Duration,
        /// Console tail, standard error and the command to repeat it.
        report: String,
    },
    /// The agent refused a call of Kata's agent protocol.
    #[error("the agent answered {call} with an error")]
    Agent {
        /// The rpc.
        call: &'static str,
        /// Its answer.
        source: ttrpc::Error,
    },
    /// No connection to the port where the plugin should be.
    #[error("nobody serves vsock port {port} of the guest")]
    NobodyServes {
        /// The port.
        port: u32,
        /// What the connection ended with.
        source: io::Error,
    },
    /// The observer in the guest answered with an error.
    #[error("the observer in the guest failed: {0}")]
    Observer(String),
    /// A QMP command of the harness failed.
    #[error("the harness's QMP connection failed: {0}")]
    Monitor(String),
    /// An environment variable holds something that it cannot hold.
    #[error("{name}={value} is not one of {expected}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
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

    /// Whether this machine lacks something, so that no guest would do.
    pub(crate) fn is_of_the_machine(&self) -> bool {
        matches!(
            self,
            Self::Missing { .. } | Self::File { .. } | Self::Spawn { .. } | Self::Variable { .. }
        )
    }

    /// The whole chain on one line, as a person wants to read it.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text.push_str(&format!(": {error}"));
            source = error.source();
        }
        text
    }
}
