//! Guests that were booted once and are kept as files: which there are, and who makes a new one.
//!
//! A file is named by a hash of all that went into the guest: QEMU, kernel, initramfs (by inode,
//! size and time of change), and the command line. What changed gives another name, and the oldest
//! files go. One process makes a file
//! ([`flock(2)`](https://man7.org/linux/man-pages/man2/flock.2.html)), under another name until it
//! is whole.

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

use crate::{
    Accelerator, Error, Machine,
    boot::Boot,
    qemu::{Files, Start},
};

/// So many files of some 80 MiB are kept: each kind of guest of the tests in both images, and as
/// many of yesterday.
const KEPT: usize = 16;
/// A kind of guest that could not be saved or restored is tried again after this.
const GIVEN_UP_FOR: Duration = Duration::from_secs(24 * 3600);
/// Counts what this code changed in the way of saving and restoring.
const FORMAT: u32 = 1;

/// The directory with the files.
#[derive(Debug)]
pub(crate) struct SavedBoots {
    directory: PathBuf,
}

/// What there is for a boot.
#[derive(Debug)]
pub(crate) enum Found {
    /// A file to begin with.
    Saved(PathBuf),
    /// Nothing yet: it is for the caller to make it.
    Nothing(Save),
    /// It has to be booted, and why.
    Unsuitable(String),
}

/// A file in the making; nobody else makes it meanwhile.
#[derive(Debug)]
pub(crate) struct Save {
    file: PathBuf,
    part: PathBuf,
    _lock: Flock<File>,
}

impl Save {
    /// Where it is written to.
    pub(crate) fn part(&self) -> &Path {
        &self.part
    }

    /// It is whole.
    pub(crate) fn done(self) -> Result<PathBuf, Error> {
        fs::rename(&self.part, &self.file).map_err(Error::file("rename", &self.part))?;
        Ok(self.file)
    }
}

impl SavedBoots {
    pub(crate) fn new(cache: &Path) -> Self {
        Self { directory: cache.join("boots") }
    }

    pub(crate) fn find(&self, boot: Boot<'_>) -> Found {
        match unsuitable(boot) {
            Some(reason) => Found::Unsuitable(reason),
            None => self.look(boot).unwrap_or_else(|error| Found::Unsuitable(error.to_string())),
        }
    }

