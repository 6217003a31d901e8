//! The servers of the tests: a real QEMU, and a scripted peer for what QEMU does only rarely.

pub(crate) mod qemu;
pub(crate) mod scripted_peer;
