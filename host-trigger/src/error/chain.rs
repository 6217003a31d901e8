//! How a source leads to the device or file that an error is about.

use std::{fmt, path::PathBuf};

/// The chain from a source to another name of its bytes, one step for each layer; without a step,
/// the source itself. In a message it stands between the source and what is wrong:
/// `"/dev/loop1" is over /dev/loop0, which is mounted on /mnt`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain(Vec<(Step, PathBuf)>);

/// One step of a [`Chain`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// To a device or file that the one before consists of.
    Below,
    /// To a loop device that the one before backs.
    Above,
    /// To another path to the same disk.
    OtherPath,
}

impl Chain {
    /// The chain with one more step.
    #[must_use]
    pub fn then(&self, step: Step, to: PathBuf) -> Self {
        let mut longer = self.clone();
        longer.0.push((step, to));
        longer
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (step, to)) in self.0.iter().enumerate() {
            let word = match step {
                Step::Below => "over",
                Step::Above => "below",
                Step::OtherPath => "the same disk as",
            };
            write!(f, "{} {word} {}", if index == 0 { " is" } else { "," }, to.display())?;
        }
        f.write_str(if self.0.is_empty() { "" } else { ", which" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_are_named_in_their_order() {
        assert_eq!(Chain::default().to_string(), "");
        let chain = Chain::default().then(Step::Below, "/dev/loop1".into());
        assert_eq!(chain.to_string(), " is over /dev/loop1, which");
        let chain =
            chain.then(Step::Below, "/dev/sda".into()).then(Step::OtherPath, "/dev/sdb".into());
        assert_eq!(
            chain.to_string(),
            " is over /dev/loop1, over /dev/sda, the same disk as /dev/sdb, which"
        );
    }
}
