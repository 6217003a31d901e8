//! The stub of the crate `oci` that Kata had before 3.8: the specification has fields.

use serde::Deserialize;

/// A container's specification.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Spec {
    /// What is specific to Linux.
    pub linux: Option<Linux>,
}

/// What is specific to Linux.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Linux {
    /// Limits.
    pub resources: Option<LinuxResources>,
    /// Namespaces.
    pub namespaces: Vec<LinuxNamespace>,
}

/// Limits.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct LinuxResources {
    /// The rules for devices.
    pub devices: Vec<LinuxDeviceCgroup>,
}

/// A namespace to join or to make.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct LinuxNamespace {
    /// Its kind.
    pub r#type: String,
    /// One to join.
    pub path: String,
}

/// A rule for devices.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct LinuxDeviceCgroup {
    /// Allow, else deny.
    pub allow: bool,
    /// `a`, `b`, `c`, `u`, `p`, or empty for all.
    pub r#type: String,
    /// All, if there is none.
    pub major: Option<i64>,
    /// All, if there is none.
    pub minor: Option<i64>,
    /// Of `rwm`.
    pub access: String,
}
