//! Access to a device, and what a container's specification grants of it ([OCI runtime
//! specification](https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#allowed-device-list)).

use std::fmt;

use crate::{agent::DeviceRule, block::DeviceNumber};

/// A set of kinds of access to a device: read, write, mknod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Access(u8);

impl Access {
    /// `r`
    pub const READ: Access = Access(1);
    /// `w`
    pub const WRITE: Access = Access(2);
    /// `m`
    pub const MKNOD: Access = Access(4);
    /// `rw`
    pub const READ_WRITE: Access = Access(3);
    /// `rwm`
    pub const ALL: Access = Access(7);

    /// From a subset of `rwm`; other letters are ignored.
    pub fn parse(letters: &str) -> Access {
        letters.chars().fold(Access::default(), |access, letter| match letter {
            'r' => access.with(Access::READ),
            'w' => access.with(Access::WRITE),
            'm' => access.with(Access::MKNOD),
            _ => access,
        })
    }

    /// Both together.
    pub fn with(self, other: Access) -> Access {
        Access(self.0 | other.0)
    }

    /// This access without `other`.
    pub fn without(self, other: Access) -> Access {
        Access(self.0 & !other.0)
    }

    /// Whether all of `other` is in this.
    pub fn cover(self, other: Access) -> bool {
        other.without(self).is_empty()
    }

    /// Whether it is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Access {
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
pub fn granted_by(rules: &[DeviceRule], number: DeviceNumber) -> Access {
    rules.iter().fold(Access::default(), |granted, rule| {
        let matches = matches!(rule.kind, 'a' | 'b')
            && rule.major.is_none_or(|major| major == number.major)
            && rule.minor.is_none_or(|minor| minor == number.minor);
        // The rule for everything may omit the access.
        let access = if rule.access.is_empty() { Access::ALL } else { Access::parse(&rule.access) };
        match (matches, rule.allow) {
            (false, _) => granted,
            (true, true) => granted.with(access),
            (true, false) => granted.without(access),
        }
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const DISK: DeviceNumber = DeviceNumber { major: 8, minor: 16 };

    fn rule(
        allow: bool,
        kind: char,
        major: Option<u32>,
        minor: Option<u32>,
        access: &str,
    ) -> DeviceRule {
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
    fn access_is_a_set() {
        assert!(Access::parse("rwm").cover(Access::READ_WRITE));
        assert!(!Access::READ.cover(Access::READ_WRITE));
        assert_eq!(Access::parse("mwr").without(Access::READ).to_string(), "wm");
        assert!(Access::parse("x").is_empty());
    }
}