    fn look(&self, boot: Boot<'_>) -> io::Result<Found> {
        let key = key(boot)?;
        fs::create_dir_all(&self.directory)?;
        let file = self.directory.join(format!("{key}.state"));
        if self.is_used(&file) {
            return Ok(Found::Saved(file));
        }
        let given_up = self.directory.join(format!("{key}.given-up"));
        let age = |file: &Path| {
            Some(fs::metadata(file).ok()?.modified().ok()?.elapsed().unwrap_or_default())
        };
        if age(&given_up).is_some_and(|age| age < GIVEN_UP_FOR) {
            let reason = fs::read_to_string(&given_up)?;
            return Ok(Found::Unsuitable(format!(
                "{}; remove {} to try again",
                reason.trim(),
                given_up.display()
            )));
        }
        let lock = File::create(self.directory.join(format!("{key}.lock")))?;
        match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            // Perhaps it was made while nobody held the lock.
            Ok(_) if self.is_used(&file) => Ok(Found::Saved(file)),
            Ok(lock) => {
                self.forget_the_oldest()?;
                let part = self.directory.join(format!("{key}.part"));
                Ok(Found::Nothing(Save { file, part, _lock: lock }))
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                Ok(Found::Unsuitable("another process is saving such a guest".to_owned()))
            }
            Err((_, errno)) => Err(errno.into()),
        }
    }

    /// Whether there is such a file; if so, it is noted that it was of use now.
    fn is_used(&self, file: &Path) -> bool {
        File::open(file).is_ok_and(|file| {
            // At the worst it goes earlier than others.
            let _ = file.set_modified(SystemTime::now());
            true
        })
    }

    /// Notes that this kind of guest has to be booted; returns why, in a line.
    pub(crate) fn give_up(&self, boot: Boot<'_>, reason: &str) -> String {
        tracing::warn!(reason, "no guest from a file");
        let reason = reason.lines().next().unwrap_or_default();
        if let Ok(key) = key(boot) {
            // At the worst the next boot tries in vain, too.
            let _ = fs::write(self.directory.join(format!("{key}.given-up")), reason);
            let _ = fs::remove_file(self.directory.join(format!("{key}.state")));
            let _ = fs::remove_file(self.directory.join(format!("{key}.part")));
        }
        reason.to_owned()
    }

    /// Leaves room for one more.
    fn forget_the_oldest(&self) -> io::Result<()> {
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

/// Why such a guest is not worth a file, or cannot be had from one.
fn unsuitable(boot: Boot<'_>) -> Option<String> {
    let usual =
        Machine { cgroup: boot.machine.cgroup, scan: boot.machine.scan, ..Machine::default() };
    if !boot.environment.restore {
        Some("VM_HARNESS_RESTORE is no".to_owned())
    } else if boot.accelerator != Accelerator::Tcg {
        Some(format!("a guest under {} is never kept", boot.accelerator))
    } else if *boot.machine != usual {
        Some("a machine of its own".to_owned())
    } else {
        None
    }
}

/// The name of the file that such a guest has.
fn key(boot: Boot<'_>) -> io::Result<String> {
    let file = |name: &str| PathBuf::from(format!("/{name}"));
    let files = Files {
        kernel: file("kernel"),
        initramfs: file("initramfs"),
        qmp: file("qmp"),
        monitor: file("monitor"),
        console: file("console"),
        vhost: file("vhost"),
        share: file("share"),
        stderr: file("stderr"),
    };
    let qemu = in_path(&boot.environment.qemu);
    let start = Start::Restore(Path::new("/state"));
    let command = boot.machine.command(&qemu, boot.accelerator, "name", &files, start);
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

/// The file that a program's name stands for; the name itself where there is none.
fn in_path(program: &Path) -> PathBuf {
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
mod tests {
    use super::*;
    use crate::{Cgroup, Environment, Protocol, SharedDirectory};

    /// A directory with an image and a QEMU, which nobody starts.
    struct Scene {
        directory: tempfile::TempDir,
        environment: Environment,
    }

    impl Scene {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            for name in ["vmlinux", "initramfs.cpio", "qemu"] {
                fs::write(directory.path().join(name), name).unwrap();
            }
            let mut environment = Environment::from_variables();
            environment.qemu = directory.path().join("qemu");
            environment.restore = true;
            Self { directory, environment }
        }

        fn boot<'a>(&'a self, machine: &'a Machine) -> Boot<'a> {
            let image = self.directory.path();
            Boot { environment: &self.environment, image, machine, accelerator: Accelerator::Tcg }
        }

        fn boots(&self) -> SavedBoots {
            SavedBoots::new(self.directory.path())
        }
    }

    #[test]
    fn one_makes_a_file_and_the_others_find_it_when_it_is_whole() {
        let (scene, machine) = (Scene::new(), Machine::default());
        let (boots, boot) = (scene.boots(), scene.boot(&machine));
        let Found::Nothing(save) = boots.find(boot) else {
            panic!("it is for the first to make it")
        };
        fs::write(save.part(), "half").unwrap();
        let other = boots.find(boot);
        assert!(
            matches!(&other, Found::Unsuitable(reason) if reason.contains("another process")),
            "{other:?}"
        );
        let file = save.done().unwrap();
        assert!(matches!(boots.find(boot), Found::Saved(found) if found == file));
    }

    #[test]
    fn half_a_file_of_one_that_was_killed_is_not_used() {
        let (scene, machine) = (Scene::new(), Machine::default());
        let (boots, boot) = (scene.boots(), scene.boot(&machine));
        let Found::Nothing(save) = boots.find(boot) else {
            panic!("it is for the first to make it")
        };
        fs::write(save.part(), "half").unwrap();
        drop(save);
        assert!(matches!(boots.find(boot), Found::Nothing(_)), "the next one makes it");
    }

    #[test]
    fn every_input_gives_the_file_another_name() {
        let (scene, machine) = (Scene::new(), Machine::default());
        let mut names = vec![key(scene.boot(&machine)).unwrap()];
        assert_eq!(key(scene.boot(&machine)).unwrap(), names[0]);
        names.push(key(scene.boot(&Machine { cgroup: Cgroup::V1, ..Machine::default() })).unwrap());
        for name in ["vmlinux", "initramfs.cpio", "qemu"] {
            fs::write(scene.directory.path().join(name), "changed").unwrap();
            names.push(key(scene.boot(&machine)).unwrap());
        }
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count, "{names:?}");
    }

    #[test]
    fn kind_of_guest_that_cannot_be_saved_is_booted_until_somebody_removes_the_note() {
        let (scene, machine) = (Scene::new(), Machine::default());
        let (boots, boot) = (scene.boots(), scene.boot(&machine));
        drop(boots.find(boot));
        boots.give_up(boot, "no hot-plug\nand the console's last lines");
        let found = boots.find(boot);
        let Found::Unsuitable(reason) = found else { panic!("{found:?}") };
        assert!(reason.starts_with("no hot-plug; remove "), "{reason}");
        let note = reason.split_whitespace().find(|word| word.ends_with(".given-up")).unwrap();
        fs::remove_file(note).unwrap();
        assert!(matches!(boots.find(boot), Found::Nothing(_)));
    }

    #[test]
    fn only_the_newest_files_are_kept() {
        let scene = Scene::new();
        let boots = scene.boots();
        fs::create_dir_all(&boots.directory).unwrap();
        for number in 0..KEPT + 3 {
            let file = File::create(boots.directory.join(format!("{number:02}.state"))).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(number as u64)).unwrap();
        }
        fs::write(boots.directory.join("other.lock"), "").unwrap();
        boots.forget_the_oldest().unwrap();
        let left = fs::read_dir(&boots.directory).unwrap().count();
        assert_eq!(left, KEPT - 1 + 1, "one file less than may be kept, and the lock");
        assert!(
            !boots.directory.join("03.state").exists() && boots.directory.join("04.state").exists()
        );
    }

    #[test]
    fn guests_that_few_tests_want_and_those_under_kvm_are_booted() {
        let (mut scene, machine) = (Scene::new(), Machine::default());
        assert_eq!(unsuitable(scene.boot(&machine)), None);
        let kvm = Boot { accelerator: Accelerator::Kvm, ..scene.boot(&machine) };
        assert!(unsuitable(kvm).is_some());
        assert!(unsuitable(scene.boot(&Machine { memory: 768, ..Machine::default() })).is_some());
        let kernel_parameters = vec!["quiet".to_owned()];
        assert!(
            unsuitable(scene.boot(&Machine { kernel_parameters, ..Machine::default() })).is_some()
        );
        let share = SharedDirectory { path: "/srv".into(), protocol: Protocol::NineP };
        assert!(
            unsuitable(scene.boot(&Machine { share: Some(share), ..Machine::default() })).is_some()
        );
        scene.environment.restore = false;
        assert!(unsuitable(scene.boot(&machine)).is_some());
    }
}
