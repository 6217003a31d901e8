//! Instructions of BPF programs: `struct bpf_insn` and the opcodes of `linux/bpf_common.h` and
//! `linux/bpf.h` ([instruction
//! set](https://docs.kernel.org/bpf/standardization/instruction-set.html)).

// Classes, the lower three bits of an opcode.
/// Constant loads.
pub(super) const BPF_LD: u8 = 0x00;
/// Loads into a register.
pub(super) const BPF_LDX: u8 = 0x01;
/// Arithmetic of 32 bits.
pub(super) const BPF_ALU: u8 = 0x04;
/// Jumps that compare 64 bits.
pub(super) const BPF_JMP: u8 = 0x05;
/// Jumps that compare 32 bits.
pub(super) const BPF_JMP32: u8 = 0x06;
/// Arithmetic of 64 bits.
pub(super) const BPF_ALU64: u8 = 0x07;

// Sizes of a load: word, half-word, byte, double word.
pub(super) const BPF_W: u8 = 0x00;
pub(super) const BPF_H: u8 = 0x08;
pub(super) const BPF_B: u8 = 0x10;
pub(super) const BPF_DW: u8 = 0x18;

// Modes of a load: constant, memory.
pub(super) const BPF_IMM: u8 = 0x00;
pub(super) const BPF_MEM: u8 = 0x60;

// Operands of arithmetic and jumps: the immediate, or a register.
pub(super) const BPF_K: u8 = 0x00;
pub(super) const BPF_X: u8 = 0x08;

// Operations of `BPF_ALU` and `BPF_ALU64`.
pub(super) const BPF_ADD: u8 = 0x00;
pub(super) const BPF_SUB: u8 = 0x10;
pub(super) const BPF_MUL: u8 = 0x20;
pub(super) const BPF_DIV: u8 = 0x30;
pub(super) const BPF_OR: u8 = 0x40;
pub(super) const BPF_AND: u8 = 0x50;
pub(super) const BPF_LSH: u8 = 0x60;
pub(super) const BPF_RSH: u8 = 0x70;
pub(super) const BPF_NEG: u8 = 0x80;
pub(super) const BPF_MOD: u8 = 0x90;
pub(super) const BPF_XOR: u8 = 0xa0;
pub(super) const BPF_MOV: u8 = 0xb0;
pub(super) const BPF_ARSH: u8 = 0xc0;

// Operations of `BPF_JMP` and `BPF_JMP32`.
pub(super) const BPF_JA: u8 = 0x00;
pub(super) const BPF_JEQ: u8 = 0x10;
pub(super) const BPF_JGT: u8 = 0x20;
pub(super) const BPF_JGE: u8 = 0x30;
pub(super) const BPF_JSET: u8 = 0x40;
pub(super) const BPF_JNE: u8 = 0x50;
pub(super) const BPF_JSGT: u8 = 0x60;
pub(super) const BPF_JSGE: u8 = 0x70;
pub(super) const BPF_EXIT: u8 = 0x90;
pub(super) const BPF_JLT: u8 = 0xa0;
pub(super) const BPF_JLE: u8 = 0xb0;
pub(super) const BPF_JSLT: u8 = 0xc0;
pub(super) const BPF_JSLE: u8 = 0xd0;

/// Loads of a word, a half-word and a byte.
pub(super) const LDX_MEM_W: u8 = BPF_LDX | BPF_MEM | BPF_W;
pub(super) const LDX_MEM_H: u8 = BPF_LDX | BPF_MEM | BPF_H;
pub(super) const LDX_MEM_B: u8 = BPF_LDX | BPF_MEM | BPF_B;
/// A constant of 64 bits, in two instructions.
pub(super) const LD_IMM64: u8 = BPF_LD | BPF_IMM | BPF_DW;
/// The end of a program.
pub(super) const EXIT: u8 = BPF_JMP | BPF_EXIT;

/// `struct bpf_insn`, as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

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

    /// `BPF_CLASS`
    pub(super) fn class(self) -> u8 {
        self.code & 7
    }

    /// `BPF_OP`
    pub(super) fn operation(self) -> u8 {
        self.code & 0xf0
    }

    /// `BPF_SRC`: whether the operand is a register.
    pub(super) fn takes_register(self) -> bool {
        self.code & BPF_X != 0
    }

    /// Whether the interpreter knows the instruction, and the kernel loads it again as it is.
    pub(super) fn is_known(self) -> bool {
        let operand = if self.takes_register() { self.immediate == 0 } else { self.source() == 0 };
        match self.class() {
            // Not known: division by a register, for which the kernel adds a check, byte swaps, and
            // sign extension.
            BPF_ALU | BPF_ALU64 => match self.operation() {
                BPF_DIV | BPF_MOD => {
                    !self.takes_register() && self.immediate != 0 && self.offset == 0
                }
                BPF_NEG => !self.takes_register() && self.immediate == 0 && self.offset == 0,
                BPF_ADD..=BPF_ARSH => operand && self.offset == 0,
                _ => false,
            },
            // Calls are not known.
            BPF_JMP | BPF_JMP32 => match self.operation() {
                BPF_JA => !self.takes_register(),
                BPF_EXIT => self.code == EXIT,
                BPF_JEQ..=BPF_JSGE | BPF_JLT..=BPF_JSLE => operand,
                _ => false,
            },
            BPF_LDX => matches!(self.code, LDX_MEM_W | LDX_MEM_H | LDX_MEM_B),
            // Another source register means a map or another object of the kernel.
            BPF_LD => self.code == LD_IMM64 && self.source() == 0,
            _ => false,
        }
    }
}
