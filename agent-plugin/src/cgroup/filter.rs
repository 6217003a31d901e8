//! The device filter of one container.

use std::path::{Component, Path, PathBuf};

use super::{
    access::{Access, granted_by},
    grant::Grant,
    hierarchy::Hierarchies,
    v1, v2,
};
use crate::{
    agent::DeviceRule,
    block::DeviceNumber,
    error::{Error, Result, Unsupported},
    namespace::Target,
    procfs::cgroup::unified_group,
    text::displayed,
};

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

impl<'a> Filter<'a> {
    /// The filter of `target`.
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
            // The agent's path is that of the devices controller. Which other processes are in the
            // v2 group is not known.
            Hierarchies { devices: Some(devices), unified: Some(unified) } => {
                let other = unified_group(&target.proc("cgroup")?).map(relative).transpose()?;
                let other = other.map(|path| v2::Group::shared(&unified, &path));
                (Some(v1::Groups::new(&devices, &cgroup)), other)
            }
        };
        Filter::new(v1, v2, &target.container.device_rules)
    }

    /// The filter of the container in `cgroup`, whether or not its first process has ended: others
    /// may survive it there. `None`: the group is gone, and so is every process of it.
    ///
    /// On a hybrid system this is the list alone. Which programs decide as well depends on the
    /// process, and they are never changed.
    ///
    /// # Errors
    /// No hierarchy is mounted, or it cannot be read.
    pub fn of_group(cgroup: &Path, rules: &'a [DeviceRule]) -> Result<Option<Filter<'a>>> {
        let path = relative(cgroup)?;
        let found = match Hierarchies::mounted()? {
            Hierarchies { devices: Some(devices), .. } => {
                let groups = v1::Groups::new(&devices, &path);
                (groups.exist()).then(|| Filter::new(Some(groups), None, rules))
            }
            Hierarchies { devices: None, unified: Some(unified) } => {
                let group = v2::Group::new(&unified, &path);
                let filter = Filter::new(None, Some(group.clone()), rules).map(Some);
                return group.unless_gone(None, || filter);
            }
            Hierarchies { devices: None, unified: None } => {
                return Err(Unsupported::NoCgroup.into());
            }
        };
        found.transpose()
    }

    fn new(
        v1: Option<v1::Groups>,
        v2: Option<v2::Group>,
        rules: &'a [DeviceRule],
    ) -> Result<Filter<'a>> {
        let programs = v2.as_ref().map(v2::Group::programs).transpose()?.unwrap_or_default();
        Ok(Filter { v1, v2, programs, rules })
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

    /// Checks whether this version can change the filter. Changes nothing.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<()> {
        self.v1.as_ref().map_or(Ok(()), v1::Groups::check)?;
        self.v2.as_ref().map_or(Ok(()), v2::Group::check)
    }

    /// Lets the container open a block device with exactly this access. Each step is recorded in
    /// `grant` before it is done.
    ///
    /// # Errors
    /// The filter cannot be changed. A part may be done, which [`Grant::roll_back`] removes.
    pub fn allow(&self, number: DeviceNumber, access: Access, grant: &mut Grant) -> Result<()> {
        if let Some(group) = &self.v2 {
            group.allow(number, access, grant)?;
        }
        if let Some(groups) = &self.v1 {
            groups.allow(number, access, granted_by(self.rules, number), grant)?;
        }
        Ok(())
    }

    /// Whether the container can open a block device with this access.
    ///
    /// # Errors
    /// The filter cannot be read.
    pub fn allows(&self, number: DeviceNumber, access: Access) -> Result<bool> {
        let by_list = self.v1.as_ref().map_or(Ok(true), |groups| groups.allows(number, access))?;
        let by_program = self.v2.as_ref().map_or(Ok(true), |group| group.allows(number, access))?;
        Ok(by_list && by_program)
    }

    /// Revokes what [`Filter::allow`] granted, and never what the specification grants. Returns
    /// what was revoked.
    ///
    /// # Errors
    /// The kernel refuses. A group that is gone is fine.
    pub fn revoke(&self, number: DeviceNumber) -> Result<Access> {
        let of_list = |groups: &v1::Groups| groups.revoke(number, granted_by(self.rules, number));
        let list = self.v1.as_ref().map_or(Ok(Access::default()), of_list)?;
        let program =
            self.v2.as_ref().map_or(Ok(Access::default()), |group| group.revoke(number))?;
        Ok(list.with(program))
    }
}

/// The agent's "/pod/c1", safe to append to the hierarchy's mount point.
fn relative(cgroup: &Path) -> Result<PathBuf> {
    let mut relative = PathBuf::new();
    for part in cgroup.components() {
        match part {
            Component::RootDir => {}
            Component::Normal(name) => relative.push(name),
            _ => {
                let subject = "the container's cgroup".to_owned();
                return Err(
                    Error::Malformed { subject, found: displayed(&cgroup.display()) }.into()
                );
            }
        }
    }
    Ok(relative)
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
