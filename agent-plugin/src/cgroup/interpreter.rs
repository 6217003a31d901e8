//! An interpreter of device programs, as the kernel's: what a program answers, without the kernel.
//!
//! A program of type `BPF_PROG_TYPE_CGROUP_DEVICE` ([program
//! types](https://docs.kernel.org/bpf/libbpf/program_types.html)) gets
//! `struct bpf_cgroup_dev_ctx { access_type, major, minor }` in r1 and returns 1 to allow.

use super::{
    access::Access,
    insn::{
        BPF_ADD, BPF_ALU, BPF_ALU64, BPF_AND, BPF_ARSH, BPF_DIV, BPF_EXIT, BPF_JA, BPF_JEQ,
        BPF_JGE, BPF_JGT, BPF_JLE, BPF_JLT, BPF_JMP32, BPF_JNE, BPF_JSET, BPF_JSGE, BPF_JSGT,
        BPF_JSLE, BPF_JSLT, BPF_LD, BPF_LDX, BPF_LSH, BPF_MOD, BPF_MOV, BPF_MUL, BPF_NEG, BPF_OR,
        BPF_RSH, BPF_SUB, BPF_X, BPF_XOR, Instruction, LDX_MEM_H, LDX_MEM_W,
    },
};
use crate::block::DeviceNumber;

/// A path of more instructions is not followed to its end: the programs of runtimes have less than
/// a thousand.
const LONGEST_PATH: usize = 1 << 17;

/// Type of a block device in a context.
pub const BPF_DEVCG_DEV_BLOCK: u16 = 1;
const BPF_DEVCG_ACC_MKNOD: u16 = 1;
const BPF_DEVCG_ACC_READ: u16 = 2;
const BPF_DEVCG_ACC_WRITE: u16 = 4;

/// `struct bpf_cgroup_dev_ctx`, the argument of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceContext {
    /// `BPF_DEVCG_DEV_BLOCK` or `BPF_DEVCG_DEV_CHAR`: the lower half of `access_type`.
    pub kind: u16,
    /// `BPF_DEVCG_ACC_MKNOD`, `_READ`, `_WRITE`, combined: the upper half of `access_type`.
    pub access: u16,
    /// Of the device.
    pub major: u32,
    /// Of the device.
    pub minor: u32,
}

impl DeviceContext {
    /// For a block device.
    pub fn block(number: DeviceNumber, access: Access) -> DeviceContext {
        DeviceContext {
            kind: BPF_DEVCG_DEV_BLOCK,
            access: acc_bits(access),
            major: number.major,
            minor: number.minor,
        }
    }

