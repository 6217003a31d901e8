//! The stub's `features.rs`: what `GetGuestDetails` reports about the build.

/// The optional features that the agent was built with.
pub(crate) fn get_build_features() -> Vec<String> {
    let features: Vec<&str> = vec![
        #[cfg(feature = "agent-policy")]
        "agent-policy",
        #[cfg(feature = "block-volume")]
        "block-volume",
        #[cfg(feature = "seccomp")]
        "seccomp",
    ];
    features.into_iter().map(String::from).collect()
}
