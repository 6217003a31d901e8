//! Device programs as the container runtimes generate them, and the calls to attach them: `bpf(2)`
//! again, independent of the library's code.

#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses a part of it")]

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

use agent_plugin::cgroup::insn::Instruction;

/// A rule of a specification: kind, access, major, minor, allow. Access: 1 mknod, 2 read, 4 write.
pub(crate) type Rule = (Option<u16>, u16, Option<u32>, Option<u32>, bool);

pub(crate) const BLOCK: Option<u16> = Some(1);
pub(crate) const CHAR: Option<u16> = Some(2);

/// What runtimes allow by default, the last rule first.
pub(crate) const USUAL: [Rule; 10] = [
    (CHAR, 7, Some(5), Some(2), true),
    (CHAR, 7, Some(136), None, true),
    (CHAR, 7, Some(5), Some(0), true),
    (CHAR, 7, Some(1), Some(9), true),
    (CHAR, 7, Some(1), Some(8), true),
    (CHAR, 7, Some(1), Some(7), true),
    (CHAR, 7, Some(1), Some(5), true),
    (CHAR, 7, Some(1), Some(3), true),
    (BLOCK, 1, None, None, true),
    (CHAR, 1, None, None, true),
];

/// The runtime that generated a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runtime {
    Crun,
    /// runc 1.1 tests for a subset, as crun does.
    Runc,
    /// runc up to 1.0.0-rc92 tests for one common bit.
    OldRunc,
    /// Jumps to one common end.
    Systemd,
}

pub(crate) const RUNTIMES: [Runtime; 4] =
    [Runtime::Crun, Runtime::Runc, Runtime::OldRunc, Runtime::Systemd];

/// Returns the runtime's program for `rules`. The first match decides; without a match the access
/// is refused.
pub(crate) fn program(runtime: Runtime, rules: &[Rule]) -> Vec<Instruction> {
    let i = Instruction::new;
    // r2 type, r3 access, r4 major, r5 minor
    let mut program = if runtime == Runtime::Systemd {
        vec![i(0x69, 2, 1, 0, 0)]
    } else {
        vec![i(0x61, 2, 1, 0, 0), i(0x54, 2, 0, 0, 0xffff)]
    };
    program.extend([
        i(0x61, 3, 1, 0, 0),
        i(0x74, 3, 0, 0, 16),
        i(0x61, 4, 1, 4, 0),
        i(0x61, 5, 1, 8, 0),
    ]);
    let answer =
        |allow: bool| i(if runtime == Runtime::Crun { 0xb7 } else { 0xb4 }, 0, 0, 0, allow.into());
    let mut ends = Vec::new();
    for &(kind, access, major, minor, allow) in rules {
        // Code, registers, constant, and whether it jumps.
        let mut tests = Vec::new();
        tests.extend(kind.map(|kind| (0x55, 2, 0, kind.into(), true)));
        if access != 7 {
            tests.extend([(0xbc, 1, 3, 0, false), (0x54, 1, 0, access.into(), false)]);
            let overlaps = (0x15, 1, 0, 0, true);
            tests.push(if runtime == Runtime::OldRunc { overlaps } else { (0x5d, 1, 3, 0, true) });
        }
        tests.extend(major.map(|major| (0x55, 4, 0, major.cast_signed(), true)));
        tests.extend(minor.map(|minor| (0x55, 5, 0, minor.cast_signed(), true)));
        let end = if runtime == Runtime::Systemd {
            assert!(allow, "systemd has no rules that refuse");
            vec![i(0x05, 0, 0, 0, 0)]
        } else {
            vec![answer(allow), i(0x95, 0, 0, 0, 0)]
        };
        let last = tests.len() + end.len();
        for (index, (code, to, from, constant, jumps)) in tests.into_iter().enumerate() {
            // Without a match, continue after the rule's end.
            let skip = i16::try_from(last - index - 1).unwrap();
            program.push(i(code, to, from, if jumps { skip } else { 0 }, constant));
        }
        ends.push(program.len());
        program.extend(end);
    }
    if runtime == Runtime::Systemd {
        let pass = program.len() + 2;
        for end in ends {
            program[end] = i(0x05, 0, 0, i16::try_from(pass - end - 1).unwrap(), 0);
        }
        program.extend([
            i(0xb7, 0, 0, 0, 0),
            i(0x05, 0, 0, 1, 0),
            i(0xb7, 0, 0, 0, 1),
            i(0x95, 0, 0, 0, 0),
        ]);
    } else {
        program.extend([answer(false), i(0x95, 0, 0, 0, 0)]);
    }
    program
}

