//! A [syslog](https://man7.org/linux/man-pages/man3/syslog.3.html) socket, and the
//! [kernel's log](https://www.kernel.org/doc/Documentation/ABI/testing/dev-kmsg).
//!
//! Every user can send to syslog, so its queue may be full. There is one short wait for it in a
//! run.

use std::{
    cell::Cell,
    fs::OpenOptions,
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::{fs::OpenOptionsExt, net::UnixDatagram},
    },
    path::Path,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

use super::audit_record;

/// The severity of a success.
pub(super) const NOTICE: u8 = 5;
/// The device of the kernel's log.
pub(super) const KERNEL_LOG: &str = "/dev/kmsg";
/// The facility `authpriv`.
const FACILITY: u8 = 10 << 3;
/// How long one run waits for the queue of syslog, in all.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest line of the kernel's log has somewhat more bytes.
const KERNEL_LINE: usize = 900;
/// What every syslog takes; some cut longer lines.
const SHORT_LINE: usize = 8 << 10;

/// A connection to syslog.
#[derive(Debug)]
pub(super) struct Syslog {
    socket: UnixDatagram,
    patience: Cell<Duration>,
}

impl Syslog {
    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, patience: Cell::new(PATIENCE) })
    }

    /// Sends a record. If the queue is full, this waits for the rest of [`PATIENCE`].
    ///
    /// # Errors
    /// The queue stays full, or nothing reads it any more.
    pub(super) fn send(&self, record: &Value, severity: u8) -> io::Result<()> {
        match self.send_line(&line(&record.to_string(), severity)) {
            // It is longer than any datagram may be.
            Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE) => {
                self.send_line(&line(&audit_record::shortened(record, SHORT_LINE), severity))
            }
            sent => sent,
        }
    }

    fn send_line(&self, line: &str) -> io::Result<()> {
        loop {
            match self.socket.send(line.as_bytes()) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait()?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits until the queue may have room.
    fn wait(&self) -> io::Result<()> {
        let left = self.patience.get();
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "its queue is full"));
        }
        let began = Instant::now();
        // A wait of less than a millisecond must not become none: it would be repeated at once.
        let limit = PollTimeout::try_from(left.max(Duration::from_millis(1)));
        let polled = poll(
            &mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)],
            limit.unwrap_or(PollTimeout::MAX),
        );
        self.patience.set(left.saturating_sub(began.elapsed()));
        match polled {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Writes a record to the kernel's log, shortened to what a line there may have.
pub(super) fn to_kernel_log(record: &Value, severity: u8) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut log =
        options.append(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open(KERNEL_LOG)?;
    let prefix = line("", severity);
    let record = audit_record::shortened(record, KERNEL_LINE.saturating_sub(prefix.len()));
    // One write is one line.
    log.write_all(format!("{prefix}{record}\n").as_bytes())
}

fn line(text: &str, severity: u8) -> String {
    format!("<{}>ecr-runtime[{}]: {text}", FACILITY | severity, std::process::id())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use serde_json::json;

    use super::*;

    fn fill(syslog: &Syslog) {
        while syslog.socket.send(b"x").is_ok() {}
    }

    #[test]
    fn a_full_queue_is_waited_for_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let _unread = UnixDatagram::bind(&path).unwrap();
        let syslog = Syslog::connect(&path).unwrap();
        fill(&syslog);
        let began = Instant::now();
        for _ in 0..10 {
            let sent = syslog.send(&json!({}), NOTICE).unwrap_err();
            assert_eq!(sent.kind(), io::ErrorKind::TimedOut);
        }
        let took = began.elapsed();
        assert!(took >= PATIENCE && took < 4 * PATIENCE, "{took:?}");
    }

    #[test]
    fn a_record_is_sent_as_soon_as_there_is_room() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let reader = UnixDatagram::bind(&path).unwrap();
        let syslog = Syslog::connect(&path).unwrap();
        fill(&syslog);
        let (sender, receiver) = mpsc::channel();
        let reading = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while reader.recv(&mut buffer).is_ok_and(|_| !buffer.starts_with(b"<")) {}
            sender.send(()).unwrap();
        });
        syslog.send(&json!({}), NOTICE).unwrap();
        receiver.recv_timeout(Duration::from_secs(30)).unwrap();
        reading.join().unwrap();
    }

    #[test]
    fn a_record_beyond_the_longest_datagram_is_shortened() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let reader = UnixDatagram::bind(&path).unwrap();
        let syslog = Syslog::connect(&path).unwrap();
        let record = json!({"command": "list", "arguments": ["x".repeat(4 << 20)]});
        syslog.send(&record, NOTICE).unwrap();
        let mut buffer = vec![0; 1 << 16];
        let length = reader.recv(&mut buffer).unwrap();
        let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
        assert!(text.ends_with(r#"{"command":"list","cut":["arguments"]}"#), "{text}");
    }
}
