//! Where Kata Containers keeps a sandbox, its containers, its QEMU socket and its agent. Knows
//! nothing of volumes in QEMU or of the source on the host.

pub mod agent;
pub mod agent_address;
mod annotations;
pub mod bundle;
pub(crate) mod layout;
pub(crate) mod mount_info;
pub(crate) mod node;
pub(crate) mod plug_stream;
mod run_file;
pub mod sandbox;
pub mod shim;
#[cfg(test)]
mod test_tree;
pub(crate) mod unplug_stream;
