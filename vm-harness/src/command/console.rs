//! `vm-harness console`: what the guest of a sandbox prints, from its boot on and as it comes
//! ([`inotify(7)`](https://man7.org/linux/man-pages/man7/inotify.7.html)).

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use vm_harness::{Error, Held, printable};

/// Whose console.
#[derive(Debug, Args)]
pub(crate) struct Console {
    /// The run directory that `boot` printed; not needed where there is one sandbox alone
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
}

impl Console {
    /// Ends with the sandbox, or by Ctrl-C.
    pub(crate) fn run(&self) -> Result<ExitCode, Error> {
        let held = Held::find(self.run_dir.as_deref())?;
        let path = held.console().path().to_owned();
        follow(&path, &mut io::stdout()).map_err(|source| Error::File {
            action: "follow",
            path,
            source,
        })?;
        eprintln!("the sandbox has ended");
        Ok(ExitCode::SUCCESS)
    }
}

/// Copies what a file has, and what is added to it, until it is removed.
fn follow(path: &Path, to: &mut impl io::Write) -> io::Result<()> {
    let watch = Inotify::init(InitFlags::IN_CLOEXEC)?;
    // A file that somebody has open and that is removed changes its attributes: its count of links.
    watch.add_watch(
        path,
        AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_DELETE_SELF,
    )?;
    let mut file = File::open(path)?;
    let mut bytes = Vec::new();
    loop {
        let is_there = path.exists();
        file.read_to_end(&mut bytes)?;
        // What comes next may begin in the middle of a character.
        let whole = bytes.len() - unfinished(&bytes);
        to.write_all(printable(&String::from_utf8_lossy(&bytes[..whole])).as_bytes())?;
        to.flush()?;
        bytes.drain(..whole);
        if !is_there {
            return Ok(());
        }
        watch.read_events()?;
    }
}

/// How many bytes at the end are the beginning of a character.
fn unfinished(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => bytes.len() - error.valid_up_to(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _, sync::mpsc, thread};

    use super::*;

    /// Tells of each piece that is written.
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
    fn what_is_there_and_what_comes_is_shown_until_the_file_goes() {
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
    fn a_character_that_is_not_whole_waits_and_what_is_none_does_not() {
        assert_eq!(unfinished("aü".as_bytes()), 0);
        assert_eq!(unfinished(&"aü".as_bytes()[..2]), 1);
        assert_eq!(unfinished(b"a\xff"), 0);
    }
}
