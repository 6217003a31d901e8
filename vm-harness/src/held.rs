//! A sandbox that another process holds (`vm-harness boot`): its files, found by its run directory.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{Console, Error, run_dir};

/// A sandbox of another process.
#[derive(Debug, Clone)]
pub struct Held {
    run_dir: PathBuf,
    vm: PathBuf,
}

impl Held {
    /// The sandbox in `run_dir`; without one, the only one that this machine has.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn find(run_dir: Option<&Path>) -> Result<Self, Error> {
        match run_dir {
            Some(run_dir) => Self::only_of([run_dir.to_owned()], &run_dir.display().to_string()),
            None => Self::only_of(run_dir::all()?, run_dir::BASE),
        }
    }

    fn only_of(run_dirs: impl IntoIterator<Item = PathBuf>, place: &str) -> Result<Self, Error> {
        let held = run_dirs.into_iter().flat_map(|run_dir| {
            let vms = fs::read_dir(run_dir.join("vm")).into_iter().flatten().flatten();
            vms.map(move |vm| Self { run_dir: run_dir.clone(), vm: vm.path() })
        });
        let mut held: Vec<Self> = held.filter(|held| held.console().path().exists()).collect();
        match (held.pop(), held.len()) {
            (Some(one), 0) => Ok(one),
            (None, _) => Err(Error::Missing {
                what: format!("a sandbox in {place}"),
                remedy: "start one with `vm-harness boot`, or name its run directory with --run-dir",
            }),
            (Some(_), others) => Err(Error::Missing {
                what: format!("one single sandbox in {place} (there are {})", others + 1),
                remedy: "name its run directory with --run-dir",
            }),
        }
    }

    /// Its run directory.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// What its guest prints.
    pub fn console(&self) -> Console {
        Console::new(self.vm.join("console.log"))
    }

    /// The files with the messages of QEMU and of its vsock back end.
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
    fn one_sandbox_is_found_and_none_or_two_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let run_dirs = ["a", "b"].map(|name| directory.path().join(name));
        let find = || Held::only_of(run_dirs.clone(), "/x").map_err(|error| error.to_string());
        assert!(find().unwrap_err().contains("a sandbox in /x is missing"));
        let vm = |run_dir: &Path, id: &str| {
            fs::create_dir_all(run_dir.join("vm").join(id)).unwrap();
            fs::write(run_dir.join("vm").join(id).join("console.log"), "line").unwrap();
        };
        vm(&run_dirs[1], "s1");
        let held = find().unwrap();
        assert_eq!(
            (held.run_dir(), held.console().text().as_str()),
            (run_dirs[1].as_path(), "line")
        );
        vm(&run_dirs[0], "s2");
        assert!(find().unwrap_err().contains("there are 2"));
    }
}
