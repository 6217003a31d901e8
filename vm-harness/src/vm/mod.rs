//! A QEMU VM and its guest: how it is started, and what reaches into it.

pub(crate) mod accelerator;
pub(crate) mod agent;
pub(crate) mod boot;
mod boot_options;
pub(crate) mod boot_snapshot;
mod clock;
pub(crate) mod console;
pub(crate) mod guest;
pub(crate) mod libvirt;
pub(crate) mod machine;
mod migration;
pub(crate) mod observer;
pub(crate) mod origin;
pub(crate) mod run_dir;
pub(crate) mod running_vm;
pub(crate) mod shared_directory;
pub(crate) mod vsock;

pub(crate) use boot_options::BootOptions;
