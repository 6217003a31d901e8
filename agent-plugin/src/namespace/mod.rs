//! A container's view of the file system: its root directory, and its mount namespace
//! ([mount_namespaces(7)](https://man7.org/linux/man-pages/man7/mount_namespaces.7.html),
//! [setns(2)](https://man7.org/linux/man-pages/man2/setns.2.html),
//! [openat2(2)](https://man7.org/linux/man-pages/man2/openat2.2.html)).
//!
//! The container's file system is not trusted. Its links are followed inside its root only, and a
//! file system that the container provides itself (FUSE) may never answer. So paths are resolved on
//! a separate thread, which is abandoned when it does not return in time. An abandoned thread
//! begins no further change, and rolls back the one that it was in.
//!
//! | module | is |
//! |---|---|
//! | `target` | a container, and threads inside its mount namespace |
//! | `task` | the work of such a thread, with a deadline |
//! | `pinned` | what the namespace shows, wherever the container's first process is |
//! | `root` | the container's root directory |
//! | `elsewhere` | other namespaces that have a mount of interest |

mod elsewhere;
mod pinned;
mod root;
mod target;
mod task;

pub(crate) use elsewhere::Elsewhere;
pub(crate) use pinned::{mountinfo_of_thread, mounts_of_thread, own_proc};
pub use root::Root;
pub(crate) use root::try_openat2;
pub use target::Target;
pub use task::NamespaceTask;
pub(crate) use task::check_awaited;
