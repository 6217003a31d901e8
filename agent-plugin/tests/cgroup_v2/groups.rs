//! Fixtures: the cgroups of a pod ([cgroup
//! v2](https://docs.kernel.org/admin-guide/cgroup-v2.html)), processes in them, and programs
//! attached to them.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use agent_plugin::{
    block::DeviceNumber,
    cgroup::{
        Access, Grant,
        bpf::{self, Loaded},
        hierarchy::Hierarchies,
        insn::Instruction,
        v2::Group,
    },
};

use crate::{
    container::needs_root,
    runtimes::{self, ALLOW_MULTI, Rule, Runtime, USUAL, program},
};

pub(crate) const DISK: DeviceNumber = DeviceNumber { major: 7, minor: 0 };
pub(crate) const OTHER: DeviceNumber = DeviceNumber { major: 7, minor: 1 };

/// A pod's cgroup with two containers' cgroups in it.
pub(crate) struct Groups {
    pub(crate) root: PathBuf,
    pub(crate) name: String,
}

impl Groups {
    pub(crate) fn new(test: &str) -> Groups {
        needs_root();
        let root = Hierarchies::mounted().unwrap().unified.expect("cgroup2 is mounted");
        let name = format!("ecr-test-{}-{test}", std::process::id());
        for group in ["", "c1", "sibling"] {
            fs::create_dir(root.join(&name).join(group)).unwrap();
        }
        Groups { root, name }
    }

    /// Creates the cgroups and attaches a program to those of both containers.
    pub(crate) fn with(test: &str, program: &[Instruction]) -> Groups {
        let groups = Groups::new(test);
        groups.attach("c1", program);
        groups.attach("sibling", program);
        groups
    }

    pub(crate) fn path(&self, group: &str) -> PathBuf {
        self.root.join(&self.name).join(group)
    }

    pub(crate) fn open(&self, group: &str) -> File {
        File::open(self.path(group)).unwrap()
    }

    pub(crate) fn attach(&self, group: &str, program: &[Instruction]) {
        runtimes::attach(&self.open(group), &runtimes::load(program), ALLOW_MULTI);
    }

    /// Replaces the first program, as a runtime does for new rules.
    pub(crate) fn replace(&self, program: &[Instruction]) {
        runtimes::replace(&self.open("c1"), &runtimes::load(program), self.ids("c1")[0]);
    }

    pub(crate) fn container(&self) -> Group {
        Group::new(&self.root, &Path::new(&self.name).join("c1"))
    }

    pub(crate) fn ids(&self, group: &str) -> Vec<u32> {
        bpf::query(self.open(group), false).unwrap().ids
    }

    pub(crate) fn instructions(&self, group: &str) -> Vec<Vec<Instruction>> {
        let dump = |id| Loaded::open(id).unwrap().info().unwrap().instructions.unwrap();
        self.ids(group).into_iter().map(dump).collect()
    }

    /// Whether the shell command `how` succeeds for a process in the cgroup. Asserts that a failure
    /// comes from the filter.
    pub(crate) fn can(&self, group: &str, how: &str) -> bool {
        let script = format!("echo $$ >{}/cgroup.procs; {how}", self.path(group).display());
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() || error.contains("Operation not permitted"), "{error}");
        output.status.success()
    }

    pub(crate) fn reads(&self, group: &str) -> bool {
        self.can(group, "exec dd if=/dev/loop0 count=0")
    }

    pub(crate) fn writes(&self, group: &str) -> bool {
        self.can(group, "exec dd of=/dev/loop0 count=0 conv=notrunc if=/dev/null")
    }

    /// Starts a process in the cgroup that opens /dev/null in a loop and ends with an error when an
    /// open is refused.
    pub(crate) fn opens_null(&self) -> Opener {
        let script = format!(
            "echo $$ >{}/cgroup.procs; n=0; trap 'echo $n; exit 0' TERM; echo ready
             while :; do : </dev/null || exit 3; n=$((n+1)); done",
            self.path("c1").display()
        );
        let mut child = Command::new("sh")
            .args(["-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let mut ready = [0; 6];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        Opener(child)
    }
}

pub(crate) struct Opener(Child);

impl Opener {
    /// Stops it, asserts that no open was refused, and returns the number of opens.
    pub(crate) fn stop(mut self) -> u64 {
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
        // Both fail if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for group in ["c1", "sibling", ""] {
            match fs::remove_dir(self.path(group)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    eprintln!("cannot remove {group:?}: {error}")
                }
                _ => {}
            }
        }
    }
}

pub(crate) fn allow(
    group: &Group,
    number: DeviceNumber,
    rights: Access,
) -> agent_plugin::Result<Grant> {
    let mut grant = Grant::default();
    group.allow(number, rights, &mut grant).map(|()| grant)
}

pub(crate) fn usual() -> Vec<Instruction> {
    program(Runtime::Crun, &USUAL)
}

pub(crate) fn with_rule(rule: Rule) -> Vec<Instruction> {
    program(Runtime::Crun, &[&[rule], &USUAL[..]].concat())
}
