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
    /// No file descriptor was free to look at it: the error, `EMFILE` or `ENFILE`.
    NoDescriptor(i32),
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
        match error.raw_os_error() {
            Some(errno @ (libc::EMFILE | libc::ENFILE)) => Self::NoDescriptor(errno),
            _ => Self::Unchecked(error.to_string()),
        }
    }
}

impl Conflict {
    /// `holder` uses the source itself.
    pub(crate) fn of_source(holder: Holder) -> Self {
        Self { chain: Chain::default(), problem: Problem::Held(holder) }
    }

    /// What is in the way of the source itself could not be looked at.
    pub(super) fn unknown(error: io::Error) -> Self {
        Self { chain: Chain::default(), problem: error.into() }
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
            Problem::NoDescriptor(errno) => {
                Error::system("open", path, io::Error::from_raw_os_error(errno))
            }
        }
    }
}
