//! The file system of a volume, mounted in a container: where it may be mounted, how it is found
//! again in whatever mount namespace, and how it is unmounted.
//!
//! | module | does |
//! |---|---|
//! | `identity` | whose a mount is, as mountinfo shows it |
//! | `point` | what is at a mount point, and whether one can be there |
//! | `mounting` | attaches a mount in a container, and takes it away where the attach fails |
//! | `unmount` | unmounts in one mount namespace |
//! | `removal` | unmounts in a container, and by force everywhere |

mod identity;
mod mounting;
mod point;
mod removal;
mod unmount;

pub use identity::MountIdentity;
pub use mounting::Mounting;
pub use point::Point;
pub use removal::{unmount_everywhere, unmount_in};
pub use unmount::{Unmount, Unmounted};
