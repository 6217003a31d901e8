//! File systems of volumes, mounted into a container. Loop devices stand for the disks. Needs root,
//! util-linux, the loop driver, and mkfs of ext4, xfs and btrfs.

#[path = "../container/mod.rs"]
mod container;
mod disk;
mod holding;
mod life;
#[path = "../loop_device/mod.rs"]
mod loop_device;
mod mount;
mod refusals;
