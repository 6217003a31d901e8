//! The prologue in front of a device program, run by the interpreter: it allows exactly one more
//! device.

mod runtimes;

use agent_plugin::{
    block::DeviceNumber,
    cgroup::{
        Access,
        insn::Instruction,
        interpreter::{DeviceContext, run},
        program::Program,
        prologue::Prologue,
    },
};
use rstest::rstest;
use runtimes::{BLOCK, CHAR, RUNTIMES, Rule, Runtime, USUAL, constant, crun_1_8_1, program};

const DISK: DeviceNumber = DeviceNumber { major: 8, minor: 16 };

/// Reproducible pseudo-random numbers ([xorshift](https://en.wikipedia.org/wiki/Xorshift)).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }

    fn rule(&mut self, runtime: Runtime) -> Rule {
        let access = 1 + u16::try_from(self.below(7)).unwrap();
        let kind = self.pick(if runtime == Runtime::Systemd {
            &[BLOCK, CHAR]
        } else {
            &[BLOCK, CHAR, None]
        });
        let (major, minor) = (self.pick(&NUMBERS), self.pick(&NUMBERS));
        let allow = runtime == Runtime::Systemd || self.below(3) != 0;
        (kind, access, self.pick(&[None, Some(major)]), self.pick(&[None, Some(minor)]), allow)
    }
}

const NUMBERS: [u32; 10] = [0, 1, 7, 8, 15, 16, 17, 259, 4095, (1 << 20) - 1];

/// Every combination of kind, access and pair of numbers that can make a difference.
fn questions() -> impl Iterator<Item = DeviceContext> {
    let each = |kind| {
        (0..8).flat_map(move |access| {
            NUMBERS.into_iter().flat_map(move |major| {
                NUMBERS.into_iter().map(move |minor| DeviceContext { kind, access, major, minor })
            })
        })
    };
    [1, 2, 0].into_iter().flat_map(each)
}

fn grants(device: (DeviceNumber, Access), question: DeviceContext) -> bool {
    let (number, rights) = device;
    let granted = [(1, Access::MKNOD), (2, Access::READ), (4, Access::WRITE)];
    let has = |(bit, right)| question.access & bit == 0 || rights.cover(right);
    question.kind == 1
        && (question.major, question.minor) == (number.major, number.minor)
        && granted.into_iter().all(has)
}

fn assert_allows_only_more(base: &[Instruction], devices: &[(DeviceNumber, Access)]) {
    let add = |prologue: Prologue, &(number, rights): &_| prologue.with(number, rights);
    let prologue = devices.iter().fold(Prologue::default(), add);
    let whole = prologue.before(base);
    for question in questions() {
        let expected =
            run(base, question).unwrap() || devices.iter().any(|&device| grants(device, question));
        assert_eq!(run(&whole, question), Some(expected), "{question:?} with {devices:?}");
    }
    let (found, rest) = Prologue::split(&whole);
    assert_eq!((&found, rest), (&prologue, base), "prologue and program are found again");
    Program::read(whole).expect("our own program is understood");
}

#[rstest]
fn a_prologue_on_the_usual_programs_allows_one_more_device(
    #[values(Runtime::Crun, Runtime::Runc, Runtime::OldRunc, Runtime::Systemd)] runtime: Runtime,
    #[values("r", "w", "rw", "rwm")] rights: &str,
) {
    let base = program(runtime, &USUAL);
    Program::read(base.clone()).unwrap();
    assert_allows_only_more(&base, &[(DISK, Access::parse(rights))]);
}

#[rstest]
fn a_prologue_on_a_real_runtimes_program_allows_one_more_device(#[values("r", "rw")] rights: &str) {
    let base = crun_1_8_1();
    assert_eq!(base.len(), 64);
    assert_allows_only_more(&base, &[(DISK, Access::parse(rights))]);
    let asked =
        |major, minor, access| run(&base, DeviceContext { kind: 2, access, major, minor }).unwrap();
    assert!(
        asked(1, 3, 6)
            && asked(136, 7, 6)
            && asked(200, 200, 1)
            && !asked(200, 200, 2)
            && !asked(1, 1, 2)
    );
}

#[rstest]
fn a_prologue_on_random_programs_allows_random_devices(#[values(1, 2, 3, 4)] seed: u64) {
    let mut random = Random(seed << 32 | 0x9e37);
    for _ in 0..25 {
        let runtime = random.pick(&RUNTIMES);
        let rules: Vec<Rule> = (0..random.below(8)).map(|_| random.rule(runtime)).collect();
        let base = program(runtime, &rules);
        let mut devices: Vec<(DeviceNumber, Access)> = Vec::new();
        for _ in 0..random.below(4) {
            let number =
                DeviceNumber { major: random.pick(&NUMBERS), minor: random.pick(&NUMBERS) };
            devices.retain(|(device, _)| *device != number);
            devices.push((number, random.pick(&[Access::READ, Access::READ_WRITE])));
        }
        assert_allows_only_more(&base, &devices);
    }
}

