//! One line for the administrator: to syslog, which is the journal on most nodes, or to standard
//! error, which Kata's shim logs.

use std::{
    io::Write as _,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
};

use crate::sanitize::sanitize;

const SYSLOG: &str = "/dev/log";
/// The facility `daemon` ([`syslog(3)`](https://man7.org/linux/man-pages/man3/syslog.3.html)).
const FACILITY: u8 = 3 << 3;
const ERROR: u8 = 3;
const WARNING: u8 = 4;

/// Where lines go.
#[derive(Debug)]
pub(super) struct Journal {
    syslog: PathBuf,
}

impl Journal {
    pub(super) fn new() -> Self {
        Self { syslog: SYSLOG.into() }
    }

    /// QEMU starts, without something.
    pub(super) fn warning(&self, text: &str) {
        let text = sanitize(text);
        if send(&self.syslog, WARNING, &text).is_err() {
            to_standard_error(&text);
        }
    }

    /// QEMU cannot be executed: whoever started it reads standard error, too.
    pub(super) fn error(&self, text: &str) {
        let text = sanitize(text);
        // On failure standard error has the line.
        let _ = send(&self.syslog, ERROR, &text);
        to_standard_error(&text);
    }
}

/// Sends a line without waiting: every user can fill syslog's queue, and a pod must not wait.
fn send(syslog: &Path, severity: u8, text: &str) -> std::io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect(syslog)?;
    let line = format!("<{}>ecr-qemu[{}]: {text}", FACILITY | severity, std::process::id());
    socket.send(line.as_bytes()).map(drop)
}

fn to_standard_error(text: &str) {
    // It may be closed.
    let _ = writeln!(std::io::stderr(), "ecr-qemu: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_to_syslog_with_its_severity() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let reader = UnixDatagram::bind(&path).unwrap();
        Journal { syslog: path }.warning("no monitor\n<0>kernel: forged");
        let mut buffer = [0; 256];
        let length = reader.recv(&mut buffer).unwrap();
        let line = String::from_utf8(buffer[..length].to_vec()).unwrap();
        let process = std::process::id();
        assert!(line.starts_with(&format!("<28>ecr-qemu[{process}]: no monitor")), "{line}");
        assert!(!line.contains('\n'), "{line}");
    }

    #[test]
    fn a_full_queue_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let _unread = UnixDatagram::bind(&path).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        sender.set_nonblocking(true).unwrap();
        while sender.send_to(b"x", &path).is_ok() {}
        assert!(send(&path, WARNING, "one more").is_err());
    }
}
