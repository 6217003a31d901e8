//! `vm-harness console`: the console of a sandbox's guest, from its boot, followed with
//! [`inotify(7)`](https://man7.org/linux/man-pages/man7/inotify.7.html).

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use vm_harness::{Error, RunningVm, printable};

/// Which sandbox.
#[derive(Debug, Args)]
#[command(before_help = "Example: vm-harness console")]
pub(crate) struct Console {
    /// The run directory that `boot` printed; not needed if there is only one sandbox
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
}

impl Console {
    /// Ends with the sandbox, or by Ctrl-C.
    pub(crate) fn run(&self) -> Result<ExitCode, Error> {
        let vm = RunningVm::find(self.run_dir.as_deref())?;
        let path = vm.console().path().to_owned();
        follow(&path, &mut io::stdout()).map_err(|source| Error::File {
            action: "follow",
            path,
            source,
        })?;
        eprintln!("the sandbox has ended");
        Ok(ExitCode::SUCCESS)
    }
}

/// Copies the contents of a file, and what is appended to it, until it is removed.
fn follow(path: &Path, to: &mut impl io::Write) -> io::Result<()> {
    let watch = Inotify::init(InitFlags::IN_CLOEXEC)?;
    // Removing a file that is still open changes an attribute, its link count, and is no deletion
    // yet.
    watch.add_watch(
        path,
        AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_DELETE_SELF,
    )?;
    let mut file = File::open(path)?;
    let mut bytes = Vec::new();
    loop {
        let exists = path.exists();
        file.read_to_end(&mut bytes)?;
        // The last character may be incomplete.
        let whole = bytes.len() - incomplete(&bytes);
        to.write_all(printable(&String::from_utf8_lossy(&bytes[..whole])).as_bytes())?;
        to.flush()?;
        bytes.drain(..whole);
        if !exists {
            return Ok(());
        }
        watch.read_events()?;
    }
}

/// Returns how many bytes at the end are the beginning of a UTF-8 character.
fn incomplete(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => bytes.len() - error.valid_up_to(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _, sync::mpsc, thread};

    use super::*;

    /// Sends each piece that is written to a channel.
    struct Pieces(mpsc::Sender<String>);

    impl io::Write for Pieces {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let sent = self.0.send(String::from_utf8(bytes.to_vec()).unwrap());
            sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn contents_and_additions_are_shown_until_the_file_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        fs::write(&path, "first\n").unwrap();
        let (sender, pieces) = mpsc::channel();
        let followed = path.clone();
        let following = thread::spawn(move || follow(&followed, &mut Pieces(sender)));
        assert_eq!(pieces.recv().unwrap(), "first\n");
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"sec\xc3").unwrap();
        assert_eq!(pieces.recv().unwrap(), "sec");
        file.write_all(b"\xbcnd\x1b").unwrap();
        assert_eq!(pieces.recv().unwrap(), "ünd\\u{1b}");
        fs::remove_file(&path).unwrap();
        following.join().unwrap().unwrap();
    }

    #[test]
    fn only_an_incomplete_character_is_kept_for_later() {
        assert_eq!(incomplete("aü".as_bytes()), 0);
        assert_eq!(incomplete(&"aü".as_bytes()[..2]), 1);
        assert_eq!(incomplete(b"a\xff"), 0);
    }
}
