//! Block volumes in running Kata pods, as resources of Kubernetes ask for it.
//!
//! A user creates a `BlockVolumeAttachment` ([`resource`]). The [`controller`] gives it to the node
//! of its pod, and brings a claim there by an [attachment pod](attachment_pod). The agent of that
//! [`node`] plugs the volume into the container by the code of `ecr-runtime`, and says in the
//! status how it is.
//!
//! | module | knows |
//! |---|---|
//! | [`resource`] | the resource, its schema and its status |
//! | [`attachment_pod`] | the pod that brings a claim to a node |
//! | [`controller`] | what becomes of an attachment; the API server |
//! | [`node`] | the attachments of one node; the node itself, by the library `host-trigger` |
//! | [`lease`] | which replica of the controller works |
//! | [`http`], [`metrics`] | what kubelet and Prometheus ask |
//! | [`plugin`] | the plugin of kubectl |
//!
//! Nothing is stored here. The cluster has what is wanted, QEMU has what is attached
//! (`host_trigger::qemu`), and a process that was killed anywhere goes on from both.

mod apply;
pub mod attachment_pod;
pub mod controller;
pub mod error;
pub mod http;
pub mod lease;
pub mod metrics;
pub mod node;
mod node_report;
pub mod plugin;
pub mod resource;
mod retries;
#[cfg(test)]
mod sample;
mod watched;

pub use error::Error;
