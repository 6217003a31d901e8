//! The device filter of a container: what limits the devices that it can open, whatever nodes it
//! has.
//!
//! [`v1`]: the allow-list of the devices controller. [`v2`]: BPF programs. Without a program every
//! node can be opened; then none is attached, since a first program would deny access that the
//! container has.
//!
//! | module | does |
//! |---|---|
//! | `filter` | the filter of one container, whatever its parts |
//! | `grant` | what was added to a filter, for the rollback |
//! | `access` | read, write, mknod, and what a specification grants |
//! | `hierarchy` | where v1 and v2 are mounted |
//! | `v1`, `device_list` | `devices.allow`, `devices.deny`; `devices.list` |
//! | `group` | a group of v2, and the programs that the kernel reports for it |
//! | `v2` | which programs decide, and how one is replaced |
//! | `attached` | one attached program, split into our part and its owner's |
//! | `prologue` | the instructions in front of a program that allow single devices |
//! | `program`, `insn` | programs and instructions that are understood |
//! | `interpreter` | what a program answers |
//! | `bpf`, `bpf_attr` | the system call and its arguments |
//! | `trial` | whether the kernel has what filters need |

mod access;
mod attached;
pub mod bpf;
mod bpf_attr;
mod device_list;
mod filter;
mod grant;
mod group;
pub mod hierarchy;
pub mod insn;
pub mod interpreter;
pub mod program;
pub mod prologue;
mod trial;
pub mod v1;
pub mod v2;

pub use access::{Access, granted_by};
pub use filter::{Filter, Mode};
pub use grant::{Added, Grant};
pub(crate) use trial::try_filters;

/// Whether a `devices.list` allows a device to be read, for the fuzz targets.
#[cfg(feature = "fuzz")]
pub(crate) fn is_listed(list: &[u8], number: crate::block::DeviceNumber) -> bool {
    device_list::DeviceList::parse(list).allows(number, Access::READ)
}