/// The program that crun 1.8.1 attaches for a list that denies all but its default devices, as
/// Linux 6.1 returns it.
pub(crate) fn crun_1_8_1() -> Vec<Instruction> {
    let instruction = |line: &str| {
        let number = u64::from_str_radix(line, 16).expect("sixteen digits").to_be_bytes();
        let [code, registers, low, high, immediate @ ..] = number;
        let offset = i16::from_le_bytes([low, high]);
        Instruction::new(
            code,
            registers & 15,
            registers >> 4,
            offset,
            i32::from_le_bytes(immediate),
        )
    };
    include_str!("../programs/crun-1.8.1.hex").lines().map(instruction).collect()
}

/// A program that always returns `answer`.
pub(crate) fn constant(answer: i32) -> Vec<Instruction> {
    vec![Instruction::new(0xb7, 0, 0, 0, answer), Instruction::new(0x95, 0, 0, 0, 0)]
}

pub(crate) const ALLOW_MULTI: u32 = 2;

#[expect(unsafe_code, reason = "bpf(2) has no safe wrapper in libc or nix")]
fn bpf(command: i32, fields: &[u32]) -> i64 {
    let mut attribute = [0_u64; 32];
    for (index, field) in fields.iter().enumerate() {
        attribute[index / 2] |= u64::from(*field) << (index % 2 * 32);
    }
    // SAFETY: callers only pass pointers to data that outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_mut_ptr(), 256) };
    assert!(result >= 0, "bpf({command}): {}", io::Error::last_os_error());
    result
}

fn low_high<T>(pointer: *const T) -> [u32; 2] {
    let address = pointer.expose_provenance() as u64;
    [address as u32, (address >> 32) as u32]
}

#[expect(unsafe_code, reason = "the kernel returns a descriptor as a number")]
fn owned(fd: i64) -> OwnedFd {
    // SAFETY: the descriptor is new, nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).unwrap()) }
}

fn raw(fd: &impl std::os::fd::AsRawFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Loads a program as a runtime does.
pub(crate) fn load(program: &[Instruction]) -> OwnedFd {
    let (code, license) = (low_high(program.as_ptr()), low_high(c"GPL".as_ptr()));
    owned(bpf(
        5,
        &[15, u32::try_from(program.len()).unwrap(), code[0], code[1], license[0], license[1]],
    ))
}

/// Attaches a program to a cgroup, in addition to the attached ones.
pub(crate) fn attach(cgroup: &File, program: &OwnedFd, flags: u32) {
    bpf(8, &[raw(cgroup), raw(program), 6, flags]);
}

/// Replaces the attached program `old`, as runtimes do for new rules.
pub(crate) fn replace(cgroup: &File, program: &OwnedFd, old: u32) {
    let old = owned(bpf(13, &[old]));
    bpf(8, &[raw(cgroup), raw(program), 6, ALLOW_MULTI | 4, raw(&old)]);
}

/// Attaches a program by a bpf_link. It stays attached until the link is closed.
pub(crate) fn link(cgroup: &File, program: &OwnedFd) -> OwnedFd {
    owned(bpf(28, &[raw(program), raw(cgroup), 6]))
}

/// Creates a minimal map.
pub(crate) fn map() -> OwnedFd {
    owned(bpf(0, &[2, 4, 4, 1]))
}

/// A program that refers to a map and refuses everything.
pub(crate) fn with_map(map: &OwnedFd) -> Vec<Instruction> {
    let fd = map.as_raw_fd();
    [vec![Instruction::new(0x18, 1, 1, 0, fd), Instruction::default()], constant(0)].concat()
}

/// A program that calls a helper.
pub(crate) fn with_call() -> Vec<Instruction> {
    [vec![Instruction::new(0x85, 0, 0, 0, 7)], constant(0)].concat()
}
