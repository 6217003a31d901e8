//! Why the controller or a node agent cannot go on. What stands in the way of one attachment is in
//! its conditions, and is no error here.

use std::{fmt::Write as _, io};

/// Why something failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the variants and their fields are")]
pub enum Error {
    #[error("the API server failed or refused a request")]
    Api(#[from] kube::Error),
    #[error("there is no configuration of a cluster, neither of a pod nor in a kubeconfig")]
    Configuration(#[from] kube::config::InferConfigError),
    #[error("an object could not be converted")]
    Json(#[from] serde_json::Error),
    #[error("{address} cannot be listened on")]
    Listen { address: std::net::SocketAddr, source: io::Error },
    #[error("the output cannot be written")]
    Output(#[source] io::Error),
    #[error("signals cannot be caught")]
    Signals(#[source] io::Error),
    #[error("another replica has taken the lease {lease}")]
    LeaseLost { lease: String },
    #[error("this process cannot be prepared")]
    Process(#[source] host_trigger::Error),
}

impl Error {
    /// The message with those of its causes.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// The message of an error with those of its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let _ = write!(text, ": {e}");
        cause = e.source();
    }
    text
}
