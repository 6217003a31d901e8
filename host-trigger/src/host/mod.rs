//! The source on this host: it is found, opened and vetted here, and its other holders are
//! determined. Also the lock of a sandbox. Knows nothing of QEMU's monitor or of Kata.

pub(crate) mod backing;
pub(crate) mod block_device;
pub(crate) mod conflict;
pub(crate) mod fd;
mod found_source;
pub mod holders;
pub(crate) mod lock;
pub(crate) mod lock_watch;
pub(crate) mod mountinfo;
pub(crate) mod process;
pub(crate) mod root_disk;
pub mod source;
pub(crate) mod sysfs;
