//! A VM that another process runs (`vm-harness boot`): its files, found by its run directory.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::run_dir;
use crate::{Console, Error};

/// The VM of a sandbox of another process.
#[derive(Debug, Clone)]
pub struct RunningVm {
    run_dir: PathBuf,
    vm: PathBuf,
}

impl RunningVm {
    /// Finds the VM in `run_dir`, or without it the only one on this machine.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn find(run_dir: Option<&Path>) -> Result<Self, Error> {
        match run_dir {
            Some(run_dir) => Self::only_of([run_dir.to_owned()], &run_dir.display().to_string()),
            None => Self::only_of(run_dir::all()?, run_dir::BASE),
        }
    }

    fn only_of(run_dirs: impl IntoIterator<Item = PathBuf>, searched: &str) -> Result<Self, Error> {
        let running = run_dirs.into_iter().flat_map(|run_dir| {
            let vms = fs::read_dir(run_dir.join("vm")).into_iter().flatten().flatten();
            vms.map(move |vm| Self { run_dir: run_dir.clone(), vm: vm.path() })
        });
        let mut running: Vec<Self> = running.filter(|vm| vm.console().path().exists()).collect();
        match (running.pop(), running.len()) {
            (Some(one), 0) => Ok(one),
            (None, _) => Err(Error::Missing {
                what: format!("a sandbox in {searched}"),
                remedy: "start one with `vm-harness boot`, or name its run directory with --run-dir",
            }),
            (Some(_), others) => Err(Error::Missing {
                what: format!("a unique sandbox in {searched} (there are {})", others + 1),
                remedy: "name its run directory with --run-dir",
            }),
        }
    }

    /// Returns its run directory.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Returns the console of its guest.
    pub fn console(&self) -> Console {
        Console::new(self.vm.join("console.log"))
    }

    /// Returns the files with the messages of QEMU and of its vsock back end.
    pub fn messages(&self) -> [(&'static str, PathBuf); 2] {
        [
            ("QEMU", self.vm.join("qemu.stderr")),
            ("vhost-device-vsock", self.vm.join("vsock.stderr")),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_sandbox_is_found_and_none_or_two_are_reported() {
        let directory = tempfile::tempdir().unwrap();
        let run_dirs = ["a", "b"].map(|name| directory.path().join(name));
        let find = || RunningVm::only_of(run_dirs.clone(), "/x").map_err(|error| error.to_string());
        assert!(find().unwrap_err().contains("a sandbox in /x is missing"));
        let vm = |run_dir: &Path, id: &str| {
            fs::create_dir_all(run_dir.join("vm").join(id)).unwrap();
            fs::write(run_dir.join("vm").join(id).join("console.log"), "line").unwrap();
        };
        vm(&run_dirs[1], "s1");
        let found = find().unwrap();
        assert_eq!(
            (found.run_dir(), found.console().text().as_str()),
            (run_dirs[1].as_path(), "line")
        );
        vm(&run_dirs[0], "s2");
        assert!(find().unwrap_err().contains("there are 2"));
    }
}
