//! The [devices controller of cgroup
//! v1](https://docs.kernel.org/admin-guide/cgroup-v1/devices.html): `devices.list`,
//! `devices.allow`, `devices.deny`.
//!
//! A group may only be given what its parent has, so rights are given from the pod down. A deny
//! reaches every group below, so rights are taken in the container's group only: its pod has
//! siblings.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Added as AnyAdded, Grant, Rights};
use crate::{
    block::DeviceNumber,
    error::{Error, Result, Unsupported},
    sysfs,
};

/// The groups that decide over a container's devices.
#[derive(Debug)]
pub struct Groups {
    /// From below the hierarchy's root down to the parent of the container's group.
    ancestors: Vec<PathBuf>,
    /// `None`: the container is in the root group.
    own: Option<PathBuf>,
    root: PathBuf,
}

/// One line of `devices.list`; `None` stands for every number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    major: Option<u32>,
    minor: Option<u32>,
    rights: Rights,
}

/// The entries of a group that are about block devices.
#[derive(Debug, PartialEq, Eq)]
struct DeviceList(Vec<Entry>);

impl DeviceList {
    fn parse(text: &str) -> DeviceList {
        let entry = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let (kind, numbers, access) = (words.next()?, words.next()?, words.next()?);
            let (major, minor) = numbers.split_once(':')?;
            if !matches!(kind, "a" | "b") {
                return None;
            }
            // What is neither a star nor a number matches nothing: leave the line out.
            let number =
                |text: &str| if text == "*" { Some(None) } else { text.parse().ok().map(Some) };
            Some(Entry {
                major: number(major)?,
                minor: number(minor)?,
                rights: Rights::parse(access),
            })
        };
        DeviceList(text.lines().filter_map(entry).collect())
    }

    fn read(group: &Path) -> Result<DeviceList> {
        let list = group.join("devices.list");
        let text =
            fs::read_to_string(&list).map_err(Error::system("read", list.display().to_string()))?;
        Ok(DeviceList::parse(&text))
    }

    /// The entry of exactly this device.
    fn exact(&self, number: DeviceNumber) -> Rights {
        let wanted = (Some(number.major), Some(number.minor));
        let own = self.0.iter().filter(|entry| (entry.major, entry.minor) == wanted);
        own.fold(Rights::default(), |rights, entry| rights.with(entry.rights))
    }

    /// As the kernel decides: one entry must have all that is asked.
    fn allows(&self, number: DeviceNumber, rights: Rights) -> bool {
        self.0.iter().any(|entry| entry.matches(number) && entry.rights.cover(rights))
    }

    /// The same without the device's own entry.
    fn allows_by_wildcard(&self, number: DeviceNumber, rights: Rights) -> bool {
        let wild = |entry: &&Entry| entry.major.is_none() || entry.minor.is_none();
        self.0.iter().filter(wild).any(|entry| entry.matches(number) && entry.rights.cover(rights))
    }
}

impl Entry {
    fn matches(&self, number: DeviceNumber) -> bool {
        self.major.is_none_or(|major| major == number.major)
            && self.minor.is_none_or(|minor| minor == number.minor)
    }
}

/// A right that was added to a group.
#[derive(Debug, PartialEq, Eq)]
pub struct Added {
    group: PathBuf,
    number: DeviceNumber,
    rights: Rights,
}

impl Added {
    /// Takes it away again.
    ///
    /// # Errors
    /// The kernel refuses. A group that is gone is fine.
    pub fn undo(&self) -> Result<()> {
        deny(&self.group, self.number, self.rights)
    }
}

impl Groups {
    /// The groups of the container in `cgroup`, which is relative to the mount point `root`.
    pub fn new(root: &Path, cgroup: &Path) -> Groups {
        let mut ancestors: Vec<PathBuf> = cgroup
            .ancestors()
            .filter(|part| !part.as_os_str().is_empty())
            .map(|part| root.join(part))
            .collect();
        ancestors.reverse();
        let own = ancestors.pop();
        Groups { ancestors, own, root: root.to_owned() }
    }

    /// The rules of the root group are the guest's own and are never changed: a container in it
    /// must be allowed everything already.
    ///
    /// # Errors
    /// The container is in the root group, and that does not allow everything.
    pub fn check(&self) -> Result<()> {
        let everything = Entry { major: None, minor: None, rights: Rights::ALL };
        if self.own.is_some() || DeviceList::read(&self.root)?.0.contains(&everything) {
            return Ok(());
        }
        Err(Unsupported::RootCgroup.into())
    }

    /// Gives `rights`, from the pod down to the groups that the container made itself.
    ///
    /// # Errors
    /// The kernel refuses; `grant` tells what was added until then.
    pub fn allow(
        &self,
        number: DeviceNumber,
        rights: Rights,
        by_specification: Rights,
        grant: &mut Grant,
    ) -> Result<()> {
        self.check()?;
        let Some(own) = self.own.as_deref() else {
            grant.allowed_before = true;
            return Ok(());
        };
        for pod in &self.ancestors {
            add(pod, &DeviceList::read(pod)?, number, rights, grant)?;
        }
        let before = DeviceList::read(own)?;
        grant.allowed_before =
            before.allows_by_wildcard(number, rights) || by_specification.cover(rights);
        // A right that an earlier device of this number left must not widen this one.
        let excess =
            before.exact(number).without(rights).without(by_specification).without(Rights::MKNOD);
        if !excess.is_empty() {
            deny(own, number, excess)?;
        }
        self.allow_below(own, &before, number, rights, grant)
    }

