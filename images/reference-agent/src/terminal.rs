//! A process's terminal ([`pty(7)`](https://man7.org/linux/man-pages/man7/pty.7.html)): crun
//! creates it in the container's own devpts and sends the agent's end over a [console
//! socket](https://github.com/opencontainers/runc/blob/main/docs/terminals.md#detached-new-terminal).

use std::{
    fs, io,
    io::IoSliceMut,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::{Path, PathBuf},
};

use rustix::{
    io::ioctl_fionbio,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    termios::{Winsize, tcsetwinsize},
};
use tokio::net::unix::pipe::{Receiver, Sender};

use crate::error::{Error, at};

/// The socket on which crun delivers one terminal. It is removed when the value is dropped.
#[derive(Debug)]
pub(crate) struct Console {
    listener: UnixListener,
    path: PathBuf,
}

/// The agent's end of a terminal.
#[derive(Debug)]
pub(crate) struct Terminal(OwnedFd);

impl Console {
    /// Listens in the bundle `directory`.
    pub(crate) fn listen(directory: &Path) -> Result<Self, Error> {
        let path = directory.join("console.sock");
        let listener =
            UnixListener::bind(&path).map_err(at(format!("listening on {}", path.display())))?;
        Ok(Self { listener, path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the terminal that crun has delivered before it ended.
    pub(crate) fn received(&self) -> Result<Terminal, Error> {
        self.receive()
            .map(Terminal)
            .map_err(at(format!("receiving a terminal on {}", self.path.display())))
    }

    fn receive(&self) -> io::Result<OwnedFd> {
        // crun has ended: it sends nothing any more.
        self.listener.set_nonblocking(true)?;
        let (stream, _) = self.listener.accept()?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 256];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        recvmsg(&stream, &mut [IoSliceMut::new(&mut name)], &mut control, flags)?;
        let terminal = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        terminal.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::error!("removing {}: {error}", self.path.display());
        }
    }
}

impl Terminal {
    /// Returns its input and its output. tokio has a type only for pipes; what it does with a pipe
    /// is also correct for a terminal.
    pub(crate) fn streams(&self) -> Result<(Sender, Receiver), Error> {
        let streams = || {
            ioctl_fionbio(&self.0, true)?;
            let input = Sender::from_owned_fd_unchecked(self.0.try_clone()?)?;
            Ok((input, Receiver::from_owned_fd_unchecked(self.0.try_clone()?)?))
        };
        streams().map_err(at("using a terminal"))
    }

    /// Sets its size. Its foreground processes get SIGWINCH.
    pub(crate) fn resize(&self, rows: u32, columns: u32) -> Result<(), Error> {
        let number = |cells| u16::try_from(cells).unwrap_or(u16::MAX);
        let size =
            Winsize { ws_row: number(rows), ws_col: number(columns), ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.0, size).map_err(|errno| at("setting a terminal's size")(errno.into()))
    }
}

#[cfg(test)]
mod tests {
    use std::{io::IoSlice, os::fd::AsFd as _, os::unix::net::UnixStream};

    use rustix::{
        net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
        pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
        termios::tcgetwinsize,
    };

    use super::*;
    use crate::streams::{Output, Streams};

    /// Opens both ends of a new terminal.
    fn pair() -> (OwnedFd, fs::File) {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
        let theirs = fs::File::options().read(true).write(true).open(name).unwrap();
        (ours, theirs)
    }

    #[tokio::test]
    async fn a_terminal_is_received_used_resized_and_ends_when_its_last_user_closes_it() {
        let directory = tempfile::tempdir().unwrap();
        let console = Console::listen(directory.path()).unwrap();
        let (ours, mut theirs) = pair();
        let stream = UnixStream::connect(console.path()).unwrap();
        let descriptors = [ours.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        sendmsg(&stream, &[IoSlice::new(b"pts")], &mut control, SendFlags::empty()).unwrap();
        drop(ours);
        let streams = Streams::terminal(console.received().unwrap()).unwrap();

        io::Write::write_all(&mut theirs, b"hello\n").unwrap();
        assert_eq!(streams.read(Output::Stdout, 100).await.unwrap(), b"hello\r\n");
        // As in kata-agent, either read gets the output.
        io::Write::write_all(&mut theirs, b"more\n").unwrap();
        assert_eq!(streams.read(Output::Stderr, 100).await.unwrap(), b"more\r\n");
        streams.write(b"typed\n").await.unwrap();
        let mut line = [0; 6];
        io::Read::read_exact(&mut theirs, &mut line).unwrap();
        assert_eq!(&line, b"typed\n");
        streams.resize(40, 100).unwrap();
        let size = tcgetwinsize(&theirs).unwrap();
        assert_eq!((size.ws_row, size.ws_col), (40, 100));
        drop(theirs);
        // The echo of the input comes first.
        assert_eq!(streams.read(Output::Stdout, 100).await.unwrap(), b"typed\r\n");
        let end = streams.read(Output::Stdout, 100).await.unwrap_err();
        assert!(end.to_string().contains("os error 5"), "{end}");
        streams.close_stdin();
        let closed = streams.read(Output::Stdout, 100).await;
        assert!(matches!(closed, Err(Error::Closed("output"))), "{closed:?}");
        let path = console.path().to_owned();
        drop(console);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_without_a_terminal_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let console = Console::listen(directory.path()).unwrap();
        assert!(matches!(console.received(), Err(Error::Io { .. })));
    }
}
