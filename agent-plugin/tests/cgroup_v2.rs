//! The device filter in real groups of cgroup v2, with programs as runtimes attach them. Needs root, a mounted cgroup2 hierarchy (v2
//! or hybrid) and the loop driver.

mod container;
mod runtimes;

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use agent_plugin::{
    Error, Unsupported,
    block::DeviceNumber,
    cgroup::{
        Grant, Rights,
        bpf::{self, Loaded},
        hierarchy::Hierarchies,
        program::Instruction,
        v2::Group,
    },
};
use container::needs_root;
use rstest::rstest;
use runtimes::{ALLOW_MULTI, BLOCK, CHAR, Rule, Runtime, USUAL, constant, program};

const DISK: DeviceNumber = DeviceNumber { major: 7, minor: 0 };
const OTHER: DeviceNumber = DeviceNumber { major: 7, minor: 1 };

/// A pod's group with two containers' groups in it.
struct Groups {
    root: PathBuf,
    name: String,
}

impl Groups {
    fn new(test: &str) -> Groups {
        needs_root();
        let root = Hierarchies::mounted().unwrap().unified.expect("cgroup2 is mounted");
        let name = format!("ecr-test-{}-{test}", std::process::id());
        for group in ["", "c1", "sibling"] {
            fs::create_dir(root.join(&name).join(group)).unwrap();
        }
        Groups { root, name }
    }

    /// The same, with a program on both containers' groups.
    fn with(test: &str, program: &[Instruction]) -> Groups {
        let groups = Groups::new(test);
        groups.attach("c1", program);
        groups.attach("sibling", program);
        groups
    }

    fn path(&self, group: &str) -> PathBuf {
        self.root.join(&self.name).join(group)
    }

    fn open(&self, group: &str) -> File {
        File::open(self.path(group)).unwrap()
    }

    fn attach(&self, group: &str, program: &[Instruction]) {
        runtimes::attach(&self.open(group), &runtimes::load(program), ALLOW_MULTI);
    }

    /// What a runtime does for new rules.
    fn replace(&self, program: &[Instruction]) {
        runtimes::replace(&self.open("c1"), &runtimes::load(program), self.ids("c1")[0]);
    }

    fn container(&self) -> Group {
        Group::new(&self.root, &Path::new(&self.name).join("c1"))
    }

    fn ids(&self, group: &str) -> Vec<u32> {
        bpf::query(self.open(group), false).unwrap().ids
    }

    fn instructions(&self, group: &str) -> Vec<Vec<Instruction>> {
        let dump = |id| Loaded::open(id).unwrap().info().unwrap().instructions.unwrap();
        self.ids(group).into_iter().map(dump).collect()
    }

    /// Whether a process in the group can do that with the disk; it must be refused by the filter otherwise.
    fn can(&self, group: &str, how: &str) -> bool {
        let script = format!("echo $$ >{}/cgroup.procs; {how}", self.path(group).display());
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() || error.contains("Operation not permitted"), "{error}");
        output.status.success()
    }

    fn reads(&self, group: &str) -> bool {
        self.can(group, "exec dd if=/dev/loop0 count=0")
    }

    fn writes(&self, group: &str) -> bool {
        self.can(group, "exec dd of=/dev/loop0 count=0 conv=notrunc if=/dev/null")
    }

    /// A process in the group that opens /dev/null all the time, and ends with an error when it is refused.
    fn opens_null(&self) -> Opener {
        let script = format!(
            "echo $$ >{}/cgroup.procs; n=0; trap 'echo $n; exit 0' TERM; echo ready
             while :; do : </dev/null || exit 3; n=$((n+1)); done",
            self.path("c1").display()
        );
        let mut child =
            Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().expect("a shell");
        let mut ready = [0; 6];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        Opener(child)
    }
}

struct Opener(Child);

