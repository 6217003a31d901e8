//! The programs `ecr-runtime` and `ecr-qemu` as processes, with a real QEMU whose CPU never starts
//! and a fake agent. Guests that run are in the end-to-end tests of vm-harness.
//!
//! One test binary, because each would link the whole library and compile `common` again.

mod common;

mod all;
mod audit;
mod audit_file;
mod audit_full;
mod bad_input;
mod check;
mod completion;
mod conversation;
#[cfg(feature = "fault")]
mod crash;
mod descriptor_flood;
mod descriptor_sets;
mod device_deleted;
mod disk_properties;
mod dry_run;
mod ecr_qemu;
mod environment;
mod hot_plug;
mod hot_plug_failures;
mod hot_unplug;
mod image_format;
mod image_lock;
mod inherited;
mod layered_source;
mod list;
mod lost_output;
mod lying_qemu;
mod mount;
mod node;
mod node_users;
mod old_agent;
mod output_file;
mod overlay_source;
mod oversized_reply;
mod path_bytes;
mod path_reservations;
mod pod;
mod qemu_descriptors;
mod records;
mod refused_source;
mod repair;
mod resize;
mod rootless;
mod shared;
mod shrink;
mod signals;
mod source_limits;
mod source_names;
mod stats;
mod throttle;
mod time_caps;
mod trusted_path;
mod unknown;
mod unplug_stream;
mod unplug_wait;
mod unsafe_source;
mod without_guest;
