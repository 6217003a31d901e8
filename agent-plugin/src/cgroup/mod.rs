//! The device filter of a container: what stands between it and a device whose node it can see.
//!
//! [`v1`]: the allow-list of the devices controller. [`v2`]: BPF programs; without one every node can be opened, and then nothing
//! is attached here, for a first program would take rights away.

pub mod v1;
pub mod v2;

use std::{
    fmt,
    path::{Component, Path, PathBuf},
};

use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs};

use crate::{
    agent::DeviceRule,
    block::DeviceNumber,
    error::{Error, Result, Unsupported},
    namespace::Target,
};

/// A set of rights on a device: read, write, mknod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Rights(u8);

impl Rights {
    /// `r`
    pub const READ: Rights = Rights(1);
    /// `rw`
    pub const READ_WRITE: Rights = Rights(3);
    /// `rwm`
    pub const ALL: Rights = Rights(7);

    /// From a subset of `rwm`; other letters are no right.
    pub fn parse(letters: &str) -> Rights {
        letters.chars().fold(Rights::default(), |rights, letter| match letter {
            'r' => rights.with(Rights(1)),
            'w' => rights.with(Rights(2)),
            'm' => rights.with(Rights(4)),
            _ => rights,
        })
    }

    /// Both together.
    pub fn with(self, other: Rights) -> Rights {
        Rights(self.0 | other.0)
    }

    /// These without those.
    pub fn without(self, other: Rights) -> Rights {
        Rights(self.0 & !other.0)
    }

