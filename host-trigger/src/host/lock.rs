//! The lock of a sandbox: only one run at a time works on it. The lock is
//! [`flock(2)`](https://man7.org/linux/man-pages/man2/flock.2.html) on the sandbox's directory. It
//! needs no file of its own and ends with the process.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, BufRead, BufReader},
    os::unix::fs::{DirBuilderExt as _, MetadataExt},
    path::Path,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::stat::makedev,
};
use tokio::sync::oneshot;

use super::{
    holders::Holder,
    search::{self, Search},
};
use crate::{Deadline, Error};

/// How long the holder of a lock is looked for that was not released in time.
const HOLDER_TIME: Duration = Duration::from_millis(500);

/// The lock. It is released when this is dropped.
#[derive(Debug)]
pub(crate) struct SandboxLock {
    lock: Flock<File>,
}

impl SandboxLock {
    /// Releases the lock, and keeps the directory open. `None`: it could not be released so.
    pub(crate) fn release(self) -> Option<File> {
        self.lock.unlock().ok()
    }
}

/// Locks `directory`, and waits until its present holder releases it.
///
/// # Errors
/// The directory cannot be opened, or another run holds the lock until `deadline`.
pub(crate) async fn acquire(directory: &Path, deadline: Deadline) -> Result<SandboxLock, Error> {
    let file = File::open(directory).map_err(|e| Error::system("open", directory, e))?;
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(SandboxLock { lock }),
        Err((file, Errno::EWOULDBLOCK)) => file,
        Err((_, errno)) => return Err(Error::system("flock", directory, errno.into())),
    };
    // flock has no time limit, so a thread waits for it. If the deadline passes first, the receiver
    // is gone by then and the thread drops the lock.
    let (sender, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        let mut file = file;
        let locked = loop {
            match Flock::lock(file, FlockArg::LockExclusive) {
                Err((again, Errno::EINTR)) => file = again,
                other => break other,
            }
        };
        let _ = sender.send(locked);
    });
    match deadline.wait(receiver).await {
        Ok(Ok(Ok(lock))) => Ok(SandboxLock { lock }),
        Ok(Ok(Err((_, errno)))) => Err(Error::system("flock", directory, errno.into())),
        Ok(Err(_)) | Err(_) => {
            let holder = holder(directory, Deadline::after(HOLDER_TIME)).await;
            let holder = holder.map(|holder| format!(", {holder},"));
            let what = format!(
                "another run{} that works on {}",
                holder.unwrap_or_default(),
                directory.display()
            );
            Err(Error::TimedOut { what })
        }
    }
}

/// Makes the directory `path`, if it does not exist, and locks it. Root alone can open it, and
/// so hold its lock.
///
/// # Errors
/// It cannot be made, or as [`acquire`].
pub(crate) async fn acquire_private(path: &Path, deadline: Deadline) -> Result<SandboxLock, Error> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(Error::system("mkdir", path, e)),
        _ => acquire(path, deadline).await,
    }
}

/// Returns the present holder of the lock, if it is found before the deadline: the first one that
/// [`/proc/locks`](https://man7.org/linux/man-pages/man5/proc_locks.5.html) lists. Users can have
/// very many other locks.
pub(crate) async fn holder(directory: &Path, deadline: Deadline) -> Option<Holder> {
    find(directory, Side::Holds, deadline).await.map(Holder::process)
}

/// Whether another run waits for the lock, as far as that is found before the deadline.
pub(crate) async fn is_awaited(directory: &Path, deadline: Deadline) -> bool {
    find(directory, Side::Waits, deadline).await.is_some()
}

/// On which side of a lock a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Holds,
    Waits,
}

/// The first process on this side of the lock.
async fn find(directory: &Path, side: Side, deadline: Deadline) -> Option<i32> {
    let directory = directory.to_owned();
    search::run(deadline, move |search| Ok(find_pid(&directory, side, search))).await.ok()?
}

fn find_pid(directory: &Path, side: Side, search: &Search) -> Option<i32> {
    let metadata = fs::metadata(directory).ok()?;
    let locks = BufReader::new(File::open("/proc/locks").ok()?).split(b'\n');
    locks.map_while(|line| line.ok().filter(|_| search.check().is_ok())).find_map(|line| {
        let (found, pid, file) = parse(std::str::from_utf8(&line).ok()?)?;
        let (device, inode) = file.rsplit_once(':')?;
        let same = inode.parse() == Ok(metadata.ino()) && is_device(device, metadata.dev());
        (same && found == side).then_some(pid)
    })
}

/// Parses a line: which side, the process, and the file. A line is one of
///
/// ```text
/// 1: FLOCK ADVISORY WRITE pid major:minor:inode start end
/// 1: -> FLOCK ADVISORY WRITE pid major:minor:inode start end
/// ```
fn parse(line: &str) -> Option<(Side, i32, &str)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (side, kind) = match fields.next()? {
        "->" => (Side::Waits, fields.next()?),
        kind => (Side::Holds, kind),
    };
    let (pid, file) = (fields.nth(2)?, fields.next()?);
    Some((side, pid.parse().ok()?, file)).filter(|_| kind == "FLOCK")
}

/// Whether `text`, such as `fe:01` in hexadecimal, is the device `number`.
fn is_device(text: &str, number: u64) -> bool {
    let parts = text.split_once(':');
    let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
    parts.and_then(|(major, minor)| Some(makedev(hexadecimal(major)?, hexadecimal(minor)?)))
        == Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_run_waits_until_its_deadline() {
        let directory = tempfile::tempdir().unwrap();
        let deadline = Deadline::after(Duration::from_secs(30));
        assert_eq!(holder(directory.path(), deadline).await, None);
        let _first =
            acquire(directory.path(), Deadline::after(Duration::from_secs(1))).await.unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(
            matches!(holder(directory.path(), deadline).await, Some(Holder::Process(pid, _)) if pid == own)
        );
        let second = acquire(directory.path(), Deadline::after(Duration::from_millis(50))).await;
        let Err(Error::TimedOut { what }) = second else { panic!("{second:?}") };
        assert!(what.starts_with(&format!("another run, process {own} (")), "{what}");
        // The thread of the second one still waits.
        assert!(is_awaited(directory.path(), deadline).await);
    }

    #[tokio::test]
    async fn a_second_run_continues_when_the_first_ends() {
        let directory = tempfile::tempdir().unwrap();
        let first =
            acquire(directory.path(), Deadline::after(Duration::from_secs(1))).await.unwrap();
        let second = acquire(directory.path(), Deadline::after(Duration::from_secs(20)));
        let (second, ()) = tokio::join!(second, async { drop(first) });
        second.unwrap();
    }

    #[tokio::test]
    async fn a_directory_that_does_not_exist_is_an_error_of_open() {
        let locked =
            acquire(Path::new("/nonexistent/s1"), Deadline::after(Duration::from_secs(1))).await;
        assert!(matches!(locked, Err(Error::System { call: "open", .. })));
    }
}
