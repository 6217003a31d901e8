//! A container's device program, as an agent would find it attached. With a prologue for one device
//! in front of it, the interpreter must allow exactly one more device with exactly these rights.
//! The prologue must be recognized again, and removing it must restore the program.
//!
//! Input: major and minor (4 bytes each), rights and flags (1 byte each), 6 unused bytes, then
//! instructions of 8 bytes in the kernel's format. With flag 1, bytes that are not a valid
//! instruction are mapped to one, so that changed bytes lead to other programs.

#![no_main]

use agent_plugin::{
    block::DeviceNumber,
    cgroup::{
        Access,
        insn::Instruction,
        interpreter::{BPF_DEVCG_DEV_BLOCK, DeviceContext, run},
        program::Program,
        prologue::Prologue,
    },
};
use libfuzzer_sys::fuzz_target;

const HEAD: usize = 16;
const REPAIR: u8 = 1;

fuzz_target!(|input: &[u8]| {
    let Some((head, code)) = input.split_at_checked(HEAD) else { return };
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let number = DeviceNumber { major: word(0), minor: word(4) };
    let rights = Access::parse(["r", "w", "rw", "m", "rm", "wm", "rwm"][usize::from(head[8] % 7)]);
    let count = code.len() / 8;
    let instructions: Vec<Instruction> = code
        .chunks_exact(8)
        .enumerate()
        .map(|(index, bytes)| instruction(bytes, (head[9] & REPAIR != 0).then_some(count - index)))
        .collect();

    // The interpreter also terminates for programs that no kernel would load.
    let first = DeviceContext::block(number, rights);
    let answered = run(&instructions, first).is_some();
    if Program::read(instructions.clone()).is_err() || (!answered && has_loop(code)) {
        return;
    }
    let (prologue, own) = Prologue::split(&instructions);
    let wider = prologue.with(number, rights);
    let changed = wider.before(own);
    let narrower = wider.with(number, Access::default());
    let restored = narrower.before(own);

    let granted = |devices: &Prologue, question: DeviceContext| {
        let all = devices.access(DeviceNumber { major: question.major, minor: question.minor });
        question.kind == BPF_DEVCG_DEV_BLOCK && question.access & !bits(all) == 0 && !all.is_empty()
    };
    let mut valid = false;
    for question in questions(number) {
        // No kernel loads a program in which a path does not reach an exit.
        let Some(alone) = run(own, question) else { continue };
        valid = true;
        assert_eq!(
            run(&changed, question),
            Some(granted(&wider, question) || alone),
            "{question:?}"
        );
        assert_eq!(
            run(&restored, question),
            Some(granted(&narrower, question) || alone),
            "{question:?}"
        );
        let other = question.kind != BPF_DEVCG_DEV_BLOCK
            || (question.major, question.minor) != (number.major, number.minor);
        if other {
            assert_eq!(granted(&wider, question), granted(&prologue, question), "{question:?}");
        }
    }
    if !valid {
        return;
    }
    assert_eq!((wider.access(number), narrower.access(number)), (rights, Access::default()));
    assert_eq!(Prologue::split(&changed), (wider, own), "the prologue is recognized");
    assert_eq!(Program::read(own.to_vec()).is_ok(), Program::read(changed.clone()).is_ok());
    if let Ok(changed) = Program::read(changed) {
        assert!(run(own, first).is_none() || changed.allows_block(number, rights));
    }
    if !narrower.is_empty() {
        assert_eq!(Prologue::split(&restored), (narrower, own));
    } else {
        assert_eq!(restored, own);
    }
});

/// Decodes an instruction. With `left`, the number of instructions up to the end, bytes that are
/// not a valid instruction are mapped to one.
fn instruction(bytes: &[u8], left: Option<usize>) -> Instruction {
    const CODES: [u8; 40] = [
        0x61, 0x69, 0x71, 0x18, 0x95, 0x05, 0x06, 0xb7, 0xbf, 0xb4, 0xbc, 0x07, 0x0f, 0x04, 0x17,
        0x1f, 0x27, 0x37, 0x47, 0x4f, 0x54, 0x5c, 0x57, 0x67, 0x77, 0x74, 0x7f, 0x84, 0x87, 0x97,
        0xa4, 0xa7, 0xc7, 0x15, 0x1d, 0x55, 0x56, 0x5d, 0x2d, 0xd6,
    ];
    let (code, to, from) = (bytes[0], bytes[1] & 15, bytes[1] >> 4);
    let offset = i16::from_le_bytes([bytes[2], bytes[3]]);
    let immediate = i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    let Some(left) = left else { return Instruction::new(code, to, from, offset, immediate) };
    let code = CODES[usize::from(code) % CODES.len()];
    let forward =
        i16::try_from(usize::from(offset.unsigned_abs()) % left.max(1)).unwrap_or_default();
    let (to, from) = (to % 8, from % 8);
    match code & 7 {
        0x00 => Instruction::new(code, to, 0, 0, immediate),
        0x01 => Instruction::new(
            code,
            to,
            1,
            [0, 0, 2, 4, 8][usize::from(offset.unsigned_abs()) % 5],
            0,
        ),
        0x05 | 0x06 if code & 0xf0 == 0 => {
            Instruction::new(code, 0, 0, forward, i32::from(forward))
        }
        0x05 | 0x06 if code & 0xf0 == 0x90 => Instruction::new(code, 0, 0, 0, 0),
        0x05 | 0x06 if code & 8 != 0 => Instruction::new(code, to, from, forward, 0),
        0x05 | 0x06 => Instruction::new(code, to, 0, forward, immediate),
        _ if code & 0xf0 == 0x80 => Instruction::new(code, to, 0, 0, 0),
        _ if code & 8 != 0 => Instruction::new(code, to, from, 0, 0),
        _ => Instruction::new(code, to, 0, 0, immediate),
    }
}

/// Whether the program may contain a backward jump. Such a path could take all the steps that the
/// interpreter allows.
fn has_loop(code: &[u8]) -> bool {
    code.chunks_exact(8).any(|bytes| {
        matches!(bytes[0] & 7, 5 | 6) && (bytes[3] & 0x80 != 0 || bytes[7] & 0x80 != 0)
    })
}

fn bits(rights: Access) -> u16 {
    let each = [(1, Access::MKNOD), (2, Access::READ), (4, Access::WRITE)];
    each.into_iter().filter(|(_, right)| rights.cover(*right)).map(|(bit, _)| bit).sum()
}

/// Questions about the device, its neighbours, and devices that every container has.
fn questions(number: DeviceNumber) -> impl Iterator<Item = DeviceContext> {
    let DeviceNumber { major, minor } = number;
    let devices =
        [(major, minor), (major, minor ^ 1), (major ^ 1, minor), (minor, major), (8, 0), (1, 3)];
    let each = move |kind| {
        let of = move |access| {
            devices.map(|(major, minor)| DeviceContext { kind, access, major, minor })
        };
        (0..8).flat_map(of)
    };
    [BPF_DEVCG_DEV_BLOCK, 2].into_iter().flat_map(each)
}
