//! One attached program of a group: read, and split into the prologue that we put in front of it
//! and the program that its owner wrote.

use std::io;

use super::{access::Access, bpf::Loaded, program::Program, prologue::Prologue};
use crate::{block::DeviceNumber, error::Unsupported};

/// An attached program.
#[derive(Debug)]
pub(super) struct AttachedProgram {
    pub(super) id: u32,
    pub(super) loaded: Loaded,
    /// The whole program, or why it cannot be read.
    pub(super) program: Result<Program, Unsupported>,
    /// The program as its owner wrote it.
    pub(super) base: Option<Program>,
    pub(super) prologue: Prologue,
}

impl AttachedProgram {
    /// # Errors
    /// The command that failed, and the kernel's error; `ENOENT` where the program is gone.
    pub(super) fn open(id: u32) -> Result<AttachedProgram, (&'static str, io::Error)> {
        let loaded = Loaded::open(id).map_err(|error| ("BPF_PROG_GET_FD_BY_ID", error))?;
        let info = loaded.info().map_err(|error| ("BPF_OBJ_GET_INFO_BY_FD", error))?;
        let (mut prologue, mut base) = (Prologue::default(), None);
        let program = match info.instructions {
            _ if info.maps != 0 => Err(Unsupported::BpfMaps { program: id }),
            None => Err(Unsupported::BpfUnreadable { program: id }),
            Some(instructions) => {
                let (found, rest) = Prologue::split(&instructions);
                (prologue, base) = (found, Program::read(rest.to_vec()).ok());
                Program::read(instructions).map_err(|unknown| Unsupported::BpfInstruction {
                    program: id,
                    index: unknown.index,
                    code: unknown.code,
                })
            }
        };
        Ok(AttachedProgram { id, loaded, program, base, prologue })
    }

    pub(super) fn allows(&self, number: DeviceNumber, access: Access) -> bool {
        self.program.as_ref().is_ok_and(|program| program.allows_block(number, access))
    }

    /// Whether it allows the access without our prologue.
    pub(super) fn allows_by_itself(&self, number: DeviceNumber, access: Access) -> bool {
        self.base.as_ref().is_some_and(|program| program.allows_block(number, access))
    }

    /// The prologue that it needs, if that is not the one it has.
    pub(super) fn change(&self, number: DeviceNumber, access: Access) -> Option<Prologue> {
        let granted =
            if self.allows_by_itself(number, access) { Access::default() } else { access };
        let is_unchanged = self.prologue.access(number) == granted;
        (!is_unchanged).then(|| self.prologue.with(number, granted))
    }
}
