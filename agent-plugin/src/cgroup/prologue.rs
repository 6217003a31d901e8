//! Instructions in front of a container's own program that allow single devices. Every other access
//! is decided by the program.
//!
//! ```text
//! r0 = MARK                     ; by which the prologue is found again
//! r2 = access_type              ; (access << 16) | type
//! r3 = major
//! r4 = minor
//! ```
//! and for each device, so that any number of them follow each other:
//! ```text
//! if w3 != MAJOR goto next
//! if w4 != MINOR goto next
//! r5 = r2
//! w5 &= ~(ACCESS << 16)         ; a block device, and no other access?
//! if w5 != 1 goto next
//! r0 = 1
//! exit
//! ```
//! A program gets its argument in r1 and may read no other register before it has written it:
//! values that are left in r0 and r2 to r5 do not matter to it, and its jumps are relative.

use super::{
    access::Access,
    insn::{
        BPF_ALU, BPF_ALU64, BPF_AND, BPF_JMP32, BPF_JNE, BPF_K, BPF_MOV, BPF_X, EXIT, Instruction,
        LDX_MEM_W,
    },
    interpreter::{BPF_DEVCG_DEV_BLOCK, acc_bits},
};
use crate::block::DeviceNumber;

/// "ecrb"
const MARK: i32 = 0x6563_7262;

// Opcodes of the prologue.
const MOV64: u8 = BPF_ALU64 | BPF_MOV | BPF_K;
const MOV64_REGISTER: u8 = BPF_ALU64 | BPF_MOV | BPF_X;
const AND32: u8 = BPF_ALU | BPF_AND | BPF_K;
const JNE32: u8 = BPF_JMP32 | BPF_JNE | BPF_K;

const HEAD: [Instruction; 4] = [
    Instruction::new(MOV64, 0, 0, 0, MARK),
    Instruction::new(LDX_MEM_W, 2, 1, 0, 0),
    Instruction::new(LDX_MEM_W, 3, 1, 4, 0),
    Instruction::new(LDX_MEM_W, 4, 1, 8, 0),
];
/// Instructions per device.
const EACH: usize = 7;

/// The devices that a program allows beyond its owner's rules, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Prologue(Vec<(DeviceNumber, Access)>);

impl Prologue {
    /// Splits a program into the prologue and the owner's program.
    pub fn split(program: &[Instruction]) -> (Prologue, &[Instruction]) {
        let Some(mut rest) = program.strip_prefix(&HEAD) else {
            return (Prologue::default(), program);
        };
        let mut devices = Vec::new();
        while let Some((block, behind)) = rest.split_at_checked(EACH)
            && let Some(device) = decode(block)
        {
            devices.push(device);
            rest = behind;
        }
        (Prologue(devices), rest)
    }

    /// The access that it allows on one device.
    pub fn access(&self, number: DeviceNumber) -> Access {
        let own = self.0.iter().filter(|(device, _)| *device == number);
        own.fold(Access::default(), |access, (_, more)| access.with(*more))
    }

    /// A prologue with exactly this access on one device, and the other devices as they are.
    pub fn with(&self, number: DeviceNumber, access: Access) -> Prologue {
        let mut devices = self.0.clone();
        devices.retain(|(device, _)| *device != number);
        if !access.is_empty() {
            devices.push((number, access));
        }
        Prologue(devices)
    }

    /// Whether it allows nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the prologue followed by a program.
    pub fn before(&self, program: &[Instruction]) -> Vec<Instruction> {
        if self.is_empty() {
            return program.to_vec();
        }
        let mut whole = HEAD.to_vec();
        for &(number, access) in &self.0 {
            whole.extend_from_slice(&encode(number, access));
        }
        whole.extend_from_slice(program);
        whole
    }
}

fn encode(number: DeviceNumber, access: Access) -> [Instruction; EACH] {
    let others = !(u32::from(acc_bits(access)) << 16);
    [
        Instruction::new(JNE32, 3, 0, 6, number.major.cast_signed()),
        Instruction::new(JNE32, 4, 0, 5, number.minor.cast_signed()),
        Instruction::new(MOV64_REGISTER, 5, 2, 0, 0),
        Instruction::new(AND32, 5, 0, 0, others.cast_signed()),
        Instruction::new(JNE32, 5, 0, 2, i32::from(BPF_DEVCG_DEV_BLOCK)),
        Instruction::new(MOV64, 0, 0, 0, 1),
        Instruction::new(EXIT, 0, 0, 0, 0),
    ]
}

fn decode(found: &[Instruction]) -> Option<(DeviceNumber, Access)> {
    let immediate =
        |index: usize| found.get(index).map(|instruction| instruction.immediate().cast_unsigned());
    let number = DeviceNumber { major: immediate(0)?, minor: immediate(1)? };
    let mask = immediate(3)?;
    let is_meant = |access: &Access| !(u32::from(acc_bits(*access)) << 16) == mask;
    let mut all = ["", "r", "w", "rw", "m", "rm", "wm", "rwm"].iter();
    let access = all.find_map(|text| Some(Access::parse(text)).filter(is_meant))?;
    (found == encode(number, access)).then_some((number, access))
}
