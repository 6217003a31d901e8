//! A process in a container that waits for a file to arrive with a file system: `observer await
//! FILE` prints `waits`, then `read` once it has read the file, and `gone` once it has gone. It
//! wakes when something is made in the directory above the mount point
//! ([inotify(7)](https://man7.org/linux/man-pages/man7/inotify.7.html)), and when the mounts of its
//! namespace change, which inotify does not report (`POLLPRI` of
//! [/proc/PID/mountinfo](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html)).

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write},
    os::fd::AsFd as _,
    path::Path,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

/// Waits for `file`, and for its end, again and again.
///
/// # Errors
/// The directory above the mount point does not exist, or the output is closed.
pub(crate) fn wait(file: &Path, mut output: impl Write) -> io::Result<()> {
    let mut changes = Changes::of(file)?;
    writeln!(output, "waits")?;
    output.flush()?;
    let mut present = false;
    loop {
        if fs::read(file).is_ok() != present {
            present = !present;
            writeln!(output, "{}", if present { "read" } else { "gone" })?;
            output.flush()?;
        }
        changes.wait()?;
    }
}

struct Changes {
    inotify: Inotify,
    mounts: File,
}

impl Changes {
    fn of(file: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let above = file.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
        inotify.add_watch(above, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE)?;
        Ok(Self { inotify, mounts: File::open("/proc/self/mountinfo")? })
    }

    fn wait(&mut self) -> io::Result<()> {
        let mut polled = [
            PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.mounts.as_fd(), PollFlags::POLLPRI),
        ];
        poll(&mut polled, PollTimeout::NONE)?;
        let _ = self.inotify.read_events();
        self.mounts.rewind()?;
        self.mounts.read_to_end(&mut Vec::new()).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_that_arrives_and_goes_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("place");
        let (mut reader, writer) = io::pipe().unwrap();
        let file = place.join("file");
        std::thread::spawn(move || wait(&file, writer));
        let mut says = |expected: &str| {
            let mut line = vec![0; expected.len()];
            reader.read_exact(&mut line).unwrap();
            assert_eq!(String::from_utf8_lossy(&line), expected);
        };
        says("waits\n");
        let made = directory.path().join("made");
        fs::create_dir(&made).unwrap();
        fs::write(made.join("file"), "arrives").unwrap();
        // A rename is what a mount would be: the directory comes with its file.
        fs::rename(&made, &place).unwrap();
        fs::write(directory.path().join("other"), "").unwrap();
        says("read\n");
        fs::remove_dir_all(&place).unwrap();
        says("gone\n");
    }
}
