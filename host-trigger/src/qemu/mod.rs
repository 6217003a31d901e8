//! What QEMU holds for `ecr-runtime`, and the QMP commands that change it. Knows nothing of Kata,
//! of the guest or of the volume on the host.

pub(crate) mod abandoned;
pub(crate) mod block_node;
pub mod block_stats;
pub mod controller;
pub(crate) mod descriptor_sets;
pub(crate) mod disk;
mod disk_options;
pub mod inventory;
pub mod known_bugs;
pub(crate) mod medium;
pub mod mount;
pub(crate) mod node_users;
pub mod record;
pub mod removal;
pub mod throttle;
pub mod volume_state;