#[test]
fn the_interpreter_decides_as_the_runtimes_rules_do() {
    for runtime in [Runtime::Crun, Runtime::Runc, Runtime::Systemd] {
        let base = program(runtime, &USUAL);
        for question in questions() {
            let matches = |&(kind, access, major, minor, _): &Rule| {
                kind.is_none_or(|kind| kind == question.kind)
                    && question.access & !access == 0
                    && major.is_none_or(|major| major == question.major)
                    && minor.is_none_or(|minor| minor == question.minor)
            };
            let expected = USUAL.iter().find(|rule| matches(rule)).is_some_and(|rule| rule.4);
            assert_eq!(run(&base, question), Some(expected), "{runtime:?} {question:?}");
        }
    }
}

#[test]
fn devices_are_removed_in_any_order_and_the_last_restores_the_program() {
    let base = program(Runtime::Crun, &USUAL);
    let disk = |minor| DeviceNumber { major: 8, minor };
    let all = (0..16)
        .fold(Prologue::default(), |prologue, minor| prologue.with(disk(minor), Access::READ));
    assert_eq!(all.before(&base).len(), base.len() + 4 + 16 * 7, "one head for all of them");
    let mut whole = all.before(&base);
    for minor in [3, 0, 15, 7, 8, 1, 2, 4, 5, 6, 9, 10, 11, 12, 13, 14] {
        let (prologue, rest) = Prologue::split(&whole);
        assert_eq!(prologue.access(disk(minor)), Access::READ);
        whole = prologue.with(disk(minor), Access::default()).before(rest);
        assert_eq!(Prologue::split(&whole).0.access(disk(minor)), Access::default());
    }
    assert_eq!(whole, base);
}

#[test]
fn new_rights_on_a_device_replace_the_old_ones() {
    let prologue = Prologue::default().with(DISK, Access::READ_WRITE).with(DISK, Access::READ);
    assert_eq!(prologue, Prologue::default().with(DISK, Access::READ));
}

#[test]
fn a_similar_program_has_no_prologue() {
    let whole = Prologue::default().with(DISK, Access::READ).before(&constant(0));
    for index in 0..4 {
        let mut other = whole.clone();
        other[index] = Instruction::new(0xb7, 0, 0, 0, 7);
        assert_eq!(Prologue::split(&other).1, other, "without its head, instruction {index}");
    }
    for index in 4..11 {
        let mut other = whole.clone();
        other[index] = Instruction::new(0xb7, 6, 0, 0, 7);
        let (prologue, rest) = Prologue::split(&other);
        assert!(prologue.is_empty() && rest == &other[4..], "instruction {index}");
    }
    assert!(Prologue::split(&whole[..10]).0.is_empty(), "truncated");
    assert_eq!(Prologue::split(&[]).1, []);
}

/// Whether a program of one instruction and an exit is refused.
fn refused(instruction: Instruction) -> bool {
    Program::read([vec![instruction], constant(1)].concat()).is_err()
}

#[rstest]
#[case::helper_call(Instruction::new(0x85, 0, 0, 0, 7))]
#[case::call_of_a_function(Instruction::new(0x85, 0, 1, 0, 1))]
#[case::map(Instruction::new(0x18, 1, 1, 0, 3))]
#[case::stack(Instruction::new(0x7b, 10, 1, -8, 0))]
#[case::atomic(Instruction::new(0xdb, 10, 1, -8, 0))]
#[case::swap_of_bytes(Instruction::new(0xdc, 1, 0, 0, 32))]
#[case::division_by_a_register(Instruction::new(0x3f, 1, 2, 0, 0))]
#[case::remainder_by_a_register(Instruction::new(0x9c, 1, 2, 0, 0))]
#[case::division_by_zero(Instruction::new(0x37, 1, 0, 0, 0))]
#[case::signed_division(Instruction::new(0x37, 1, 0, 1, 3))]
#[case::move_with_sign(Instruction::new(0xbf, 1, 2, 8, 0))]
#[case::zero_extension_that_the_kernel_added(Instruction::new(0xbc, 1, 1, 0, 1))]
#[case::speculation_barrier(Instruction::new(0xc2, 0, 0, 0, 0))]
#[case::long_word(Instruction::new(0x79, 1, 1, 0, 0))]
#[case::read_that_may_fault(Instruction::new(0x21, 1, 1, 0, 0))]
#[case::exit_of_the_wrong_class(Instruction::new(0x96, 0, 0, 0, 0))]
#[case::indirect_jump(Instruction::new(0x0d, 1, 0, 0, 0))]
#[case::unused_code(Instruction::new(0xe5, 0, 0, 0, 0))]
fn an_instruction_that_cannot_be_reloaded_unchanged_is_refused(#[case] instruction: Instruction) {
    assert!(refused(instruction));
}