impl Opener {
    /// How often it could; it never could not.
    fn stop(mut self) -> u64 {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        let status = self.0.wait().unwrap();
        assert!(status.success(), "/dev/null was refused: {status}");
        let mut count = String::new();
        io::Read::read_to_string(self.0.stdout.as_mut().unwrap(), &mut count).unwrap();
        count.trim().parse().unwrap()
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        // Both fail where it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for group in ["c1", "sibling", ""] {
            match fs::remove_dir(self.path(group)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    eprintln!("{group:?} is left: {error}")
                }
                _ => {}
            }
        }
    }
}

fn allow(group: &Group, number: DeviceNumber, rights: Rights) -> Result<Grant, Error> {
    let mut grant = Grant::default();
    group.allow(number, rights, &mut grant).map(|()| grant)
}

fn usual() -> Vec<Instruction> {
    program(Runtime::Crun, &USUAL)
}

fn with_rule(rule: Rule) -> Vec<Instruction> {
    program(Runtime::Crun, &[&[rule], &USUAL[..]].concat())
}

#[rstest]
fn one_container_gets_the_device_and_loses_it_again(
    #[values(Runtime::Crun, Runtime::Runc, Runtime::OldRunc, Runtime::Systemd)] runtime: Runtime,
) {
    let groups = Groups::with(&format!("one-{runtime:?}"), &program(runtime, &USUAL));
    let before = groups.instructions("c1");
    let group = groups.container();
    group.check().unwrap();
    assert!(!group.allows(DISK, Rights::READ).unwrap() && !groups.reads("c1") && !groups.writes("c1"));

    let grant = allow(&group, DISK, Rights::READ_WRITE).unwrap();
    assert!(!grant.allowed_before && grant.added.len() == 1);
    assert!(group.allows(DISK, Rights::READ_WRITE).unwrap());
    assert!(
        !group.allows(OTHER, Rights::READ).unwrap() && !group.allows(DISK, Rights::ALL).unwrap()
            || runtime == Runtime::OldRunc
    );
    assert!(groups.reads("c1") && groups.writes("c1"));
    assert!(!groups.reads("sibling") && !groups.writes("sibling"));
    assert!(!groups.can("c1", "exec dd if=/dev/loop1 count=0"), "another disk");
    assert!(groups.can("c1", "exec dd if=/dev/zero of=/dev/null count=1"), "what it could before");
    assert_eq!(groups.instructions("c1").len(), 1);

    assert_eq!(group.revoke(DISK).unwrap(), Rights::READ_WRITE);
    assert!(!groups.reads("c1") && !group.allows(DISK, Rights::READ).unwrap());
    assert_eq!(groups.instructions("c1"), before, "the runtime's own program is back");
    assert!(group.revoke(DISK).unwrap().is_empty(), "a second time there is nothing to revoke");
}

#[test]
fn a_repetition_changes_nothing() {
    let groups = Groups::with("again", &runtimes::crun_1_8_1());
    allow(&groups.container(), DISK, Rights::READ_WRITE).unwrap();
    let ids = groups.ids("c1");
    let again = allow(&groups.container(), DISK, Rights::READ_WRITE).unwrap();
    assert!(again.added.is_empty() && !again.allowed_before, "our own is no right from elsewhere");
    assert_eq!(groups.ids("c1"), ids);
    again.undo().unwrap();
    assert!(groups.reads("c1"));
    groups.container().revoke(DISK).unwrap();
    assert_eq!(groups.instructions("c1"), [runtimes::crun_1_8_1()]);
}

#[test]
fn a_read_only_right_is_read_only_and_takes_the_place_of_a_wider_one() {
    let groups = Groups::with("read", &usual());
    let group = groups.container();
    allow(&group, DISK, Rights::READ).unwrap();
    assert!(groups.reads("c1") && !groups.writes("c1"));
    assert!(!groups.can("c1", "exec dd if=/dev/loop0 of=/dev/loop0 count=0 conv=notrunc"));
    let first = allow(&group, DISK, Rights::READ_WRITE).unwrap();
    assert!(groups.writes("c1"));
    first.undo().unwrap();
    assert!(groups.reads("c1") && !groups.writes("c1"), "the undo goes back to what was there");
    allow(&group, DISK, Rights::READ_WRITE).unwrap();
    allow(&group, DISK, Rights::READ).unwrap();
    assert!(
        groups.reads("c1") && !groups.writes("c1"),
        "what an earlier disk of this number left is no excess"
    );
}

