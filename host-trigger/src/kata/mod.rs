//! Where Kata Containers keeps a sandbox, its containers, its QEMU socket and its agent. Knows
//! nothing of volumes in QEMU or of the source on the host.

pub mod agent;
pub mod agent_address;
mod layout;
mod run_file;
pub mod sandbox;
pub mod shim;
