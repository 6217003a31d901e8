//! Builds the test guest: an uncompressed kernel for PVH boot and an initramfs. It runs no other
//! program (no `cpio`, no `kmod`, no `xz`).
//!
//! - [`kernel`]: an unpacked Debian kernel package, and the `vmlinux` in its `vmlinuz`
//! - [`module`]: kernel modules and the order in which to load them
//! - [`library`]: the shared libraries that a program of the host needs
//! - [`cpio`]: the archive format
//! - [`contents`]: the contents of the initramfs
//! - [`image`]: writes the three files of an image, unless they are up to date
//!
//! `module_lists` decides which modules an image has, and when `init` loads them.

pub mod contents;
pub mod cpio;
mod error;
pub mod image;
pub mod kernel;
pub mod library;
pub mod module;
mod module_lists;

pub use error::Error;