#[test]
fn hundreds_of_flips_leave_one_program_and_refuse_nothing_meanwhile() {
    let groups = Groups::with("flips", &usual());
    let before = groups.instructions("c1");
    let group = groups.container();
    let opener = groups.opens_null();
    for flip in 0..300 {
        let number = if flip % 2 == 0 { DISK } else { OTHER };
        allow(&group, number, Rights::READ_WRITE).unwrap();
        assert_eq!(groups.ids("c1").len(), 1);
        group.revoke(number).unwrap();
        assert_eq!(groups.ids("c1").len(), 1);
    }
    assert!(opener.stop() > 300, "the loop ran beside them");
    assert_eq!(groups.instructions("c1"), before);
}

#[test]
fn volumes_stack_in_one_prologue() {
    let groups = Groups::with("stack", &usual());
    let group = groups.container();
    let length = || groups.instructions("c1")[0].len();
    let alone = length();
    for minor in 0..32 {
        allow(&group, DeviceNumber { major: 8, minor }, Rights::READ_WRITE).unwrap();
    }
    assert_eq!(length(), alone + 4 + 32 * 7);
    for minor in (0..32).rev().step_by(2).chain((0..32).step_by(2)) {
        let number = DeviceNumber { major: 8, minor };
        assert_eq!(group.revoke(number).unwrap(), Rights::READ_WRITE);
        assert!(!group.allows(number, Rights::READ).unwrap());
    }
    assert_eq!(length(), alone);
}

#[test]
fn without_a_program_none_is_attached() {
    let groups = Groups::new("none");
    let group = groups.container();
    assert!(group.programs().unwrap().is_empty());
    group.check().unwrap();
    let grant = allow(&group, DISK, Rights::READ_WRITE).unwrap();
    assert!(grant.allowed_before && grant.added.is_empty() && groups.reads("c1"));
    assert!(group.revoke(DISK).unwrap().is_empty());
    assert!(group.programs().unwrap().is_empty());
}

#[test]
fn what_the_program_itself_grants_stays_its_own() {
    let groups = Groups::with("own", &with_rule((BLOCK, 2, Some(7), None, true)));
    let group = groups.container();
    let ids = groups.ids("c1");
    let grant = allow(&group, DISK, Rights::READ).unwrap();
    assert!(grant.allowed_before && grant.added.is_empty());
    assert_eq!(groups.ids("c1"), ids);
    let more = allow(&group, DISK, Rights::READ_WRITE).unwrap();
    assert!(!more.allowed_before && groups.writes("c1"));
    group.revoke(DISK).unwrap();
    assert!(groups.reads("c1") && !groups.writes("c1"));
}

#[test]
fn every_program_of_the_group_is_handled() {
    let groups = Groups::with("two", &usual());
    groups.attach("c1", &program(Runtime::Systemd, &USUAL));
    groups.attach("c1", &constant(1));
    let (before, ids) = (groups.instructions("c1"), groups.ids("c1"));
    let grant = allow(&groups.container(), DISK, Rights::READ_WRITE).unwrap();
    assert!(groups.reads("c1") && !grant.allowed_before);
    assert_eq!((groups.ids("c1").len(), groups.ids("c1")[2]), (3, ids[2]), "one allows it anyway");
    grant.undo().unwrap();
    assert_eq!(groups.instructions("c1"), before);
}

