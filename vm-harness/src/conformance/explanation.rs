//! What a check is for, as `vm-harness conformance --explain` prints it.

use std::fmt;

use super::{Check, GROUPS};
use crate::Error;

/// The width of the text, in characters.
const WIDTH: usize = 80;

/// How many names an error suggests.
const SUGGESTIONS: usize = 3;

/// A check and everything that it says about itself.
#[derive(Debug, Clone, Copy)]
pub struct Explanation(&'static Check);

impl Explanation {
    /// Returns the explanation of the check of this name: `group::what_holds`, or the part after
    /// the group.
    ///
    /// # Errors
    /// There is none. The error has the names that are most like it.
    pub fn of(name: &str) -> Result<Self, Error> {
        let all = || GROUPS.iter().flat_map(|group| group.checks);
        let is_it = |check: &&Check| check.name() == name || short(check.name()) == name;
        all().find(is_it).map(Self).ok_or_else(|| {
            let mut near: Vec<_> = all()
                .map(|check| {
                    let whole = strsim::jaro_winkler(check.name(), name);
                    (check.name(), whole.max(strsim::jaro_winkler(short(check.name()), name)))
                })
                .collect();
            near.sort_by(|one, other| other.1.total_cmp(&one.1));
            let near: Vec<_> = near.iter().take(SUGGESTIONS).map(|(name, _)| *name).collect();
            Error::UnknownCheck { name: name.to_owned(), near: near.join(", ") }
        })
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let check = self.0;
        writeln!(f, "{}", check.name())?;
        for (title, text) in [
            ("what it proves", check.purpose()),
            ("what usually breaks it", check.breaks()),
            ("where to look", check.look()),
        ] {
            writeln!(f, "\n  {title}")?;
            wrapped(text, WIDTH).iter().try_for_each(|line| writeln!(f, "    {line}"))?;
        }
        Ok(())
    }
}

/// Returns a name without its group.
fn short(name: &str) -> &str {
    name.split_once("::").map_or(name, |(_, short)| short)
}

/// Breaks a text into lines between its words.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explanation_of_every_check_has_all_three_parts() {
        for check in GROUPS.iter().flat_map(|group| group.checks) {
            let text = Explanation::of(check.name()).unwrap().to_string();
            for part in [check.purpose(), check.breaks(), check.look()] {
                let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
                assert!(words(&text).contains(&words(part)), "{part:?} in\n{text}");
            }
            assert!(text.lines().all(|line| line.len() <= WIDTH + 4), "{text}");
        }
    }

    #[test]
    fn a_name_is_found_without_its_group_and_an_unknown_one_gets_the_nearest() {
        let text = Explanation::of("leaves_nothing").unwrap().to_string();
        assert!(text.starts_with("unplug::leaves_nothing\n"), "{text}");
        let error = |name| Explanation::of(name).unwrap_err().to_string();
        assert!(error("unplug::leave_nothing").contains("unplug::leaves_nothing"));
        assert!(error("agent_serves_plugin").contains("agent::serves_the_plugin"));
        assert!(error("x").contains("--list"));
    }
}
