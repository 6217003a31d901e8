//! A device program of which every instruction is understood.
//!
//! Understood is what runtimes write: arithmetic, jumps, reads of the argument. A program with
//! anything else (a helper call, a stack access, a map) is refused, and [`Program::read`] returns
//! the position. A program that is understood means the same when it is loaded again.

use super::{
    access::Access,
    insn::{BPF_LD, Instruction},
    interpreter::{DeviceContext, acc_bits, run},
};
use crate::block::DeviceNumber;

/// r11 is the kernel's own register: it occurs in programs that were blinded.
const BLINDING_REGISTER: u8 = 11;

/// A program of which every instruction is understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program(Vec<Instruction>);

/// An instruction that is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownInstruction {
    /// Its position.
    pub index: usize,
    /// Its opcode.
    pub code: u8,
}

impl Program {
    /// Checks that every instruction is understood.
    ///
    /// # Errors
    /// The first one that is not.
    pub fn read(instructions: Vec<Instruction>) -> Result<Program, UnknownInstruction> {
        let mut index = 0;
        while let Some(instruction) = instructions.get(index) {
            if !instruction.is_known() {
                return Err(UnknownInstruction { index, code: instruction.code() });
            }
            // The second half of a constant of 64 bits is not an instruction.
            index += if instruction.class() == BPF_LD { 2 } else { 1 };
        }
        Ok(Program(instructions))
    }

    /// The instructions, as the kernel loads them.
    pub fn instructions(&self) -> &[Instruction] {
        &self.0
    }

    /// Whether `net.core.bpf_jit_harden` hid its constants: such a program can be interpreted, and
    /// not be loaded again.
    pub fn is_blinded(&self) -> bool {
        let is_hidden = |instruction: &Instruction| {
            [instruction.source(), instruction.destination()].contains(&BLINDING_REGISTER)
        };
        self.0.iter().any(is_hidden)
    }

    /// Whether a block device can be opened with every combination of this access.
    pub fn allows_block(&self, number: DeviceNumber, access: Access) -> bool {
        let all = acc_bits(access);
        let parts = (1..=all).filter(|part| part & !all == 0);
        parts
            .map(|part| DeviceContext { access: part, ..DeviceContext::block(number, access) })
            .all(|context| run(&self.0, context) == Some(true))
    }
}