    /// Whether all of `other` is in these.
    pub fn cover(self, other: Rights) -> bool {
        other.without(self).is_empty()
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (bit, letter) in [(1, "r"), (2, "w"), (4, "m")] {
            if self.0 & bit != 0 {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

/// What a container's own specification grants on a block device, by its rules in order.
pub fn granted_by(rules: &[DeviceRule], number: DeviceNumber) -> Rights {
    rules.iter().fold(Rights::default(), |rights, rule| {
        let matches = matches!(rule.kind, 'a' | 'b')
            && rule.major.is_none_or(|major| major == number.major)
            && rule.minor.is_none_or(|minor| minor == number.minor);
        // The rule for everything may leave the access out.
        let access = if rule.access.is_empty() { Rights::ALL } else { Rights::parse(&rule.access) };
        match (matches, rule.allow) {
            (false, _) => rights,
            (true, true) => rights.with(access),
            (true, false) => rights.without(access),
        }
    })
}

/// How devices are filtered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Not at all: cgroup v2 without a program.
    None,
    /// The allow-list of cgroup v1.
    V1,
    /// One or more BPF programs.
    Bpf,
}

/// The device filter of one container.
#[derive(Debug)]
pub struct Filter<'a> {
    kind: Kind,
    rules: &'a [DeviceRule],
}

#[derive(Debug)]
enum Kind {
    V1(v1::Groups),
    V2 { cgroup: PathBuf, programs: v2::Programs },
}

/// What [`Filter::allow`] did.
#[derive(Debug, Default)]
pub struct Grant {
    /// The container had this right from elsewhere: a wildcard, or a rule of its specification.
    pub allowed_before: bool,
    /// What was added, to the pod's group as well. That one is taken back by [`Grant::undo`] alone, right away, when nobody else
    /// can have built on it; later it might be another container's, too.
    pub added: Vec<v1::Added>,
}

impl Grant {
    /// Takes back what was added, and goes on after an error.
    ///
    /// # Errors
    /// The kernel refuses. A group that is gone is fine.
    pub fn undo(&self) -> Result<()> {
        self.added.iter().rev().map(v1::Added::undo).fold(Ok(()), Result::and)
    }
}

impl<'a> Filter<'a> {
    /// The filter in front of `target`.
    ///
    /// # Errors
    /// No hierarchy is mounted, or it cannot be read.
    pub fn of(target: &'a Target) -> Result<Filter<'a>> {
        const V1: &str = "/sys/fs/cgroup/devices";
        const V2: &str = "/sys/fs/cgroup";

        let cgroup = relative(&target.container.cgroup)?;
        let mounted = |path: &str, kind| statfs(path).is_ok_and(|found| found.filesystem_type() == kind);
        // Hybrid hosts have the devices controller in v1, whatever is mounted elsewhere.
        let kind = if mounted(V1, CGROUP_SUPER_MAGIC) {
            Kind::V1(v1::Groups::new(Path::new(V1), &cgroup))
        } else if mounted(V2, CGROUP2_SUPER_MAGIC) {
            let programs = v2::Programs::of(&Path::new(V2).join(&cgroup))?;
            Kind::V2 { cgroup, programs }
        } else {
            return Err(Unsupported::NoCgroup.into());
        };
        Ok(Filter { kind, rules: &target.container.device_rules })
    }

    /// What kind of filter it is.
    pub fn mode(&self) -> Mode {
        match &self.kind {
            Kind::V1(_) => Mode::V1,
            Kind::V2 { programs, .. } if programs.count == 0 => Mode::None,
            Kind::V2 { .. } => Mode::Bpf,
        }
    }

    /// Ids of the programs that decide, those of ancestors included.
    pub fn programs(&self) -> &[u32] {
        match &self.kind {
            Kind::V1(_) => &[],
            Kind::V2 { programs, .. } => &programs.ids,
        }
    }

    /// Whether this version can change the filter. Changes nothing.
    ///
    /// # Errors
    /// Says why not.
    pub fn check(&self) -> Result<()> {
        match &self.kind {
            Kind::V1(groups) => groups.check(),
            Kind::V2 { programs, .. } if programs.count == 0 => Ok(()),
            Kind::V2 { cgroup, programs } => Err(Unsupported::BpfFilter {
                cgroup: format!("/{}", cgroup.display()),
                programs: programs.count,
            }
            .into()),
        }
    }

    /// Lets the container open a block device with exactly these rights. What it did is noted in `grant` before it is done.
    ///
    /// # Errors
    /// The filter cannot be changed; a part may be done, and is taken back by [`Grant::undo`].
    pub fn allow(&self, number: DeviceNumber, rights: Rights, grant: &mut Grant) -> Result<()> {
        self.check()?;
        match &self.kind {
            Kind::V1(groups) => groups.allow(number, rights, granted_by(self.rules, number), grant),
            Kind::V2 { .. } => Ok(()),
        }
    }

    /// Whether the container can open a block device with these rights.
    ///
    /// # Errors
    /// The filter cannot be read.
    pub fn allows(&self, number: DeviceNumber, rights: Rights) -> Result<bool> {
        match &self.kind {
            Kind::V1(groups) => groups.allows(number, rights),
            Kind::V2 { programs, .. } => Ok(programs.count == 0),
        }
    }

    /// Takes away what [`Filter::allow`] gave, and never what the specification grants. Says what that was.
    ///
    /// # Errors
    /// The kernel refuses. A group that is gone is fine.
    pub fn revoke(&self, number: DeviceNumber) -> Result<Rights> {
        match &self.kind {
            Kind::V1(groups) => groups.revoke(number, granted_by(self.rules, number)),
            Kind::V2 { .. } => Ok(Rights::default()),
        }
    }
}

/// The agent's "/pod/c1", safe to append to the hierarchy's mount point.
fn relative(cgroup: &Path) -> Result<PathBuf> {
    let parts = cgroup.components().filter(|part| *part != Component::RootDir);
    if parts.clone().all(|part| matches!(part, Component::Normal(_))) {
        Ok(parts.collect())
    } else {
        Err(Error::Malformed {
            subject: "the container's cgroup".into(),
            found: cgroup.display().to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const DISK: DeviceNumber = DeviceNumber { major: 8, minor: 16 };

    fn rule(allow: bool, kind: char, major: Option<u32>, minor: Option<u32>, access: &str) -> DeviceRule {
        DeviceRule { allow, kind, major, minor, access: access.to_owned() }
    }

    #[rstest]
    #[case::none(&[], "")]
    #[case::this_disk(&[rule(true, 'b', Some(8), Some(16), "r")], "r")]
    #[case::every_disk_of_the_driver(&[rule(true, 'b', Some(8), None, "rwm")], "rwm")]
    #[case::another_disk(&[rule(true, 'b', Some(8), Some(0), "rw")], "")]
    #[case::a_character_device(&[rule(true, 'c', Some(8), Some(16), "rw")], "")]
    #[case::later_rules_win(&[rule(true, 'a', None, None, ""), rule(false, 'b', Some(8), Some(16), "w")], "rm")]
    #[case::deny_all_first(&[rule(false, 'a', None, None, "rwm"), rule(true, 'b', None, None, "m")], "m")]
    fn the_specification_grants(#[case] rules: &[DeviceRule], #[case] expected: &str) {
        assert_eq!(granted_by(rules, DISK).to_string(), expected);
    }

    #[test]
    fn rights_are_sets() {
        assert!(Rights::parse("rwm").cover(Rights::READ_WRITE));
        assert!(!Rights::READ.cover(Rights::READ_WRITE));
        assert_eq!(Rights::parse("mwr").without(Rights::READ).to_string(), "wm");
        assert!(Rights::parse("x").is_empty());
    }

    #[rstest]
    #[case("/pod/c1", Some("pod/c1"))]
    #[case("pod/c1", Some("pod/c1"))]
    #[case("/", Some(""))]
    #[case("/pod/../..", None)]
    fn a_cgroup_stays_below_the_hierarchy(#[case] cgroup: &str, #[case] expected: Option<&str>) {
        assert_eq!(relative(Path::new(cgroup)).ok(), expected.map(PathBuf::from));
    }
}