    fn bytes(self) -> [u8; 12] {
        let words = [u32::from(self.access) << 16 | u32::from(self.kind), self.major, self.minor];
        let mut bytes = [0; 12];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

/// Access as `BPF_DEVCG_ACC_*`.
pub(super) fn acc_bits(access: Access) -> u16 {
    let bit = |part, bit| if access.cover(part) { bit } else { 0 };
    bit(Access::MKNOD, BPF_DEVCG_ACC_MKNOD)
        | bit(Access::READ, BPF_DEVCG_ACC_READ)
        | bit(Access::WRITE, BPF_DEVCG_ACC_WRITE)
}

/// What a program answers; `None` where it does something that no program of a runtime does
/// (arithmetic with the argument's address, use of a register without a value, a path without end).
pub fn run(program: &[Instruction], context: DeviceContext) -> Option<bool> {
    let mut state = State { registers: [None; 12], context: context.bytes() };
    state.registers[1] = Some(Value::Context);
    let mut at = 0_usize;
    for _ in 0..LONGEST_PATH {
        let instruction = *program.get(at)?;
        let skipped = match instruction.class() {
            BPF_ALU | BPF_ALU64 => state.compute(instruction)?,
            BPF_LDX => state.load(instruction)?,
            BPF_LD => {
                let high = u64::from(program.get(at + 1)?.immediate().cast_unsigned());
                let low = u64::from(instruction.immediate().cast_unsigned());
                *state.register(instruction.destination())? = Some(Value::Number(high << 32 | low));
                1
            }
            _ if instruction.operation() == BPF_EXIT => return Some(state.number(0)? == 1),
            _ => state.jump(instruction)?,
        };
        at = at.checked_add(1)?.checked_add_signed(isize::try_from(skipped).ok()?)?;
    }
    None
}

#[derive(Debug, Clone, Copy)]
enum Value {
    Number(u64),
    Context,
}

/// Registers and argument. Each step returns how many instructions to skip.
struct State {
    registers: [Option<Value>; 12],
    context: [u8; 12],
}

impl State {
    fn register(&mut self, number: u8) -> Option<&mut Option<Value>> {
        self.registers.get_mut(usize::from(number))
    }

    fn number(&self, register: u8) -> Option<u64> {
        match self.registers.get(usize::from(register))? {
            Some(Value::Number(number)) => Some(*number),
            _ => None,
        }
    }

    fn operand(&self, instruction: Instruction) -> Option<u64> {
        if instruction.takes_register() {
            return self.number(instruction.source());
        }
        Some(i64::from(instruction.immediate()).cast_unsigned())
    }

    fn compute(&mut self, instruction: Instruction) -> Option<i64> {
        let (operation, to) = (instruction.operation(), instruction.destination());
        if instruction.code() == BPF_ALU64 | BPF_MOV | BPF_X {
            *self.register(to)? = *self.register(instruction.source())?;
            return Some(0);
        }
        let value = self.operand(instruction)?;
        let old = if operation == BPF_MOV { 0 } else { self.number(to)? };
        let result = if instruction.class() == BPF_ALU64 {
            let shift = value as u32 & 63;
            match operation {
                BPF_LSH => old << shift,
                BPF_RSH => old >> shift,
                BPF_ARSH => (old.cast_signed() >> shift).cast_unsigned(),
                _ => arithmetic(operation, old, value)?,
            }
        } else {
            let (old, value) = (old as u32, value as u32);
            let shift = value & 31;
            u64::from(match operation {
                BPF_LSH => old << shift,
                BPF_RSH => old >> shift,
                BPF_ARSH => (old.cast_signed() >> shift).cast_unsigned(),
                _ => arithmetic(operation, u64::from(old), u64::from(value))? as u32,
            })
        };
        *self.register(to)? = Some(Value::Number(result));
        Some(0)
    }

    fn load(&mut self, instruction: Instruction) -> Option<i64> {
        let Some(Value::Context) = self.registers.get(usize::from(instruction.source()))? else {
            return None;
        };
        let from = usize::try_from(instruction.offset()).ok()?;
        let bytes = |length| self.context.get(from..from.checked_add(length)?);
        let number = match instruction.code() {
            LDX_MEM_W => u32::from_ne_bytes(bytes(4)?.try_into().ok()?),
            LDX_MEM_H => u16::from_ne_bytes(bytes(2)?.try_into().ok()?).into(),
            _ => bytes(1)?[0].into(),
        };
        *self.register(instruction.destination())? = Some(Value::Number(number.into()));
        Some(0)
    }

    fn jump(&self, instruction: Instruction) -> Option<i64> {
        let offset = i64::from(instruction.offset());
        if instruction.operation() == BPF_JA {
            let is_long = instruction.class() == BPF_JMP32;
            return Some(if is_long { instruction.immediate().into() } else { offset });
        }
        let (mut left, mut right) =
            (self.number(instruction.destination())?, self.operand(instruction)?);
        let mut signed = (left.cast_signed(), right.cast_signed());
        if instruction.class() == BPF_JMP32 {
            (left, right) = (left & 0xffff_ffff, right & 0xffff_ffff);
            signed = ((left as i32).into(), (right as i32).into());
        }
        let taken = match instruction.operation() {
            BPF_JEQ => left == right,
            BPF_JGT => left > right,
            BPF_JGE => left >= right,
            BPF_JSET => left & right != 0,
            BPF_JNE => left != right,
            BPF_JSGT => signed.0 > signed.1,
            BPF_JSGE => signed.0 >= signed.1,
            BPF_JLT => left < right,
            BPF_JLE => left <= right,
            BPF_JSLT => signed.0 < signed.1,
            BPF_JSLE => signed.0 <= signed.1,
            _ => return None,
        };
        Some(if taken { offset } else { 0 })
    }
}

/// Operations that are the same for both widths, once the result is cut to its width.
fn arithmetic(operation: u8, old: u64, value: u64) -> Option<u64> {
    Some(match operation {
        BPF_ADD => old.wrapping_add(value),
        BPF_SUB => old.wrapping_sub(value),
        BPF_MUL => old.wrapping_mul(value),
        BPF_DIV => old.checked_div(value)?,
        BPF_OR => old | value,
        BPF_AND => old & value,
        BPF_NEG => old.wrapping_neg(),
        BPF_MOD => old.checked_rem(value)?,
        BPF_XOR => old ^ value,
        BPF_MOV => value,
        _ => return None,
    })
}