#[test]
fn a_program_above_is_never_changed() {
    let groups = Groups::with("above", &usual());
    groups
        .attach("", &program(Runtime::Runc, &[(BLOCK, 7, Some(8), None, true), (CHAR, 7, None, None, true)]));
    let (pod, own) = (groups.ids(""), groups.ids("c1"));
    let group = groups.container();
    assert_eq!(group.programs().unwrap().len(), 2);
    group.check().expect("it allows SCSI disks");
    let error = allow(&group, DISK, Rights::READ).unwrap_err();
    let expected = Unsupported::BpfShared { program: pod[0], cgroup: format!("/{}", groups.name) };
    assert!(matches!(error, Error::Unsupported(found) if found == expected));
    assert_eq!((groups.ids(""), groups.ids("c1")), (pod.clone(), own), "nothing was changed");

    groups.attach("", &constant(0));
    let error = group.check().unwrap_err().message();
    assert!(error.contains(&format!("of cgroup /{} refuses disks", groups.name)), "{error}");
    assert_eq!(groups.ids("")[0], pod[0]);
}

#[test]
fn a_shared_group_is_only_looked_at() {
    let groups = Groups::with("shared", &with_rule((BLOCK, 6, Some(8), None, true)));
    let ids = groups.ids("c1");
    let group = Group::shared(&groups.root, &Path::new(&groups.name).join("c1"));
    let disk = DeviceNumber { major: 8, minor: 0 };
    assert!(allow(&group, disk, Rights::READ_WRITE).unwrap().added.is_empty());
    assert!(matches!(
        allow(&group, DISK, Rights::READ).unwrap_err(),
        Error::Unsupported(Unsupported::BpfShared { .. })
    ));
    assert_eq!(groups.ids("c1"), ids);
}

type Prepare = fn(&Groups) -> Option<OwnedFd>;

#[rstest]
#[case::maps("maps", "uses maps", |groups: &Groups| {
    let map = runtimes::map();
    groups.attach("c1", &runtimes::with_map(&map));
    Some(map)
})]
#[case::helper_call("call", "instruction 0 (code 0x85)", |groups: &Groups| {
    groups.attach("c1", &runtimes::with_call());
    None
})]
#[case::link("link", "attached by a bpf_link", |groups: &Groups| {
    Some(runtimes::link(&groups.open("c1"), &runtimes::load(&usual())))
})]
#[case::exclusive("exclusive", "without BPF_F_ALLOW_MULTI", |groups: &Groups| {
    runtimes::attach(&groups.open("c1"), &runtimes::load(&usual()), 0);
    None
})]
#[case::one_of_two("second", "uses maps", |groups: &Groups| {
    groups.attach("c1", &usual());
    let map = runtimes::map();
    groups.attach("c1", &runtimes::with_map(&map));
    Some(map)
})]
fn what_is_not_safe_to_change_is_refused_with_its_reason_and_left(
    #[case] test: &str,
    #[case] reason: &str,
    #[case] prepare: Prepare,
) {
    let groups = Groups::new(test);
    let _held = prepare(&groups);
    let ids = groups.ids("c1");
    let group = groups.container();
    for refused in [group.check(), allow(&group, DISK, Rights::READ).map(drop)] {
        let error = refused.unwrap_err();
        assert!(matches!(error, Error::Unsupported(_)) && error.message().contains(reason), "{error}");
    }
    assert!(!group.allows(DISK, Rights::READ).unwrap());
    assert!(group.revoke(DISK).unwrap().is_empty());
    assert_eq!(groups.ids("c1"), ids);
}

#[test]
fn a_reload_takes_the_right_away_and_the_next_attach_restores_it() {
    let groups = Groups::with("reload", &usual());
    let group = groups.container();
    allow(&group, DISK, Rights::READ_WRITE).unwrap();
    groups.replace(&usual());
    assert!(!group.allows(DISK, Rights::READ_WRITE).unwrap() && !groups.reads("c1"));
    assert!(!allow(&group, DISK, Rights::READ_WRITE).unwrap().added.is_empty());
    assert!(groups.reads("c1"));
    assert_eq!(groups.ids("c1").len(), 1);
}

#[test]
fn two_volumes_at_once_lose_neither() {
    let groups = Groups::with("both", &usual());
    std::thread::scope(|scope| {
        for minor in 0..8 {
            let group = groups.container();
            scope.spawn(move || allow(&group, DeviceNumber { major: 8, minor }, Rights::READ).unwrap());
        }
    });
    let group = groups.container();
    assert!((0..8).all(|minor| group.allows(DeviceNumber { major: 8, minor }, Rights::READ).unwrap()));
}

