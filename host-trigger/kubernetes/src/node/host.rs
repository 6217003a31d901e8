//! What a node agent needs of its host: to attach a volume, and to detach it. Both say how it is
//! now, and are repeated until it is as wanted.

use host_trigger::{error::ErrorBody, exit_status::ExitStatus, output::stats_report::VolumeStats};

use super::{remedy, request::Request, statistics::CountedVolume};
use crate::resource::FileSystemStatus;

/// The reason of a source that is in use on the node.
const SOURCE_HELD: &str = "source_held";

/// A host of sandboxes.
pub trait Host: Send + Sync + 'static {
    /// Makes the volume be in the container, with the limits and the size that it is to have.
    fn attach(
        &self,
        request: Request,
    ) -> impl Future<Output = Result<AttachedVolume, Failure>> + Send;

    /// Makes the volume be nowhere in the pod. Says what it was.
    fn detach(&self, request: Request) -> impl Future<Output = Result<String, Failure>> + Send;

    /// Reads the counters of volumes: a result for each pod, which may have more of them.
    fn statistics(
        &self,
        wanted: Vec<CountedVolume>,
    ) -> impl Future<Output = Vec<Result<Vec<VolumeStats>, Failure>>> + Send;
}

/// A volume that is attached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttachedVolume {
    /// Its ID.
    pub id: String,
    /// The guest kernel's name of the disk.
    pub guest_device: String,
    /// The size in bytes.
    pub size: u64,
    /// The file system, if it is mounted and the guest has told of it.
    pub file_system: Option<FileSystemStatus>,
    /// What people should know of it, if there is anything.
    pub note: Option<String>,
}

/// Why a volume is not attached, or not detached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Failure {
    /// For programs, as conditions have it.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Whether it may pass without a change of what is asked for.
    pub passes: bool,
}

impl Failure {
    /// A failure that stays until something is changed.
    pub fn later(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into(), passes: false }
    }
}

impl From<&host_trigger::Error> for Failure {
    fn from(error: &host_trigger::Error) -> Self {
        Self::from(&ErrorBody::from(error))
    }
}

impl From<&ErrorBody> for Failure {
    fn from(error: &ErrorBody) -> Self {
        let message = remedy::in_a_cluster(&error.message);
        let message = match remedy::remedy(&error.reason, error.remedy.as_deref()) {
            Some(remedy) => format!("{message}; {remedy}"),
            None => message,
        };
        let waits_for_a_change = [
            ExitStatus::Usage,
            ExitStatus::NotFound,
            ExitStatus::Conflict,
            ExitStatus::UnsafeSource,
            ExitStatus::Refused,
            ExitStatus::Unsupported,
            ExitStatus::PermissionDenied,
            ExitStatus::VersionSkew,
        ];
        // A source that something else uses is free when that has ended, which no event tells.
        let is_held = error.reason == SOURCE_HELD;
        let passes =
            is_held || !waits_for_a_change.iter().any(|status| status.code() == error.exit_code);
        Self { reason: camel_case(&error.reason), message, passes }
    }
}

/// `held_in_guest` as a reason of Kubernetes: `HeldInGuest`.
fn camel_case(reason: &str) -> String {
    let words = reason.split('_').map(|word| {
        let (first, rest) = word.split_at_checked(1).unwrap_or(("", word));
        format!("{}{rest}", first.to_ascii_uppercase())
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_library_becomes_a_condition() {
        let error = host_trigger::Error::SandboxNotNamed;
        let failure = Failure::from(&error);
        assert!(failure.message.starts_with("neither a sandbox nor a container is named"));
        assert!(!failure.passes);
        assert!(failure.reason.chars().all(|c| c.is_ascii_alphanumeric()), "{}", failure.reason);
    }

    #[test]
    fn reasons_are_camel_case() {
        assert_eq!(camel_case("held_in_guest"), "HeldInGuest");
        assert_eq!(camel_case(""), "");
    }
}
