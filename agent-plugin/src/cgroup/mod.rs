//! The device filter of a container: what stands between it and a device whose node it can see.
//!
//! [`v1`]: the allow-list of the devices controller. [`v2`]: BPF programs; without one every node can be opened, and then nothing
//! is attached here, for a first program would take rights away.
//!
//! | file | knows |
//! |---|---|
//! | `hierarchy` | where v1 and v2 are mounted |
//! | `v1` | `devices.list`, `devices.allow`, `devices.deny` |
//! | `v2` | which programs decide, and how one is exchanged |
//! | `member` | one attached program, taken apart |
//! | `prologue` | what stands in front of a program and allows single devices |
//! | `program`, `model` | the instructions that are understood, and what they answer |
//! | `bpf` | the system call |

pub mod bpf;
pub mod hierarchy;
mod member;
pub mod model;
pub mod program;
pub mod prologue;
mod rights;
pub mod v1;
pub mod v2;

use std::path::{Component, Path, PathBuf};

use crate::{
    agent::DeviceRule,
    block::DeviceNumber,
    error::{Error, Result, Unsupported},
    namespace::Target,
};
use hierarchy::{Hierarchies, unified_group};

pub use rights::{Rights, granted_by};

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

/// The device filter of one container. On a hybrid system both parts decide.
#[derive(Debug)]
pub struct Filter<'a> {
    v1: Option<v1::Groups>,
    v2: Option<v2::Group>,
    programs: Vec<u32>,
    rules: &'a [DeviceRule],
}

/// What [`Filter::allow`] did.
#[derive(Debug, Default)]
pub struct Grant {
    /// The container had this right from elsewhere: a wildcard, a rule of its specification, or its
    /// program.
    pub allowed_before: bool,
    /// What was added, to the pod's group of v1 as well. That one is taken back by [`Grant::undo`]
    /// alone, right away, when nobody else can have built on it; later it might be another
    /// container's, too.
    pub added: Vec<Added>,
}

/// A right that was added.
#[derive(Debug, PartialEq, Eq)]
pub enum Added {
    /// To a list.
    V1(v1::Added),
    /// To a program.
    V2(v2::Given),
}

impl Grant {
    /// Takes back what was added, and goes on after an error.
    ///
    /// # Errors
    /// The kernel refuses. A group that is gone is fine.
    pub fn undo(&self) -> Result<()> {
        let undo = |added: &Added| match added {
            Added::V1(added) => added.undo(),
            Added::V2(given) => given.undo(),
        };
        self.added.iter().rev().map(undo).fold(Ok(()), Result::and)
    }
}

impl<'a> Filter<'a> {
    /// The filter in front of `target`.
    ///
    /// # Errors
    /// No hierarchy is mounted, or it cannot be read.
    pub fn of(target: &'a Target) -> Result<Filter<'a>> {
        let cgroup = relative(&target.container.cgroup)?;
        let (v1, v2) = match Hierarchies::mounted()? {
            Hierarchies { devices: None, unified: None } => {
                return Err(Unsupported::NoCgroup.into());
            }
            Hierarchies { devices: None, unified: Some(unified) } => {
                (None, Some(v2::Group::new(&unified, &cgroup)))
            }
            Hierarchies { devices: Some(devices), unified: None } => {
                (Some(v1::Groups::new(&devices, &cgroup)), None)
            }
            // The agent's path is that of the devices controller. Whoever else is in the other
            // group is not known.
            Hierarchies { devices: Some(devices), unified: Some(unified) } => {
                let text = target.proc("cgroup")?;
                let other = unified_group(&text).map(relative).transpose()?;
                let other = other.map(|path| v2::Group::shared(&unified, &path));
                (Some(v1::Groups::new(&devices, &cgroup)), other)
            }
        };
        let programs = v2.as_ref().map(v2::Group::programs).transpose()?.unwrap_or_default();
        Ok(Filter { v1, v2, programs, rules: &target.container.device_rules })
    }

    /// What kind of filter it is.
    pub fn mode(&self) -> Mode {
        match self.v1 {
            Some(_) => Mode::V1,
            None if self.programs.is_empty() => Mode::None,
            None => Mode::Bpf,
        }
    }

    /// Ids of the programs that decide, those of ancestors included.
    pub fn programs(&self) -> &[u32] {
        &self.programs
    }

    /// Whether this version can change the filter. Changes nothing.
    ///
    /// # Errors
    /// Says why not.
    pub fn check(&self) -> Result<()> {
        self.v1.as_ref().map_or(Ok(()), v1::Groups::check)?;
        self.v2.as_ref().map_or(Ok(()), v2::Group::check)
    }

    /// Lets the container open a block device with exactly these rights. What it did is noted in
    /// `grant` before it is done.
    ///
    /// # Errors
    /// The filter cannot be changed; a part may be done, and is taken back by [`Grant::undo`].
    pub fn allow(&self, number: DeviceNumber, rights: Rights, grant: &mut Grant) -> Result<()> {
        if let Some(group) = &self.v2 {
            group.allow(number, rights, grant)?;
        }
        if let Some(groups) = &self.v1 {
            groups.allow(number, rights, granted_by(self.rules, number), grant)?;
        }
        Ok(())
    }

    /// Whether the container can open a block device with these rights.
    ///
    /// # Errors
    /// The filter cannot be read.
    pub fn allows(&self, number: DeviceNumber, rights: Rights) -> Result<bool> {
        let by_list = self.v1.as_ref().map_or(Ok(true), |groups| groups.allows(number, rights))?;
        let by_program = self.v2.as_ref().map_or(Ok(true), |group| group.allows(number, rights))?;
        Ok(by_list && by_program)
    }

    /// Takes away what [`Filter::allow`] gave, and never what the specification grants. Says what
    /// that was.
    ///
    /// # Errors
    /// The kernel refuses. A group that is gone is fine.
    pub fn revoke(&self, number: DeviceNumber) -> Result<Rights> {
        let of_list = |groups: &v1::Groups| groups.revoke(number, granted_by(self.rules, number));
        let list = self.v1.as_ref().map_or(Ok(Rights::default()), of_list)?;
        let program =
            self.v2.as_ref().map_or(Ok(Rights::default()), |group| group.revoke(number))?;
        Ok(list.with(program))
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

    #[rstest]
    #[case("/pod/c1", Some("pod/c1"))]
    #[case("pod/c1", Some("pod/c1"))]
    #[case("/", Some(""))]
    #[case("/pod/../..", None)]
    fn a_cgroup_stays_below_the_hierarchy(#[case] cgroup: &str, #[case] expected: Option<&str>) {
        assert_eq!(relative(Path::new(cgroup)).ok(), expected.map(PathBuf::from));
    }
}
