//! `devices.list` of the [devices controller of cgroup
//! v1](https://docs.kernel.org/admin-guide/cgroup-v1/devices.html).

use std::path::Path;

use super::access::Access;
use crate::{
    block::DeviceNumber,
    error::{Error, Result},
    kernel_file,
    text::{decimal, lines, split_once, words},
};

/// One line of `devices.list`; `None` stands for every number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
    pub(super) access: Access,
}

impl Entry {
    fn matches(&self, number: DeviceNumber) -> bool {
        self.major.is_none_or(|major| major == number.major)
            && self.minor.is_none_or(|minor| minor == number.minor)
    }
}

/// The entries of a group that are about block devices.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DeviceList(Vec<Entry>);

impl DeviceList {
    pub(super) fn parse(text: &[u8]) -> DeviceList {
        let entry = |line| {
            let mut words = words(line);
            let (kind, numbers, access) = (words.next()?, words.next()?, words.next()?);
            let (major, minor) = split_once(numbers, b":")?;
            if !matches!(kind, b"a" | b"b") {
                return None;
            }
            // A line with anything but a star or a number matches nothing, and is left out.
            let number =
                |text: &[u8]| if text == b"*" { Some(None) } else { decimal(text).map(Some) };
            Some(Entry {
                major: number(major)?,
                minor: number(minor)?,
                access: Access::parse(str::from_utf8(access).ok()?),
            })
        };
        let mut entries = Vec::new();
        for line in lines(text) {
            entries.extend(entry(line));
        }
        DeviceList(entries)
    }

    /// Reads the list of a group.
    pub(super) fn read(group: &Path) -> Result<DeviceList> {
        let list = group.join("devices.list");
        let text = kernel_file::read(&list).map_err(Error::system("read", &list.display()))?;
        Ok(DeviceList::parse(&text))
    }

    pub(super) fn contains(&self, entry: &Entry) -> bool {
        self.0.contains(entry)
    }

    /// The access of the entry for exactly this device.
    pub(super) fn exact(&self, number: DeviceNumber) -> Access {
        let wanted = (Some(number.major), Some(number.minor));
        let own = self.0.iter().filter(|entry| (entry.major, entry.minor) == wanted);
        own.fold(Access::default(), |access, entry| access.with(entry.access))
    }

    /// Decides as the kernel does: one entry must have all of the access.
    pub(super) fn allows(&self, number: DeviceNumber, access: Access) -> bool {
        self.0.iter().any(|entry| entry.matches(number) && entry.access.cover(access))
    }

    /// Decides without the device's own entry.
    pub(super) fn allows_by_wildcard(&self, number: DeviceNumber, access: Access) -> bool {
        let wild = |entry: &&Entry| entry.major.is_none() || entry.minor.is_none();
        self.0.iter().filter(wild).any(|entry| entry.matches(number) && entry.access.cover(access))
    }
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
        #[case] requested: &str,
        #[case] allowed: bool,
    ) {
        assert_eq!(
            DeviceList::parse(list.as_bytes()).allows(DISK, Access::parse(requested)),
            allowed
        );
    }

    #[test]
    fn the_entry_of_a_device_is_distinguished_from_wildcards() {
        let list = DeviceList::parse(b"b *:* m\nb 8:16 rw\nnonsense\nb x:y rwm");
        assert_eq!(list.0.len(), 2);
        assert_eq!(list.exact(DISK), Access::READ_WRITE);
        assert!(!list.allows_by_wildcard(DISK, Access::READ));
    }
}
