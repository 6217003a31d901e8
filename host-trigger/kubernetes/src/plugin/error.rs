//! Why a command of the plugin failed. The exit statuses are those of `ecr-runtime`.

use std::io;

use host_trigger::exit_status::ExitStatus;
use kube::{config::KubeconfigError, core::Status};

use crate::error::chain;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("there is no usable configuration of a cluster")]
    Kubeconfig(#[from] KubeconfigError),
    #[error("the API server failed or refused a request")]
    Api(#[source] kube::Error),
    #[error("{what} {namespace}/{name} does not exist")]
    NotFound { what: &'static str, namespace: String, name: String },
    #[error("attachment {namespace}/{name} exists, and asks for something else")]
    Exists { namespace: String, name: String },
    #[error("pod {namespace}/{pod} has several containers: {}", .found.join(", "))]
    Containers { namespace: String, pod: String, found: Vec<String> },
    #[error("attachment {name} is not {wanted} within {seconds} s: {state}")]
    TimedOut { name: String, wanted: &'static str, seconds: u64, state: String },
    #[error("attachment {name} is not accepted: {reason}: {message}")]
    NotAccepted { name: String, reason: String, message: String },
    #[error("the watch of attachment {name} failed")]
    Watch { name: String, source: kube::runtime::watcher::Error },
    #[error("the output cannot be written")]
    Output(#[source] io::Error),
    #[error("the object cannot be printed as {format}")]
    Format { format: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("this process cannot be prepared")]
    Runtime(#[source] io::Error),
}

impl Error {
    /// The message with those of its causes.
    pub(super) fn chain(&self) -> String {
        match self {
            // What the API server says is for people.
            Self::Api(kube::Error::Api(status)) => {
                format!("the API server refuses it: {}", status.message)
            }
            _ => chain(self),
        }
    }

    /// What to do about it.
    pub(super) fn remedy(&self) -> Option<String> {
        let remedy = match self {
            Self::Kubeconfig(_) => "name a file with --kubeconfig, and a context with --context",
            Self::Api(kube::Error::Api(status)) => return of_status(status),
            Self::Api(_) | Self::Watch { .. } => {
                "check that the API server of the context can be reached (kubectl version)"
            }
            Self::NotFound { .. } => "name another one, or its namespace with --namespace",
            Self::Exists { .. } => {
                "choose another --name, or detach that one first (kubectl block_volume detach)"
            }
            Self::Containers { .. } => "name one with --container",
            Self::TimedOut { name, .. } | Self::NotAccepted { name, .. } => {
                return Some(format!(
                    "the request stays, and is tried again: `kubectl block_volume describe {name}` \
                     says how it is, `kubectl block_volume detach {name}` withdraws it"
                ));
            }
            Self::Output(_) | Self::Format { .. } | Self::Runtime(_) => return None,
        };
        Some(remedy.to_owned())
    }

    /// How the command ends.
    pub(super) fn exit_status(&self) -> ExitStatus {
        match self {
            Self::Kubeconfig(_) | Self::Containers { .. } => ExitStatus::Usage,
            Self::Api(kube::Error::Api(status)) => match status.code {
                401 | 403 => ExitStatus::PermissionDenied,
                404 => ExitStatus::NotFound,
                409 => ExitStatus::Conflict,
                422 => ExitStatus::Usage,
                _ => ExitStatus::Unexpected,
            },
            Self::Api(_) | Self::Watch { .. } => ExitStatus::Unreachable,
            Self::NotFound { .. } => ExitStatus::NotFound,
            Self::Exists { .. } => ExitStatus::Conflict,
            Self::TimedOut { .. } => ExitStatus::TimedOut,
            Self::NotAccepted { reason, .. } => match reason.as_str() {
                "PodNotFound" | "ContainerNotFound" | "ClaimNotFound" => ExitStatus::NotFound,
                "ClaimNotBlock" | "ClaimLost" => ExitStatus::UnsafeSource,
                _ => ExitStatus::Conflict,
            },
            Self::Output(_) | Self::Format { .. } | Self::Runtime(_) => ExitStatus::Unexpected,
        }
    }
}

fn of_status(status: &Status) -> Option<String> {
    let remedy = match status.code {
        401 => "log in to the cluster again",
        403 => "have an administrator grant that right on blockvolumeattachments",
        // The resource itself is unknown.
        404 if status.details.as_ref().is_none_or(|of| of.name.is_empty()) => {
            "install the resource: kubectl apply --server-side --kustomize \
             host-trigger/kubernetes/manifests/base"
        }
        _ => return None,
    };
    Some(remedy.to_owned())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn refused(code: u16) -> Error {
        Error::Api(kube::Error::Api(Box::new(Status { code, ..Status::default() })))
    }

    #[rstest]
    #[case(403, ExitStatus::PermissionDenied, true)]
    #[case(404, ExitStatus::NotFound, true)]
    #[case(422, ExitStatus::Usage, false)]
    #[case(500, ExitStatus::Unexpected, false)]
    fn a_refusal_has_an_exit_status(
        #[case] code: u16,
        #[case] status: ExitStatus,
        #[case] has_remedy: bool,
    ) {
        let error = refused(code);
        assert_eq!((error.exit_status(), error.remedy().is_some()), (status, has_remedy));
    }
}
