//! What a removal had to leave behind.

/// What a removal had to leave behind, and why. This is no error: whoever is confined does not
/// prevent a removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftBehind {
    /// In the container, as its mount namespace shows it now.
    pub path: String,
    /// Why.
    pub reason: String,
}

impl LeftBehind {
    pub(crate) fn new(path: impl Into<String>, reason: impl Into<String>) -> LeftBehind {
        LeftBehind { path: path.into(), reason: reason.into() }
    }
}
