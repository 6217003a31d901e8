//! The API between the host (`ecr-runtime`) and the guest (`agent-plugin` in the VM's agent): the
//! messages and the [ttrpc](https://github.com/containerd/ttrpc) service of
//! `proto/block_volume.proto`, generated at build time without `protoc`.
//!
//! The protocol file documents each message, its limits and its defaults.

/// The API level of this release. A host refuses a guest of another level.
pub const API_LEVEL: u32 = 1;

mod kernel_capability;
mod mount_option;

mod generated {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::allow_attributes,
        reason = "generated; which lints apply depends on the generator"
    )]

    include!(concat!(env!("OUT_DIR"), "/api.rs"));
}

pub use generated::{block_volume, block_volume_ttrpc};
pub use kernel_capability::{KERNEL_CAPABILITIES, KernelCapability, Without};
pub use mount_option::{FILE_SYSTEMS, check_mount_option};

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
