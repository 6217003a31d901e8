//! What the verbs share: the session with a sandbox, choosing and inspecting volumes, committing,
//! detaching, rolling back and recovering them. An operation talks to QEMU, to the guest and to the
//! host; it prints nothing but steps on standard error.

pub(crate) mod commit;
pub mod container_state;
pub(crate) mod detach;
pub(crate) mod disk_size;
pub mod file_system;
pub(crate) mod guest_attach;
pub(crate) mod guest_kernel;
pub(crate) mod guest_request;
pub mod guest_stats;
pub(crate) mod holder_wait;
pub(crate) mod inspect;
pub(crate) mod job_wait;
pub mod place;
pub mod pod;
pub(crate) mod pod_names;
pub mod recovery;
pub(crate) mod rollback;
pub(crate) mod select;
pub mod session;
pub(crate) mod signals;
pub mod volume;