#[test]
fn a_program_that_is_attached_above_as_well_counts_twice() {
    let groups = Groups::new("twice");
    let loaded = runtimes::load(&usual());
    runtimes::attach(&groups.open(""), &loaded, ALLOW_MULTI);
    runtimes::attach(&groups.open("c1"), &loaded, ALLOW_MULTI);
    let ids = groups.ids("c1");
    let error = allow(&groups.container(), DISK, Rights::READ).unwrap_err();
    assert!(matches!(error, Error::Unsupported(Unsupported::BpfShared { .. })), "{error}");
    assert_eq!(groups.ids("c1"), ids);
}

/// The body of the next test, for a process without rights.
#[test]
fn without_rights() {
    let Some(name) = std::env::var_os("ECR_TEST_GROUP") else { return };
    let root = Hierarchies::mounted().unwrap().unified.unwrap();
    let group = Group::new(&root, Path::new(&name));
    for refused in [group.check(), allow(&group, DISK, Rights::READ).map(drop)] {
        let error = refused.unwrap_err();
        assert!(matches!(error, Error::Unsupported(Unsupported::BpfDenied { .. })), "{error}");
    }
}

#[test]
fn without_the_right_to_read_programs_that_is_the_reason() {
    let groups = Groups::with("rights", &usual());
    let ids = groups.ids("c1");
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-sys_admin,-bpf,-perfmon,-net_admin"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "without_rights"])
        .env("ECR_TEST_GROUP", format!("{}/c1", groups.name))
        .output()
        .expect("setpriv of util-linux");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("1 passed"), "{text}{output:?}");
    assert_eq!(groups.ids("c1"), ids);
}

#[test]
fn a_group_that_is_gone_needs_no_undo_and_no_revoke() {
    let groups = Groups::with("gone", &usual());
    let group = groups.container();
    let grant = allow(&group, DISK, Rights::READ).unwrap();
    fs::remove_dir(groups.path("c1")).unwrap();
    grant.undo().unwrap();
    assert!(group.revoke(DISK).unwrap().is_empty());
    assert!(allow(&group, DISK, Rights::READ).is_err());
}

/// The kernel is asked through real nodes what the model was asked.
#[rstest]
fn the_model_and_the_kernel_agree(
    #[values(Runtime::Crun, Runtime::Runc, Runtime::OldRunc, Runtime::Systemd)] runtime: Runtime,
) {
    use agent_plugin::cgroup::model::{Question, run};
    let rules =
        [(BLOCK, 2, Some(7), Some(0), true), (CHAR, 6, Some(1), None, true), (BLOCK, 1, None, None, true)];
    let groups = Groups::with(&format!("model-{runtime:?}"), &program(runtime, &rules));
    allow(&groups.container(), OTHER, Rights::READ).unwrap();
    let program = groups.instructions("c1").remove(0);
    let node = std::env::temp_dir().join(format!("ecr-node-{}-{runtime:?}", std::process::id()));
    let node = node.display();
    for (kind, letter, major, minor) in
        [(1, 'b', 7, 0), (1, 'b', 7, 1), (1, 'b', 7, 2), (2, 'c', 1, 3), (2, 'c', 1, 5)]
    {
        for (access, how) in [
            (1, format!("mknod {node} {letter} {major} {minor} && rm {node}")),
            (2, format!("dd count=0 if=/dev/{}", name(letter, minor))),
            (4, format!("dd count=0 conv=notrunc if=/proc/version of=/dev/{}", name(letter, minor))),
            (6, format!(": <>/dev/{}", name(letter, minor))),
        ] {
            let answer = run(&program, Question { kind, access, major, minor }).unwrap();
            assert_eq!(groups.can("c1", &how), answer, "{runtime:?}: {how}");
        }
    }
}

fn name(letter: char, minor: u32) -> String {
    match (letter, minor) {
        ('b', minor) => format!("loop{minor}"),
        (_, 3) => "null".to_owned(),
        _ => "zero".to_owned(),
    }
}
