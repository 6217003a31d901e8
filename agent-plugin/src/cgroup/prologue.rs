//! What stands in front of a container's own program and allows single devices; whatever else is
//! asked goes on to the program.
//!
//! ```text
//! r0 = MARK                     ; so that it is found again
//! r2 = access_type              ; (access << 16) | type
//! r3 = major
//! r4 = minor
//! ```
//! and for each device, so that any number of them stand side by side:
//! ```text
//! if w3 != MAJOR goto next
//! if w4 != MINOR goto next
//! r5 = r2
//! w5 &= ~(RIGHTS << 16)         ; nothing else is asked, of a block device?
//! if w5 != 1 goto next
//! r0 = 1
//! exit
//! ```
//! A program finds its argument in r1 and may read no other register before it has written it: what
//! is left in r0 and r2 to r5 is nothing to it, and its jumps are relative.

use super::{
    Rights,
    model::{BLOCK, access},
    program::Instruction,
};
use crate::block::DeviceNumber;

/// "ecrb"
const MARK: i32 = 0x6563_7262;
const HEAD: [Instruction; 4] = [
    Instruction::new(0xb7, 0, 0, 0, MARK),
    Instruction::new(0x61, 2, 1, 0, 0),
    Instruction::new(0x61, 3, 1, 4, 0),
    Instruction::new(0x61, 4, 1, 8, 0),
];
const EACH: usize = 7;

/// The devices that a program allows beyond what it was written for, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Prologue(Vec<(DeviceNumber, Rights)>);

impl Prologue {
    /// Takes a program apart: what was put in front of it, and itself.
    pub fn split(program: &[Instruction]) -> (Prologue, &[Instruction]) {
        let Some(mut rest) = program.strip_prefix(&HEAD) else {
            return (Prologue::default(), program);
        };
        let mut devices = Vec::new();
        while let Some((block, behind)) = rest.split_at_checked(EACH)
            && let Some(device) = read(block)
        {
            devices.push(device);
            rest = behind;
        }
        (Prologue(devices), rest)
    }

    /// The rights on one device.
    pub fn rights(&self, number: DeviceNumber) -> Rights {
        let own = self.0.iter().filter(|(device, _)| *device == number);
        own.fold(Rights::default(), |rights, (_, more)| rights.with(*more))
    }

    /// The same with exactly these rights on one device.
    pub fn with(&self, number: DeviceNumber, rights: Rights) -> Prologue {
        let mut devices = self.0.clone();
        devices.retain(|(device, _)| *device != number);
        if !rights.is_empty() {
            devices.push((number, rights));
        }
        Prologue(devices)
    }

    /// Whether it allows nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts it in front of a program.
    pub fn before(&self, program: &[Instruction]) -> Vec<Instruction> {
        if self.is_empty() {
            return program.to_vec();
        }
        let devices = self.0.iter().flat_map(|&(number, rights)| block(number, rights));
        HEAD.into_iter().chain(devices).chain(program.iter().copied()).collect()
    }
}

fn block(number: DeviceNumber, rights: Rights) -> [Instruction; EACH] {
    let others = !(u32::from(access(rights)) << 16);
    [
        Instruction::new(0x56, 3, 0, 6, number.major.cast_signed()),
        Instruction::new(0x56, 4, 0, 5, number.minor.cast_signed()),
        Instruction::new(0xbf, 5, 2, 0, 0),
        Instruction::new(0x54, 5, 0, 0, others.cast_signed()),
        Instruction::new(0x56, 5, 0, 2, i32::from(BLOCK)),
        Instruction::new(0xb7, 0, 0, 0, 1),
        Instruction::new(0x95, 0, 0, 0, 0),
    ]
}

fn read(found: &[Instruction]) -> Option<(DeviceNumber, Rights)> {
    let immediate =
        |index: usize| found.get(index).map(|instruction| instruction.immediate().cast_unsigned());
    let number = DeviceNumber { major: immediate(0)?, minor: immediate(1)? };
    let wanted = immediate(3)?;
    let all = ["", "r", "w", "rw", "m", "rm", "wm", "rwm"].map(Rights::parse);
    let rights = all.into_iter().find(|&rights| !(u32::from(access(rights)) << 16) == wanted)?;
    (found == block(number, rights)).then_some((number, rights))
}
