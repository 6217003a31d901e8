//! Known bugs of QEMU that affect hot-plug, by the version in QEMU's greeting
//! ([QMP](https://www.qemu.org/docs/master/interop/qmp-spec.html)).
//!
//! A distribution may have fixed an old version without changing its number: this table is for a
//! warning, never for a refusal.

/// A version, such as `7.2.15`.
type Version = [u32; 3];

/// A bug and the versions that have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownBug {
    /// A stable short name.
    pub name: &'static str,
    /// What goes wrong.
    pub effect: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
    /// From the first version of each pair, up to but not including the second.
    versions: &'static [(Version, Version)],
}

/// All known bugs.
pub const KNOWN_BUGS: [KnownBug; 1] = [
    // "Reported luns changed" came with 7.2 (commit 8cc5583abe). Of several commands that the guest
    // submits together only the first reports it; the others fail without sense data, and Linux
    // stops all disks of the controller for its error recovery. Fixed by 9472083e64, in 7.2.15 and
    // 8.1. 280 plugs and unplugs caused 120 recoveries in 7.2.22 without that commit, and none with
    // it (ci/affected-qemu).
    KnownBug {
        name: "reported-luns-changed",
        effect: "a disk that comes or goes makes writes to the busy disks of its controller fail, and the guest stops them all to recover",
        remedy: "use QEMU 7.2.15 or 8.1, or newer, or give the controller hotplug=off",
        versions: &[([7, 2, 0], [7, 2, 15]), ([8, 0, 0], [8, 1, 0])],
    },
];

/// The bugs of QEMU `version`; none if that is not a version number.
pub fn bugs_of(version: &str) -> impl Iterator<Item = &'static KnownBug> {
    let version = parse(version);
    KNOWN_BUGS.iter().filter(move |bug| {
        version.is_some_and(|version| {
            bug.versions.iter().any(|(from, before)| (*from..*before).contains(&version))
        })
    })
}

/// Warnings for a person who plugs a volume into QEMU `version`.
pub(crate) fn warnings(version: &str) -> impl Iterator<Item = String> {
    bugs_of(version).map(move |bug| {
        format!(
            "warning: QEMU {version} may have the bug {}: {}; {}",
            bug.name, bug.effect, bug.remedy
        )
    })
}

fn parse(version: &str) -> Option<Version> {
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    let version = [numbers.next()??, numbers.next()??, numbers.next()??];
    numbers.next().is_none().then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case::before_the_bug("7.1.0", false)]
    #[case::first("7.2.0", true)]
    #[case::debian_12_when_it_was_new("7.2.2", true)]
    #[case::last_of_its_series("7.2.14", true)]
    #[case::fixed_in_its_series("7.2.15", false)]
    #[case::debian_12("7.2.22", false)]
    #[case::a_series_that_was_never_fixed("8.0.5", true)]
    #[case::fixed("8.1.0", false)]
    #[case::later("11.1.3", false)]
    #[case::no_version("unknown", false)]
    #[case::too_short("7.2", false)]
    #[case::too_long("7.2.1.4", false)]
    fn reported_luns_changed_is_found_by_version(#[case] version: &str, #[case] expected: bool) {
        let names: Vec<_> = bugs_of(version).map(|bug| bug.name).collect();
        assert_eq!(names == ["reported-luns-changed"], expected, "{names:?}");
    }

    #[test]
    fn a_warning_names_version_effect_and_remedy() {
        let warnings: Vec<_> = warnings("7.2.13").collect();
        assert_eq!(
            warnings,
            [
                "warning: QEMU 7.2.13 may have the bug reported-luns-changed: a disk that comes or goes makes writes to the busy disks of \
              its controller fail, and the guest stops them all to recover; use QEMU 7.2.15 or 8.1, or newer, or give the controller hotplug=off"
            ]
        );
    }

    #[test]
    fn every_bug_has_a_unique_name_and_no_empty_ranges() {
        for (index, bug) in KNOWN_BUGS.iter().enumerate() {
            assert!(KNOWN_BUGS[..index].iter().all(|other| other.name != bug.name), "{}", bug.name);
            assert!(bug.versions.iter().all(|(from, before)| from < before), "{}", bug.name);
        }
    }
}
