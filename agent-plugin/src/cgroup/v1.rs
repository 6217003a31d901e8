//! The [devices controller of cgroup
//! v1](https://docs.kernel.org/admin-guide/cgroup-v1/devices.html): `devices.list`,
//! `devices.allow`, `devices.deny`.
//!
//! A group can only get access that its parent has, so access is added from the pod down. A deny
//! reaches every group below, so access is removed in the container's group first, and then in the
//! pod's, as far as no other container of the pod has it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    access::Access,
    device_list::{DeviceList, Entry},
    grant::{self, Grant},
};
use crate::{
    block::DeviceNumber,
    error::{Error, Result, Unsupported},
    log, sysfs,
};

/// The groups that decide about a container's devices.
#[derive(Debug)]
pub struct Groups {
    /// From below the hierarchy's root down to the parent of the container's group.
    ancestors: Vec<PathBuf>,
    /// `None`: the container is in the root group.
    own: Option<PathBuf>,
    root: PathBuf,
}

/// Access that was added to a group.
#[derive(Debug, PartialEq, Eq)]
struct Added {
    group: PathBuf,
    number: DeviceNumber,
    access: Access,
}

impl grant::Added for Added {
    fn roll_back(&self) -> Result<()> {
        deny(&self.group, self.number, self.access)
    }
}

impl Groups {
    /// The groups of the container in `cgroup`, which is relative to the mount point `root`.
    pub fn new(root: &Path, cgroup: &Path) -> Groups {
        let mut ancestors = Vec::new();
        for part in cgroup.ancestors().filter(|part| !part.as_os_str().is_empty()) {
            ancestors.insert(0, root.join(part));
        }
        let own = ancestors.pop();
        Groups { ancestors, own, root: root.to_owned() }
    }

    /// The rules of the root group are the guest's own and are never changed: a container in it
    /// must be allowed everything already.
    ///
    /// # Errors
    /// The container is in the root group, and that does not allow everything.
    pub fn check(&self) -> Result<()> {
        let everything = Entry { major: None, minor: None, access: Access::ALL };
        if self.own.is_some() || DeviceList::read(&self.root)?.contains(&everything) {
            return Ok(());
        }
        Err(Unsupported::RootCgroup.into())
    }

    /// Adds `access`, from the pod down to the groups that the container made itself.
    ///
    /// # Errors
    /// The kernel refuses; `grant` has what was added until then.
    pub fn allow(
        &self,
        number: DeviceNumber,
        access: Access,
        by_specification: Access,
        grant: &mut Grant,
    ) -> Result<()> {
        self.check()?;
        let Some(own) = self.own.as_deref() else {
            grant.allowed_before = true;
            return Ok(());
        };
        for pod in &self.ancestors {
            add(pod, &DeviceList::read(pod)?, number, access, grant)?;
        }
        let before = DeviceList::read(own)?;
        grant.allowed_before =
            before.allows_by_wildcard(number, access) || by_specification.cover(access);
        // Access that an earlier device of this number left must not widen this one.
        let excess =
            before.exact(number).without(access).without(by_specification).without(Access::MKNOD);
        if !excess.is_empty() {
            deny(own, number, excess)?;
        }
        self.allow_below(own, &before, number, access, grant)
    }

    fn allow_below(
        &self,
        own: &Path,
        before: &DeviceList,
        number: DeviceNumber,
        access: Access,
        grant: &mut Grant,
    ) -> Result<()> {
        add(own, before, number, access, grant)?;
        for group in nested(own)? {
            // Access of the container's own group is not inherited by groups that exist already.
            // They may be removed at any time.
            let Ok(list) = DeviceList::read(&group) else { continue };
            if !list.allows(number, access) {
                match allow(&group, number, access) {
                    Err(_) if !group.exists() => {}
                    result => result?,
                }
            }
        }
        Ok(())
    }

    /// Whether the container's group has the access (a child's list is never wider than its
    /// parent's).
    ///
    /// # Errors
    /// The list cannot be read.
    pub fn allows(&self, number: DeviceNumber, access: Access) -> Result<bool> {
        Ok(DeviceList::read(self.own.as_ref().unwrap_or(&self.root))?.allows(number, access))
    }

    /// Whether the container's group exists.
    pub fn exist(&self) -> bool {
        self.own.as_ref().is_none_or(|own| own.exists())
    }

