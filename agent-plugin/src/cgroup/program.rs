//! The instructions of a device program ([instruction
//! set](https://docs.kernel.org/bpf/standardization/instruction-set.html))).
//!
//! Known is what runtimes write: arithmetic, jumps, reads of the argument. A program with anything
//! else (a helper call, a stack, a map) is not understood, and [`Program::read`] says where. What
//! is understood means the same when it is loaded again.

use super::{
    Rights,
    model::{Question, access, run},
};
use crate::block::DeviceNumber;

/// `struct bpf_insn`, as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

// Classes, the lower three bits of a code.
pub(super) const LD: u8 = 0x00;
pub(super) const LDX: u8 = 0x01;
pub(super) const ALU: u8 = 0x04;
pub(super) const JMP: u8 = 0x05;
pub(super) const JMP32: u8 = 0x06;
pub(super) const ALU64: u8 = 0x07;

/// The operand is a register, else the immediate.
pub(super) const X: u8 = 0x08;

/// r11 is the kernel's own: it appears in programs that were blinded.
const BLINDING: u8 = 11;

impl Instruction {
    /// From its parts.
    pub const fn new(
        code: u8,
        destination: u8,
        source: u8,
        offset: i16,
        immediate: i32,
    ) -> Instruction {
        let registers = if cfg!(target_endian = "little") {
            destination | source << 4
        } else {
            destination << 4 | source
        };
        Instruction { code, registers, offset, immediate }
    }

    pub(super) fn code(self) -> u8 {
        self.code
    }

    pub(super) fn offset(self) -> i16 {
        self.offset
    }

    pub(super) fn immediate(self) -> i32 {
        self.immediate
    }

    pub(super) fn destination(self) -> u8 {
        if cfg!(target_endian = "little") { self.registers & 15 } else { self.registers >> 4 }
    }

    pub(super) fn source(self) -> u8 {
        if cfg!(target_endian = "little") { self.registers >> 4 } else { self.registers & 15 }
    }

    pub(super) fn class(self) -> u8 {
        self.code & 7
    }

    pub(super) fn operation(self) -> u8 {
        self.code & 0xf0
    }

    pub(super) fn takes_register(self) -> bool {
        self.code & X != 0
    }

    /// Whether the model knows it.
    fn is_known(self) -> bool {
        let operand = if self.takes_register() { self.immediate == 0 } else { self.source() == 0 };
        match self.class() {
            // Neither division by a register, for which the kernel adds a check, nor a swap of
            // bytes; no sign extension.
            ALU | ALU64 => match self.operation() {
                0x30 | 0x90 => !self.takes_register() && self.immediate != 0 && self.offset == 0,
                0x80 => self.code & X == 0 && self.immediate == 0 && self.offset == 0,
                0x00..=0xc0 => operand && self.offset == 0,
                _ => false,
            },
            JMP | JMP32 => match self.operation() {
                0x00 => !self.takes_register(),
                0x80 => false,
                0x90 => self.code == JMP | 0x90,
                0x10..=0xd0 => operand,
                _ => false,
            },
            // Words, half-words, bytes.
            LDX => matches!(self.code, 0x61 | 0x69 | 0x71),
            // A constant of 64 bits, not a map.
            LD => self.code == 0x18 && self.source() == 0,
            _ => false,
        }
    }
}

/// A program of which every instruction is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program(Vec<Instruction>);

/// The instruction that the model does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unknown {
    /// Where.
    pub index: usize,
    /// Its code.
    pub code: u8,
}

impl Program {
    /// Checks that every instruction is known.
    ///
    /// # Errors
    /// The first one that is not.
    pub fn read(instructions: Vec<Instruction>) -> Result<Program, Unknown> {
        let mut index = 0;
        while let Some(instruction) = instructions.get(index) {
            if !instruction.is_known() {
                return Err(Unknown { index, code: instruction.code });
            }
            // The second half of a long constant is no instruction.
            index += if instruction.class() == LD { 2 } else { 1 };
        }
        Ok(Program(instructions))
    }

    /// As the kernel takes them.
    pub fn instructions(&self) -> &[Instruction] {
        &self.0
    }

    /// Whether `net.core.bpf_jit_harden` hid its constants: it can be run, and not be loaded again.
    pub fn is_blinded(&self) -> bool {
        let hidden = |of: &Instruction| of.source() == BLINDING || of.destination() == BLINDING;
        self.0.iter().any(hidden)
    }

    /// Whether a block device can be opened, in every way that the rights comprise.
    pub fn allows_block(&self, number: DeviceNumber, rights: Rights) -> bool {
        let all = access(rights);
        let ways = (1..=all).filter(|way| way & !all == 0);
        ways.map(|access| Question { access, ..Question::block(number, rights) })
            .all(|question| run(&self.0, question) == Some(true))
    }
}
