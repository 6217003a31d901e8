//! Whether the kernel has what the device filters of containers need, by trying it. Nothing is
//! attached, and what is loaded is freed at once.

use std::io;

use super::{
    access::Access,
    bpf::Loaded,
    hierarchy::Hierarchies,
    insn::{BPF_ALU64, BPF_K, BPF_MOV, EXIT, Instruction},
    prologue::Prologue,
};
use crate::block::DeviceNumber;

/// A program that refuses everything.
const REFUSES: [Instruction; 2] =
    [Instruction::new(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 0), Instruction::new(EXIT, 0, 0, 0, 0)];
/// Any disk.
const DISK: DeviceNumber = DeviceNumber { major: 8, minor: 0 };

/// Tries the device filters of containers: the name of a capability for each trial that failed.
/// Programs matter only where cgroup v2 is mounted.
pub(crate) fn try_filters() -> Result<(), (&'static str, io::Error)> {
    let of_cgroups = |error| ("device_cgroup", error);
    let nothing = || io::ErrorKind::NotFound.into();
    match Hierarchies::mounted().map_err(|error| of_cgroups(io::Error::other(error.message())))? {
        Hierarchies { unified: None, devices: Some(_) } => Ok(()),
        Hierarchies { unified: None, devices: None } => Err(of_cgroups(nothing())),
        Hierarchies { unified: Some(_), .. } => {
            match load().map_err(|error| ("device_programs", error))? {
                true => Ok(()),
                false => Err(("readable_device_programs", nothing())),
            }
        }
    }
}

/// Has the kernel load a program with a prologue. Returns whether it shows what was loaded.
fn load() -> io::Result<bool> {
    let wanted = Prologue::default().with(DISK, Access::READ_WRITE).before(&REFUSES);
    let info = Loaded::load(&wanted)?.info()?;
    Ok(info.instructions == Some(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_loads_a_program_and_shows_it() {
        assert!(load().expect("these tests need CAP_SYS_ADMIN and CONFIG_CGROUP_BPF"));
    }
}
