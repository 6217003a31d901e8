//! A group of cgroup v2, and the device programs that the kernel reports for it.

use std::{
    fs::File,
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use super::bpf;
use crate::error::{BoxedError, Error, Result, Unsupported};

/// A cgroup, with the groups above it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub(super) root: PathBuf,
    /// Below the root.
    pub(super) path: PathBuf,
    /// Other containers are in it, too: its programs must not be changed.
    pub(super) shared: bool,
}

impl Group {
    /// The group `path` of the hierarchy that is mounted at `root`.
    pub fn new(root: &Path, path: &Path) -> Group {
        Group { root: root.to_owned(), path: path.to_owned(), shared: path.as_os_str().is_empty() }
    }

    /// A group whose programs must not be changed.
    pub fn shared(root: &Path, path: &Path) -> Group {
        Group { shared: true, ..Group::new(root, path) }
    }

    /// Ids of all programs that decide.
    ///
    /// # Errors
    /// The group does not exist, or the query is not permitted.
    pub fn programs(&self) -> Result<Vec<u32>> {
        self.query(&self.open()?, true).map(|attached| attached.ids)
    }

    /// Its path below the root of the hierarchy, for a message.
    pub(super) fn name(&self) -> String {
        name(&self.path)
    }

    pub(super) fn open(&self) -> Result<File> {
        let path = self.directory();
        File::open(&path).map_err(Error::system("open", &path.display()))
    }

    /// Queries programs. A kernel without device programs has none.
    pub(super) fn query(&self, directory: &File, effective: bool) -> Result<bpf::Query> {
        match bpf::query(directory.as_fd(), effective) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(bpf::Query::default()),
            result => result.map_err(self.failed("BPF_PROG_QUERY")),
        }
    }

    pub(super) fn directory(&self) -> PathBuf {
        self.root.join(&self.path)
    }

    /// The group that a program is attached to, for a message.
    pub(super) fn group_of(&self, program: u32) -> String {
        let attached = |path: &&Path| {
            let group = Group::new(&self.root, path);
            let ids = group.open().and_then(|directory| group.query(&directory, false));
            ids.is_ok_and(|attached| attached.ids.contains(&program))
        };
        name(self.path.ancestors().find(attached).unwrap_or(&self.path))
    }

    /// Runs `work`. Where it fails because the group is gone, returns `gone`.
    pub(super) fn unless_gone<T>(&self, gone: T, work: impl FnOnce() -> Result<T>) -> Result<T> {
        match work() {
            Err(_) if !self.directory().exists() => Ok(gone),
            result => result,
        }
    }

    pub(super) fn failed(&self, call: &'static str) -> impl FnOnce(io::Error) -> BoxedError {
        let cgroup = self.name();
        move |source| match source.raw_os_error() {
            Some(libc::EPERM) => Unsupported::BpfDenied { call }.into(),
            _ => BoxedError::from(Error::System {
                call,
                subject: format!("the device programs of {cgroup}"),
                source,
            }),
        }
    }
}

fn name(path: &Path) -> String {
    format!("/{}", path.display())
}
