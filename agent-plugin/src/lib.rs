//! Hot-plug of block volumes into running containers, inside the guest of a VM sandbox.

mod agent;
mod service;

/// The generated contract (`proto/block_volume.proto`).
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes,
    reason = "generated; the proto file documents it, and which lints it trips depends on the generator"
)]
pub mod contract {
    include!(concat!(env!("OUT_DIR"), "/contract.rs"));
}

pub use agent::{Agent, Container, ContainerError, Denied, DeviceRule};
pub use service::{serve, service};
