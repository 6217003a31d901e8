//! The checks, one file a subject, in the order in which they run: those that others depend on come
//! first.

mod address;
mod agent;
mod filter;
mod mount;
mod node;
mod plug;
mod rollback;
mod side_effects;
mod unplug;

use super::{Check, Group};

/// All checks.
pub const GROUPS: &[Group] = &[
    Group { name: "agent", checks: agent::CHECKS },
    Group { name: "plug", checks: plug::CHECKS },
    Group { name: "node", checks: node::CHECKS },
    Group { name: "address", checks: address::CHECKS },
    Group { name: "filter", checks: filter::CHECKS },
    Group { name: "unplug", checks: unplug::CHECKS },
    Group { name: "mount", checks: mount::CHECKS },
    Group { name: "rollback", checks: rollback::CHECKS },
    Group { name: "side_effects", checks: side_effects::CHECKS },
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_check_has_a_unique_name_in_its_group_a_purpose_of_one_line_and_an_explanation() {
        let mut names = HashSet::new();
        for group in GROUPS {
            for check in group.checks {
                assert!(check.name().starts_with(&format!("{}::", group.name)), "{check:?}");
                assert!(names.insert(check.name()), "{check:?} exists twice");
                assert!(
                    (20..110).contains(&check.purpose().len()),
                    "{check:?}: {}",
                    check.purpose()
                );
                for text in [check.breaks(), check.look()] {
                    assert!((40..500).contains(&text.len()), "{check:?}: {text}");
                    assert!(text.ends_with('.') && !text.contains("  "), "{check:?}: {text}");
                }
            }
        }
        let gates: Vec<_> =
            GROUPS.iter().flat_map(|group| group.checks).filter(|check| check.is_gate()).collect();
        assert_eq!(gates.len(), 2, "{gates:?}");
    }
}