    /// Removes the device's own entry, except for what the specification grants. Groups below lose
    /// it, too. The groups above lose what no other group below them has.
    ///
    /// # Errors
    /// The kernel refuses. A group that is gone is fine.
    pub fn revoke(&self, number: DeviceNumber, by_specification: Access) -> Result<Access> {
        let Some(own) = &self.own else { return Ok(Access::default()) };
        let mut revoked = Access::default();
        if own.exists() {
            let entry = DeviceList::read(own)?.exact(number);
            revoked = entry.without(by_specification).without(Access::MKNOD);
            if !revoked.is_empty() {
                deny(own, number, revoked)?;
            }
        }
        for pod in self.ancestors.iter().rev() {
            // The container itself has lost the access. What stays above it grants nothing.
            if let Err(error) = revoke_above(pod, number, by_specification) {
                log::warn(format_args!(
                    "a device rule of the pod's cgroup stays: {}",
                    error.message()
                ));
            }
        }
        Ok(revoked)
    }
}

/// Removes what no group directly below `pod` has of the device's own entry: a list is never wider
/// than that of the group above.
fn revoke_above(pod: &Path, number: DeviceNumber, by_specification: Access) -> Result<()> {
    if !pod.exists() {
        return Ok(());
    }
    let mut excess =
        DeviceList::read(pod)?.exact(number).without(by_specification).without(Access::MKNOD);
    if excess.is_empty() {
        return Ok(());
    }
    for group in children(pod)? {
        match DeviceList::read(&group) {
            Ok(list) => excess = excess.without(list.exact(number)),
            Err(_) if !group.exists() => {}
            Err(error) => return Err(error),
        }
    }
    if excess.is_empty() { Ok(()) } else { deny(pod, number, excess) }
}

/// Adds what `group` lacks.
fn add(
    group: &Path,
    before: &DeviceList,
    number: DeviceNumber,
    access: Access,
    grant: &mut Grant,
) -> Result<()> {
    if before.allows(number, access) {
        return Ok(());
    }
    // Recorded first, so that an incomplete write is rolled back, too.
    let added = access.without(before.exact(number));
    grant.added.push(Box::new(Added { group: group.to_owned(), number, access: added }));
    allow(group, number, access)
}

/// Writes a rule and reads it back.
fn allow(group: &Path, number: DeviceNumber, access: Access) -> Result<()> {
    let file = group.join("devices.allow");
    let written = || format!("\"{}\" to {}", rule(number, access), file.display());
    sysfs::write(&file, &rule(number, access))
        .map_err(|error| Error::system("write", &written())(error))?;
    match DeviceList::read(group)?.allows(number, access) {
        true => Ok(()),
        false => Err(Error::system("write", &written())(io::Error::other(
            "the group's devices.list does not show it",
        ))),
    }
}

fn deny(group: &Path, number: DeviceNumber, access: Access) -> Result<()> {
    let file = group.join("devices.deny");
    match sysfs::write(&file, &rule(number, access)) {
        Err(error) if sysfs::is_gone(&error) => Ok(()),
        result => result.map_err(Error::system(
            "write",
            &format_args!("\"{}\" to {}", rule(number, access), file.display()),
        )),
    }
}

fn rule(number: DeviceNumber, access: Access) -> String {
    format!("b {number} {access}")
}

/// The groups below `group`, parents before their children.
fn nested(group: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut left = vec![group.to_owned()];
    while let Some(directory) = left.pop() {
        match children(&directory) {
            Ok(children) => {
                found.extend_from_slice(&children);
                left.extend(children);
            }
            Err(_) if directory != group && !directory.exists() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The groups directly below `group`.
fn children(group: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(group).map_err(Error::system("readdir", &group.display()))?;
    let mut children = Vec::new();
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            children.push(entry.path());
        }
    }
    Ok(children)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: DeviceNumber = DeviceNumber { major: 8, minor: 16 };

    #[test]
    fn groups_are_listed_from_the_pod_down_without_the_root() {
        let groups = Groups::new(Path::new("/d"), Path::new("kubepods/pod/c1"));
        assert_eq!(groups.ancestors, [Path::new("/d/kubepods"), Path::new("/d/kubepods/pod")]);
        assert_eq!(groups.own.as_deref(), Some(Path::new("/d/kubepods/pod/c1")));
        let root = Groups::new(Path::new("/d"), Path::new(""));
        assert!(root.ancestors.is_empty() && root.own.is_none());
    }

    #[test]
    fn rules_name_one_device_and_its_access() {
        assert_eq!(rule(DISK, Access::READ_WRITE), "b 8:16 rw");
        assert_eq!(rule(DISK, Access::READ), "b 8:16 r");
    }
}
