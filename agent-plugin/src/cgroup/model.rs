//! A model of the kernel's interpreter, for device programs: what they answer, without asking the
//! kernel.
//!
//! A program of type `BPF_CGROUP_DEVICE` ([program
//! types](https://docs.kernel.org/bpf/libbpf/program_types.html)) gets
//! `struct bpf_cgroup_dev_ctx { access_type, major, minor }` in r1 and returns 1 to allow.

use super::{
    Rights,
    program::{ALU, ALU64, Instruction, JMP32, LD, LDX, X},
};
use crate::block::DeviceNumber;

/// A program in which a path is longer than this is not run to its end: the runtimes' have less
/// than a thousand instructions.
const LONGEST_PATH: usize = 1 << 17;

/// What a program is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// `BPF_DEVCG_DEV_BLOCK` or `BPF_DEVCG_DEV_CHAR`
    pub kind: u16,
    /// `BPF_DEVCG_ACC_MKNOD`, `_READ`, `_WRITE`, together.
    pub access: u16,
    /// Of the device.
    pub major: u32,
    /// Of the device.
    pub minor: u32,
}

/// `BPF_DEVCG_DEV_BLOCK`
pub const BLOCK: u16 = 1;

impl Question {
    /// About a block device.
    pub fn block(number: DeviceNumber, rights: Rights) -> Question {
        Question { kind: BLOCK, access: access(rights), major: number.major, minor: number.minor }
    }

    fn context(self) -> [u8; 12] {
        let words = [u32::from(self.access) << 16 | u32::from(self.kind), self.major, self.minor];
        let mut bytes = [0; 12];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

/// Rights as the kernel numbers them here: mknod 1, read 2, write 4.
pub(super) fn access(rights: Rights) -> u16 {
    let bit = |right, bit| if rights.cover(right) { bit } else { 0 };
    bit(Rights::MKNOD, 1) | bit(Rights::READ, 2) | bit(Rights::WRITE, 4)
}

/// What a program answers; `None` where it does something that no program of a runtime does
/// (arithmetic with the argument's address, a register that has no value, a path without end).
pub fn run(program: &[Instruction], question: Question) -> Option<bool> {
    let mut run = Run { registers: [None; 12], context: question.context() };
    run.registers[1] = Some(Value::Context);
    let mut at = 0_usize;
    for _ in 0..LONGEST_PATH {
        let instruction = *program.get(at)?;
        let taken = match instruction.class() {
            ALU | ALU64 => run.compute(instruction)?,
            LDX => run.load(instruction)?,
            LD => {
                let high = u64::from(program.get(at + 1)?.immediate().cast_unsigned());
                let low = u64::from(instruction.immediate().cast_unsigned());
                *run.register(instruction.destination())? = Some(Value::Number(high << 32 | low));
                1
            }
            _ if instruction.operation() == 0x90 => return Some(run.number(0)? == 1),
            _ => run.jump(instruction)?,
        };
        at = at.checked_add(1)?.checked_add_signed(isize::try_from(taken).ok()?)?;
    }
    None
}

#[derive(Debug, Clone, Copy)]
enum Value {
    Number(u64),
    Context,
}

/// The state of the model. Its steps return how many instructions to skip.
struct Run {
    registers: [Option<Value>; 12],
    context: [u8; 12],
}

impl Run {
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
        const MOVE: u8 = 0xb0;
        let (code, to) = (instruction.operation(), instruction.destination());
        if instruction.code() == ALU64 | MOVE | X {
            *self.register(to)? = *self.register(instruction.source())?;
            return Some(0);
        }
        let value = self.operand(instruction)?;
        let old = if code == MOVE { 0 } else { self.number(to)? };
        let result = if instruction.class() == ALU64 {
            let shift = value as u32 & 63;
            match code {
                0x60 => old << shift,
                0x70 => old >> shift,
                0xc0 => (old.cast_signed() >> shift).cast_unsigned(),
                _ => arithmetic(code, old, value)?,
            }
        } else {
            let (old, value) = (old as u32, value as u32);
            let shift = value & 31;
            u64::from(match code {
                0x60 => old << shift,
                0x70 => old >> shift,
                0xc0 => (old.cast_signed() >> shift).cast_unsigned(),
                _ => arithmetic(code, u64::from(old), u64::from(value))? as u32,
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
            0x61 => u32::from_ne_bytes(bytes(4)?.try_into().ok()?),
            0x69 => u16::from_ne_bytes(bytes(2)?.try_into().ok()?).into(),
            _ => bytes(1)?[0].into(),
        };
        *self.register(instruction.destination())? = Some(Value::Number(number.into()));
        Some(0)
    }

    fn jump(&self, instruction: Instruction) -> Option<i64> {
        let offset = i64::from(instruction.offset());
        if instruction.operation() == 0 {
            let long = instruction.class() == JMP32;
            return Some(if long { instruction.immediate().into() } else { offset });
        }
        let (mut left, mut right) =
            (self.number(instruction.destination())?, self.operand(instruction)?);
        let mut signed = (left.cast_signed(), right.cast_signed());
        if instruction.class() == JMP32 {
            (left, right) = (left & 0xffff_ffff, right & 0xffff_ffff);
            signed = ((left as i32).into(), (right as i32).into());
        }
        let taken = match instruction.operation() {
            0x10 => left == right,
            0x20 => left > right,
            0x30 => left >= right,
            0x40 => left & right != 0,
            0x50 => left != right,
            0x60 => signed.0 > signed.1,
            0x70 => signed.0 >= signed.1,
            0xa0 => left < right,
            0xb0 => left <= right,
            0xc0 => signed.0 < signed.1,
            0xd0 => signed.0 <= signed.1,
            _ => return None,
        };
        Some(if taken { offset } else { 0 })
    }
}

/// What is the same for both widths, once the result is cut to its own.
fn arithmetic(code: u8, old: u64, value: u64) -> Option<u64> {
    Some(match code {
        0x00 => old.wrapping_add(value),
        0x10 => old.wrapping_sub(value),
        0x20 => old.wrapping_mul(value),
        0x30 => old.checked_div(value)?,
        0x40 => old | value,
        0x50 => old & value,
        0x80 => old.wrapping_neg(),
        0x90 => old.checked_rem(value)?,
        0xa0 => old ^ value,
        0xb0 => value,
        _ => return None,
    })
}
