//! Why a source may not be used: a use of it, or of something that it consists of.

use std::{io, path::PathBuf};

use super::holders::{Holder, opener::Unseen};
use crate::{Error, error::Chain};

/// Why a source may not be used, and how it leads to what is in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conflict {
    pub(super) chain: Chain,
    pub(super) problem: Problem,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Problem {
    /// It is in use.
    Held(Holder),
    /// It is on a disk of the root file system.
    Root,
    /// It is on a file system that shows the files of others.
    Stacked,
    /// It cannot be known.
    Unchecked(String),
    /// There was no time to know it.
    TimedOut(String),
}

impl From<Unseen> for Problem {
    fn from(unseen: Unseen) -> Self {
        match unseen {
            Unseen::TimeUp(what) => Self::TimedOut(what),
            Unseen::Unreadable(error) => error.into(),
        }
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Unchecked(error.to_string())
    }
}

impl Conflict {
    /// `holder` uses the source itself.
    pub(crate) fn of_source(holder: Holder) -> Self {
        Self { chain: Chain::default(), problem: Problem::Held(holder) }
    }

    /// Whether there was no time to know what is in the way.
    pub(crate) fn is_timeout(&self) -> bool {
        matches!(self.problem, Problem::TimedOut(_))
    }

    /// Returns it as the error of the source at `path`.
    pub(crate) fn into_error(self, path: PathBuf) -> Error {
        let chain = self.chain;
        match self.problem {
            Problem::Held(Holder::Mount(mount_point)) => {
                Error::SourceMounted { path, chain, mount_point }
            }
            Problem::Held(holder) => Error::SourceHeld { path, chain, holder: holder.to_string() },
            Problem::Root => Error::SourceIsRoot { path, chain },
            Problem::Stacked => Error::SourceStacked { path, chain },
            Problem::TimedOut(what) => Error::TimedOut { what },
            Problem::Unchecked(why) => Error::SourceUnchecked { path, chain, why },
        }
    }
}
