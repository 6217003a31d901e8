//! Directories that did not exist: made by
//! [mkdir(2)](https://man7.org/linux/man-pages/man2/mkdir.2.html), removed by
//! [rmdir(2)](https://man7.org/linux/man-pages/man2/rmdir.2.html) where they are still empty.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag},
    sys::stat::{Mode, mkdirat},
};

use super::{location::Location, path::NodePath};
use crate::{
    error::{Error, Result},
    log,
    named::{self, c_name},
    namespace::{Root, Target, check_awaited},
};

/// Directories that we made ourselves. One that appeared before our `mkdirat` belongs to its maker.
#[derive(Debug, Default)]
pub(crate) struct Parents {
    /// Outermost first: the directory that each is in, and its name.
    made: Vec<(OwnedFd, String)>,
    /// Their paths.
    pub(crate) paths: Vec<String>,
}

impl Location {
    /// Makes the directories that do not exist. The calling thread's umask must be 0.
    ///
    /// # Errors
    /// Nothing is left behind.
    pub(crate) fn make_parents(&self) -> Result<(OwnedFd, Parents)> {
        let mut parents = Parents::default();
        let result = self.descend(&mut parents);
        if result.is_err() {
            parents.remove();
        }
        Ok((result?, parents))
    }

    fn descend(&self, parents: &mut Parents) -> Result<OwnedFd> {
        let duplicate =
            |fd: &OwnedFd| fd.try_clone().map_err(Error::system("fcntl", &self.path().parent()));
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let mut directory = duplicate(self.directory())?;
        for (name, path) in self.missing().iter().zip(self.missing_paths()) {
            let mode = Mode::from_bits_truncate(0o755);
            let made = c_name(name.as_bytes()).and_then(|name| mkdirat(&directory, &*name, mode));
            match made {
                Ok(()) => {
                    parents.made.push((duplicate(&directory)?, name.clone()));
                    parents.paths.push(path.clone());
                }
                // Made by the container, or for another volume of the same request.
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(self.explain("mkdirat", errno)),
            }
            directory =
                named::openat2(&directory, name.as_bytes(), how).map_err(|errno| match errno {
                    // A dangling link, or a link that leads elsewhere now.
                    Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR | Errno::EXDEV
                        if made.is_err() =>
                    {
                        Error::ParentMissing { path: path.clone() }.into()
                    }
                    Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR | Errno::EXDEV => self.moved(),
                    other => Error::system("openat2", &path.as_str())(other),
                })?;
        }
        Ok(directory)
    }

    /// The paths of the directories that do not exist, outermost first.
    pub(crate) fn missing_paths(&self) -> Vec<String> {
        let mut path = self.existing_parent().to_owned();
        let mut paths = Vec::with_capacity(self.missing().len());
        for name in self.missing() {
            path = format!("{path}/{name}");
            paths.push(path.clone());
        }
        paths
    }

    /// The path of the nearest directory that exists; empty for the root.
    fn existing_parent(&self) -> &str {
        let below: usize = self.missing().iter().map(|name| name.len() + 1).sum();
        let parent = self.path().parent().trim_end_matches('/');
        &parent[..parent.len().saturating_sub(below)]
    }
}

impl Parents {
    /// Notes one more that was made, below the others.
    pub(crate) fn add(&mut self, directory: OwnedFd, name: &str, path: &str) {
        self.made.push((directory, name.to_owned()));
        self.paths.push(path.to_owned());
    }

    /// Removes those that are empty. Others are in use.
    pub(crate) fn remove(&self) {
        for (directory, name) in self.made.iter().rev() {
            if !remove(directory, name) {
                return;
            }
        }
    }
}

/// Removes directories that an attach made, as far as they exist and are empty.
///
/// # Errors
/// The container's file system does not answer.
pub fn remove_parents(target: &Target, paths: &[NodePath], deadline: Instant) -> Result<()> {
    let paths = paths.to_vec();
    let work = move |root: &Root| {
        for path in paths.iter().rev() {
            // If it cannot be reached safely, it is not the directory that we made.
            let Ok(Some(directory)) = root.existing(path.parent()) else { break };
            check_awaited()?;
            if !remove(&directory, path.name()) {
                break;
            }
        }
        Ok(())
    };
    target.enter(work)?.finish(deadline)
}

/// Removes a directory. `false`: it stays.
fn remove(directory: &impl AsFd, name: &str) -> bool {
    match named::rmdirat(directory, name) {
        Ok(()) | Err(Errno::ENOENT) => true,
        Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR | Errno::EBUSY) => false,
        Err(errno) => {
            log::warn(format_args!(
                "the directory {name:?} stays in the container: rmdir: {errno}"
            ));
            false
        }
    }
}
