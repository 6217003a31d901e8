//! Each file starts API servers of its own.

mod attachment_pods;
mod attachments;
mod describe;
#[cfg(feature = "fault")]
mod killed_agent;
mod lease;
mod manifests;
mod mounts;
mod plugin;
mod rights;
mod sandbox;
mod scale;
mod schema;
mod shared_claim;
mod stale_list;
mod transcript;
mod trouble;
