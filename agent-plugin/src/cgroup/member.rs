//! One attached program of a group: read, and taken apart into what we put in front of it and what
//! its owner wrote.

use super::{Rights, bpf::Loaded, program::Program, prologue::Prologue};
use crate::{block::DeviceNumber, error::Unsupported};
use std::io;

/// An attached program.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) id: u32,
    pub(super) loaded: Loaded,
    /// Or why it cannot be read.
    pub(super) program: Result<Program, Unsupported>,
    /// The program as its owner wrote it.
    pub(super) base: Option<Program>,
    pub(super) prologue: Prologue,
}

impl Member {
    /// # Errors
    /// The command that failed, and what the kernel said; `ENOENT` where the program is gone.
    pub(super) fn open(id: u32) -> Result<Member, (&'static str, io::Error)> {
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
        Ok(Member { id, loaded, program, base, prologue })
    }

    pub(super) fn allows(&self, number: DeviceNumber, rights: Rights) -> bool {
        self.program.as_ref().is_ok_and(|program| program.allows_block(number, rights))
    }

    /// Without us.
    pub(super) fn allows_by_itself(&self, number: DeviceNumber, rights: Rights) -> bool {
        self.base.as_ref().is_some_and(|program| program.allows_block(number, rights))
    }

    /// What has to stand in front of it, if that is not there already.
    pub(super) fn change(&self, number: DeviceNumber, rights: Rights) -> Option<Prologue> {
        let granted =
            if self.allows_by_itself(number, rights) { Rights::default() } else { rights };
        let unchanged = self.prologue.rights(number) == granted;
        (!unchanged).then(|| self.prologue.with(number, granted))
    }
}
