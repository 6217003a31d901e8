//! The directory of guests that were booted once and saved to files.
//!
//! The name of a file is a hash of everything that determines the guest: QEMU, kernel and initramfs
//! (by inode, size and time of change), and the command line. A change of one gives another name;
//! the oldest files are removed. One process at a time makes a file, under a lock
//! ([`flock(2)`](https://man7.org/linux/man-pages/man2/flock.2.html)) and under another name until
//! it is complete.

use std::{
    env, fs,
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest as _, Sha256};

use super::{
    BootOptions,
    machine::{MachineFiles, StartMode},
};
use crate::{Accelerator, Error, Machine};

/// How many files of some 80 MiB are kept: one for each kind of guest of the tests in both images,
/// and as many of an earlier build.
const KEPT: usize = 16;
/// A kind of guest that could not be saved or restored is tried again after this time.
const GIVEN_UP_FOR: Duration = Duration::from_secs(24 * 3600);
/// Increased when this code saves or restores in another way.
const FORMAT: u32 = 3;

/// The directory with the files.
#[derive(Debug)]
pub(super) struct BootSnapshots {
    directory: PathBuf,
}

/// What the directory has for a boot.
#[derive(Debug)]
pub(super) enum Lookup {
    /// A file to restore from.
    Found(PathBuf),
    /// No file yet: the caller makes it.
    Absent(SnapshotWriter),
    /// The guest has to be booted, and why.
    Unsuitable(String),
}

/// A file that is being written, and the lock that keeps other processes from writing it.
#[derive(Debug)]
pub(super) struct SnapshotWriter {
    file: PathBuf,
    part: PathBuf,
    _lock: Flock<File>,
}

impl SnapshotWriter {
    /// Returns the path to write to.
    pub(super) fn part(&self) -> &Path {
        &self.part
    }

    /// Gives the complete file its name.
    pub(super) fn finish(self) -> Result<PathBuf, Error> {
        fs::rename(&self.part, &self.file).map_err(Error::file("rename", &self.part))?;
        Ok(self.file)
    }
}

impl BootSnapshots {
    pub(super) fn new(cache: &Path) -> Self {
        Self { directory: cache.join("boots") }
    }

    pub(super) fn find(&self, boot: BootOptions<'_>) -> Lookup {
        match unsuitable(boot) {
            Some(reason) => Lookup::Unsuitable(reason),
            None => {
                self.look_up(boot).unwrap_or_else(|error| Lookup::Unsuitable(error.to_string()))
            }
        }
    }

    fn look_up(&self, boot: BootOptions<'_>) -> io::Result<Lookup> {
        let key = key(boot)?;
        fs::create_dir_all(&self.directory)?;
        let file = self.directory.join(format!("{key}.state"));
        if self.touch(&file) {
            return Ok(Lookup::Found(file));
        }
        let given_up = self.directory.join(format!("{key}.given-up"));
        let age = |file: &Path| {
            Some(fs::metadata(file).ok()?.modified().ok()?.elapsed().unwrap_or_default())
        };
        if age(&given_up).is_some_and(|age| age < GIVEN_UP_FOR) {
            let reason = fs::read_to_string(&given_up)?;
            return Ok(Lookup::Unsuitable(format!(
                "{}; remove {} to try again",
                reason.trim(),
                given_up.display()
            )));
        }
        let lock = File::create(self.directory.join(format!("{key}.lock")))?;
        match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            // Another process may have made it before this one got the lock.
            Ok(_) if self.touch(&file) => Ok(Lookup::Found(file)),
            Ok(lock) => {
                self.remove_oldest()?;
                let part = self.directory.join(format!("{key}.part"));
                Ok(Lookup::Absent(SnapshotWriter { file, part, _lock: lock }))
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                Ok(Lookup::Unsuitable("another process is saving such a guest".to_owned()))
            }
            Err((_, errno)) => Err(errno.into()),
        }
    }

    /// Whether the file exists; if so, records that it was used now.
    fn touch(&self, file: &Path) -> bool {
        File::open(file).is_ok_and(|file| {
            // On failure the file is removed earlier than others, nothing worse.
            let _ = file.set_modified(SystemTime::now());
            true
        })
    }

    /// Records that this kind of guest has to be booted, and returns the first line of the reason.
    pub(super) fn give_up(&self, boot: BootOptions<'_>, reason: &str) -> String {
        tracing::warn!(reason, "the guest cannot be restored");
        let reason = reason.lines().next().unwrap_or_default();
        if let Ok(key) = key(boot) {
            // On failure the next boot tries in vain, nothing worse.
            let _ = fs::write(self.directory.join(format!("{key}.given-up")), reason);
            let _ = fs::remove_file(self.directory.join(format!("{key}.state")));
            let _ = fs::remove_file(self.directory.join(format!("{key}.part")));
        }
        reason.to_owned()
    }

    /// Removes the oldest files until there is room for one more.
    fn remove_oldest(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "state") {
                files.push((fs::metadata(&path)?.modified()?, path));
            }
        }
        files.sort();
        for (_, file) in files.iter().take((files.len() + 1).saturating_sub(KEPT)) {
            fs::remove_file(file)?;
        }
        Ok(())
    }
}

/// Returns why such a guest is not kept in a file, or cannot be restored from one.
fn unsuitable(boot: BootOptions<'_>) -> Option<String> {
    let usual =
        Machine { cgroup: boot.machine.cgroup, scan: boot.machine.scan, ..Machine::default() };
    if !boot.environment.restore {
        Some("VM_HARNESS_RESTORE is no".to_owned())
    } else if boot.accelerator != Accelerator::Tcg {
        Some(format!("a guest under {} is never saved", boot.accelerator))
    } else if *boot.machine != usual {
        Some("not a usual machine".to_owned())
    } else {
        None
    }
}

/// Returns the name of the file of such a guest, without the suffix.
fn key(boot: BootOptions<'_>) -> io::Result<String> {
    let file = |name: &str| PathBuf::from(format!("/{name}"));
    let files = MachineFiles {
        kernel: file("kernel"),
        initramfs: file("initramfs"),
        qmp: file("qmp"),
        pid: file("pid"),
        monitor: file("monitor"),
        console: file("console"),
        vhost: file("vhost"),
        cid: 3,
        share: file("share"),
        stderr: file("stderr"),
    };
    let qemu = in_path(&boot.environment.qemu);
    let mode = StartMode::Restore(Path::new("/state"));
    let command = boot.machine.command(&qemu, boot.accelerator, "name", &files, mode);
    let mut hash = Sha256::new();
    hash.update(format!("{FORMAT} {command:?}"));
    for path in [qemu, boot.image.join("vmlinux"), boot.image.join("initramfs.cpio")] {
        let metadata = fs::metadata(&path).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
        let (changed, nanoseconds) = (metadata.ctime(), metadata.ctime_nsec());
        let identity = (metadata.dev(), metadata.ino(), metadata.size(), changed, nanoseconds);
        hash.update(format!(" {identity:?}"));
    }
    let digest = hash.finalize();
    Ok(digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

/// Returns the file of a program, searched in `PATH`; the name itself if there is none.
pub(crate) fn in_path(program: &Path) -> PathBuf {
    if program.components().count() > 1 {
        return program.to_owned();
    }
    let directories = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&directories)
        .map(|directory| directory.join(program))
        .find(|file| file.is_file());
    found.unwrap_or_else(|| program.to_owned())
}

#[cfg(test)]
mod tests;
