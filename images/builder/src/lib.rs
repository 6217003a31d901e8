//! Builds the guest of the tests: an uncompressed kernel for PVH boot and an initramfs, by this
//! code alone (no `cpio`, no `kmod`, no `xz`).
//!
//! - [`kernel`]: a Debian kernel package that was unpacked, and the `vmlinux` in its `vmlinuz`
//! - [`module`]: kernel modules and the order in which they have to be loaded
//! - [`library`]: the shared libraries that a program of the host needs
//! - [`cpio`]: the archive
//! - [`contents`]: what goes into the guest, and where
//! - [`image`]: writes the three files of an image, unless nothing changed

pub mod contents;
pub mod cpio;
mod error;
pub mod image;
pub mod kernel;
pub mod library;
pub mod module;

pub use error::Error;