    fn allow_below(
        &self,
        own: &Path,
        before: &DeviceList,
        number: DeviceNumber,
        rights: Rights,
        grant: &mut Grant,
    ) -> Result<()> {
        add(own, before, number, rights, grant)?;
        for group in nested(own)? {
            // A right of the container's own group is not inherited by those that exist already.
            // They may go at any time.
            let Ok(list) = DeviceList::read(&group) else { continue };
            if !list.allows(number, rights) {
                match allow(&group, number, rights) {
                    Err(_) if !group.exists() => {}
                    result => result?,
                }
            }
        }
        Ok(())
    }

    /// Whether the container's group has the rights (a child's list is never wider than its
    /// parent's).
    ///
    /// # Errors
    /// The list cannot be read.
    pub fn allows(&self, number: DeviceNumber, rights: Rights) -> Result<bool> {
        Ok(DeviceList::read(self.own.as_ref().unwrap_or(&self.root))?.allows(number, rights))
    }

    /// Takes the device's own entry away, less what the specification grants. Groups below lose it
    /// with it.
    ///
    /// # Errors
    /// The kernel refuses. A group that is gone is fine.
    pub fn revoke(&self, number: DeviceNumber, by_specification: Rights) -> Result<Rights> {
        let Some(own) = &self.own else { return Ok(Rights::default()) };
        if !own.exists() {
            return Ok(Rights::default());
        }
        let ours =
            |list: DeviceList| list.exact(number).without(by_specification).without(Rights::MKNOD);
        let rights = ours(DeviceList::read(own)?);
        if rights.is_empty() {
            return Ok(Rights::default());
        }
        deny(own, number, rights)?;
        Ok(rights)
    }
}

/// Adds what `group` lacks.
fn add(
    group: &Path,
    before: &DeviceList,
    number: DeviceNumber,
    rights: Rights,
    grant: &mut Grant,
) -> Result<()> {
    if before.allows(number, rights) {
        return Ok(());
    }
    // Noted first: half a write is undone too.
    let added = rights.without(before.exact(number));
    grant.added.push(AnyAdded::V1(Added { group: group.to_owned(), number, rights: added }));
    allow(group, number, rights)
}

/// Writes a rule and reads it back.
fn allow(group: &Path, number: DeviceNumber, rights: Rights) -> Result<()> {
    let file = group.join("devices.allow");
    let failed =
        || Error::system("write", format!("\"{}\" to {}", rule(number, rights), file.display()));
    sysfs::write(&file, &rule(number, rights)).map_err(failed())?;
    match DeviceList::read(group)?.allows(number, rights) {
        true => Ok(()),
        false => Err(failed()(io::Error::other("the group's devices.list does not show it"))),
    }
}

fn deny(group: &Path, number: DeviceNumber, rights: Rights) -> Result<()> {
    let file = group.join("devices.deny");
    match sysfs::write(&file, &rule(number, rights)) {
        Err(error) if sysfs::is_gone(&error) => Ok(()),
        result => result.map_err(Error::system(
            "write",
            format!("\"{}\" to {}", rule(number, rights), file.display()),
        )),
    }
}

fn rule(number: DeviceNumber, rights: Rights) -> String {
    format!("b {number} {rights}")
}

/// The groups below `group`, parents before their children.
fn nested(group: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut left = vec![group.to_owned()];
    while let Some(directory) = left.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if sysfs::is_gone(&error) && directory != group => continue,
            Err(error) => {
                return Err(Error::system("readdir", directory.display().to_string())(error));
            }
        };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.path());
                left.push(entry.path());
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const DISK: DeviceNumber = DeviceNumber { major: 8, minor: 16 };

    #[rstest]
    #[case("a *:* rwm", "rwm", true)]
    #[case("c 8:16 rwm", "r", false)]
    #[case("b 8:* rw", "rw", true)]
    #[case("b 8:16 r", "rw", false)]
    #[case("b 8:160 rw", "rw", false)]
    #[case::no_single_entry_has_both("b 8:16 r\nb *:* w", "rw", false)]
    #[case("b *:* m\nb 8:16 rw", "rw", true)]
    #[case("", "r", false)]
    fn the_list_decides_as_the_kernel_does(
        #[case] list: &str,
        #[case] asked: &str,
        #[case] allowed: bool,
    ) {
        assert_eq!(DeviceList::parse(list).allows(DISK, Rights::parse(asked)), allowed);
    }

    #[test]
    fn the_entry_of_a_device_is_told_from_wildcards() {
        let list = DeviceList::parse("b *:* m\nb 8:16 rw\nnonsense\nb x:y rwm");
        assert_eq!(list.0.len(), 2);
        assert_eq!(list.exact(DISK), Rights::READ_WRITE);
        assert!(!list.allows_by_wildcard(DISK, Rights::READ));
    }

    #[test]
    fn groups_go_from_the_pod_down_and_leave_the_root_out() {
        let groups = Groups::new(Path::new("/d"), Path::new("kubepods/pod/c1"));
        assert_eq!(groups.ancestors, [Path::new("/d/kubepods"), Path::new("/d/kubepods/pod")]);
        assert_eq!(groups.own.as_deref(), Some(Path::new("/d/kubepods/pod/c1")));
        let root = Groups::new(Path::new("/d"), Path::new(""));
        assert!(root.ancestors.is_empty() && root.own.is_none());
    }

    #[test]
    fn rules_name_one_device_and_its_rights() {
        assert_eq!(rule(DISK, Rights::READ_WRITE), "b 8:16 rw");
        assert_eq!(rule(DISK, Rights::READ), "b 8:16 r");
    }
}
