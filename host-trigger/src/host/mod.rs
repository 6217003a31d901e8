//! The source on this host: it is found, opened and vetted here, and its other holders are
//! determined. Also the lock of a sandbox. Knows nothing of QEMU's monitor or of Kata.

pub(crate) mod backing;
pub(crate) mod block_device;
mod btrfs;
pub(crate) mod config_file;
pub(crate) mod conflict;
pub(crate) mod credentials;
pub(crate) mod fd;
mod found_source;
mod geometry;
pub mod holders;
mod image_format;
pub(crate) mod kernel_text;
pub(crate) mod lock;
pub(crate) mod lock_watch;
pub(crate) mod mountinfo;
pub(crate) mod overlay;
pub(crate) mod process;
mod refused;
pub(crate) mod root_disk;
pub(crate) mod search;
pub mod source;
