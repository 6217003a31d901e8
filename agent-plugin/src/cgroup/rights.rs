//! Rights on a device, and what a container's specification grants of them ([OCI runtime
//! specification](https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#allowed-device-list)).

use std::fmt;

use crate::{agent::DeviceRule, block::DeviceNumber};

/// A set of rights on a device: read, write, mknod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Rights(u8);

impl Rights {
    /// `r`
    pub const READ: Rights = Rights(1);
    /// `w`
    pub const WRITE: Rights = Rights(2);
    /// `m`
    pub const MKNOD: Rights = Rights(4);
    /// `rw`
    pub const READ_WRITE: Rights = Rights(3);
    /// `rwm`
    pub const ALL: Rights = Rights(7);

    /// From a subset of `rwm`; other letters are no right.
    pub fn parse(letters: &str) -> Rights {
        letters.chars().fold(Rights::default(), |rights, letter| match letter {
            'r' => rights.with(Rights::READ),
            'w' => rights.with(Rights::WRITE),
            'm' => rights.with(Rights::MKNOD),
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
    fn rights_are_sets() {
        assert!(Rights::parse("rwm").cover(Rights::READ_WRITE));
        assert!(!Rights::READ.cover(Rights::READ_WRITE));
        assert_eq!(Rights::parse("mwr").without(Rights::READ).to_string(), "wm");
        assert!(Rights::parse("x").is_empty());
    }
}
