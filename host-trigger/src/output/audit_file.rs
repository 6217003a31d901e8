//! The audit log as a regular file. It need not be in good order: a line that an earlier run could
//! not finish is ended first, and a record that does not fit leaves no part of itself.
//!
//! Runs take turns by [`flock(2)`](https://man7.org/linux/man-pages/man2/flock.2.html). Other
//! programs may append without it (`O_APPEND`): what they wrote is never cut off.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::mpsc,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::file_kind;
use crate::Error;

/// The maximum wait for another run that writes its record. A record without its turn is better
/// than none.
const TURN: Duration = Duration::from_secs(1);

/// The file, open for appending.
#[derive(Debug)]
pub(crate) struct AuditFile {
    file: File,
}

impl AuditFile {
    /// Opens or makes the file, without waiting for anything.
    ///
    /// # Errors
    /// It cannot be opened, or is no regular file.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let open = |readable| {
            let mut options = OpenOptions::new();
            options.read(readable).append(true).create(true).mode(0o600);
            options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
        };
        // Without the right to read, a line that is not finished is not noticed.
        let file = open(true).or_else(|e| match e.kind() {
            io::ErrorKind::PermissionDenied => open(false),
            _ => Err(e),
        });
        let file = file.map_err(|e| Error::system("open", path, e))?;
        let kind = file.metadata().map_err(|e| Error::system("fstat", path, e))?.file_type();
        if !kind.is_file() {
            return Err(Error::AuditLog { path: path.to_owned(), kind: file_kind::name(kind) });
        }
        Ok(Self { file })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// It cannot be written; nothing of it is left then, unless another program has appended
    /// something after it meanwhile.
    pub(super) fn append(&self, line: &str) -> io::Result<()> {
        let _turn = self.take_turn();
        let start = if self.is_unfinished() { "\n" } else { "" };
        let text = format!("{start}{line}\n");
        let mut written = 0;
        // One write as a rule, so that lines of several programs do not mix.
        while let Some(rest) = text.as_bytes().get(written..).filter(|rest| !rest.is_empty()) {
            let more = match (&self.file).write(rest) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    written += count;
                    match written == text.len() || self.is_at_end() {
                        true => Ok(()),
                        false => Err(io::Error::other("another program wrote into the record")),
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(()),
                Err(e) => Err(e),
            };
            if let Err(e) = more {
                self.cut_off(written);
                return Err(e);
            }
        }
        Ok(())
    }

    /// Waits until no other run writes its record, for a limited time.
    fn take_turn(&self) -> Option<Flock<File>> {
        let file = self.file.try_clone().ok()?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(turn) => return Some(turn),
            Err((file, Errno::EWOULDBLOCK)) => file,
            Err(_) => return None,
        };
        // flock has no time limit, so a thread waits for it.
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || sender.send(Flock::lock(file, FlockArg::LockExclusive)).is_ok());
        receiver.recv_timeout(TURN).ok()?.ok()
    }

    /// Whether the last line has no end.
    fn is_unfinished(&self) -> bool {
        let mut last = [b'\n'];
        let length = self.file.metadata().map_or(0, |metadata| metadata.len());
        let Some(at) = length.checked_sub(1) else { return false };
        self.file.read_exact_at(&mut last, at).is_ok() && last != [b'\n']
    }

    /// Whether nothing was appended after the last write.
    fn is_at_end(&self) -> bool {
        let length = self.file.metadata().map(|metadata| metadata.len());
        matches!((length, (&self.file).stream_position()), (Ok(end), Ok(at)) if end == at)
    }

    /// Removes the last `count` bytes that were written, if they are the file's last ones.
    fn cut_off(&self, count: usize) {
        if count > 0
            && self.is_at_end()
            && let Ok(end) = (&self.file).stream_position()
        {
            // In vain on a file that only grows (`chattr +a`): the next record ends the line.
            let _ = self.file.set_len(end.saturating_sub(count as u64));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn only_the_end_of_the_file_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let (log, other) = (AuditFile::open(&path).unwrap(), AuditFile::open(&path).unwrap());
        other.append("{}").unwrap();
        (&log.file).write_all(b"{\"part").unwrap();
        assert!(log.is_at_end() && log.is_unfinished());
        log.cut_off(6);
        assert_eq!(text(&path), "{}\n");
        (&log.file).write_all(b"{\"part").unwrap();
        other.append("{}").unwrap();
        log.cut_off(6);
        assert_eq!(text(&path), "{}\n{\"part\n{}\n");
    }

    #[test]
    fn whoever_keeps_the_lock_delays_a_record_for_a_moment_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let log = AuditFile::open(&path).unwrap();
        let other = AuditFile::open(&path).unwrap();
        let turn = other.take_turn().unwrap();
        let start = std::time::Instant::now();
        log.append("{}").unwrap();
        assert!(start.elapsed() < 10 * TURN);
        assert_eq!(text(&path), "{}\n");
        drop(turn);
        assert!(log.take_turn().is_some());
    }
}
