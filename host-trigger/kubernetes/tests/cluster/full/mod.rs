//! Each file starts API servers of its own.

mod attachments;
mod lease;
mod manifests;
mod mounts;
mod plugin;
mod rights;
mod sandbox;
mod scale;
mod schema;
mod trouble;