#[test]
fn the_error_has_the_index_of_the_unknown_instruction() {
    let long = [Instruction::new(0x18, 6, 0, 0, 1), Instruction::new(0, 0, 0, 0, 2)];
    let call = Instruction::new(0x85, 0, 0, 0, 7);
    let unknown = Program::read([long.to_vec(), vec![call], constant(0)].concat()).unwrap_err();
    assert_eq!((unknown.index, unknown.code), (2, 0x85));
}

#[rstest]
#[case::register_without_a_value(vec![Instruction::new(0xbf, 0, 6, 0, 0), Instruction::new(0x07, 0, 0, 0, 1)])]
#[case::address_as_a_number(vec![Instruction::new(0x07, 1, 0, 0, 4)])]
#[case::read_behind_the_argument(vec![Instruction::new(0x61, 2, 1, 12, 0)])]
#[case::read_before_the_argument(vec![Instruction::new(0x61, 2, 1, -4, 0)])]
#[case::jump_out_of_the_program(vec![Instruction::new(0x05, 0, 0, 99, 0)])]
#[case::jump_before_the_program(vec![Instruction::new(0x05, 0, 0, -9, 0)])]
#[case::endless_loop(vec![Instruction::new(0x05, 0, 0, -1, 0)])]
#[case::register_that_does_not_exist(vec![Instruction::new(0xb7, 13, 0, 0, 0)])]
fn a_program_that_the_verifier_refuses_has_no_answer(#[case] start: Vec<Instruction>) {
    let question = DeviceContext { kind: 1, access: 2, major: 8, minor: 0 };
    assert_eq!(run(&[start, constant(1)].concat(), question), None);
}

#[rstest]
#[case(0x07, 5, 7, 12)]
#[case(0x04, -1, 2, 1)]
#[case(0x17, 5, 7, -2)]
#[case(0x27, 5, 7, 35)]
#[case(0x37, 35, 7, 5)]
#[case(0x97, 37, 7, 2)]
#[case(0x47, 5, 2, 7)]
#[case(0x57, 6, 3, 2)]
#[case(0x67, 1, 33, 1 << 33)]
#[case(0x64, 1, 33, 2)]
#[case(0x77, -1, 63, 1)]
#[case(0x74, -1, 31, 1)]
#[case(0xc7, -8, 1, -4)]
#[case(0xc4, -8, 1, 0xffff_fffc)]
#[case(0x87, 5, 0, -5)]
#[case(0x84, 5, 0, 0xffff_fffb)]
#[case(0xa7, 6, 3, 5)]
#[case(0xb7, 6, -3, -3)]
#[case(0xb4, 6, -3, 0xffff_fffd)]
fn arithmetic_matches_the_kernel(
    #[case] code: u8,
    #[case] old: i32,
    #[case] operand: i32,
    #[case] expected: i64,
) {
    let bytes = expected.to_ne_bytes();
    let half = |range: std::ops::Range<usize>| i32::from_ne_bytes(bytes[range].try_into().unwrap());
    let program = [
        Instruction::new(0xb7, 2, 0, 0, old),
        Instruction::new(code, 2, 0, 0, operand),
        Instruction::new(0x18, 3, 0, 0, half(0..4)),
        Instruction::new(0, 0, 0, 0, half(4..8)),
        Instruction::new(0xb7, 0, 0, 0, 0),
        Instruction::new(0x5d, 2, 3, 1, 0),
        Instruction::new(0xb7, 0, 0, 0, 1),
        Instruction::new(0x95, 0, 0, 0, 0),
    ];
    Program::read(program.to_vec()).unwrap();
    assert_eq!(run(&program, DeviceContext { kind: 1, access: 2, major: 8, minor: 0 }), Some(true));
}

#[rstest]
#[case(0x15, 7, 7, true)]
#[case(0x25, -1, 7, true)]
#[case(0x65, -1, 7, false)]
#[case(0x35, 7, 7, true)]
#[case(0x45, 6, 1, false)]
#[case(0x55, 6, 1, true)]
#[case(0x75, -8, -7, false)]
#[case(0xa5, 6, -1, true)]
#[case(0xb5, 8, 7, false)]
#[case(0xc5, -8, -7, true)]
#[case(0xd5, -7, -7, true)]
#[case(0x16, -1, -1, true)]
#[case(0x66, -1, 0, false)]
fn jumps_match_the_kernel(
    #[case] code: u8,
    #[case] left: i32,
    #[case] right: i32,
    #[case] taken: bool,
) {
    let program = [
        Instruction::new(0xb7, 2, 0, 0, left),
        Instruction::new(0xb7, 0, 0, 0, 1),
        Instruction::new(code, 2, 0, 1, right),
        Instruction::new(0xb7, 0, 0, 0, 0),
        Instruction::new(0x95, 0, 0, 0, 0),
    ];
    Program::read(program.to_vec()).unwrap();
    assert_eq!(
        run(&program, DeviceContext { kind: 1, access: 2, major: 8, minor: 0 }),
        Some(taken)
    );
}
