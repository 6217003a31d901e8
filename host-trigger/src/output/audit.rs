//! Audit records: lines of JSON about each operation, whether it succeeds or fails, to
//! [syslog](https://man7.org/linux/man-pages/man3/syslog.3.html) (facility `authpriv`, by the
//! socket `/dev/log`) or to a file.
//!
//! A command that may change something has a record when it begins, and each has records when it
//! ends. Where the records must go was named (`--audit-log`), a command whose beginning cannot be
//! recorded is refused. The default syslog is no veto: every user can fill its queue. A record that
//! it does not take in time goes to the kernel's log.

use std::{cell::Cell, fs, io, os::unix::fs::FileTypeExt, path::Path};

use serde::Serialize;
use serde_json::Value;

pub(crate) use super::audit_record::{Origin, Requested, RequestedVolume};
use super::{
    audit_file::AuditFile,
    audit_record, file_kind,
    syslog::{self, Syslog},
};
use crate::{Error, diagnostics};

/// The default syslog socket.
const SYSLOG: &str = "/dev/log";

/// The audit records of one run.
#[derive(Debug)]
pub(crate) struct Audit {
    sink: Sink,
    /// Joins the records of a run.
    run: String,
    /// The kernel's log was used, and this was said.
    diverted: Cell<bool>,
    /// For whom the command runs, in the process of another program.
    origin: Option<Origin>,
}

#[derive(Debug)]
enum Sink {
    /// There is no syslog, and no file or socket was named.
    None(io::Error),
    /// The default syslog.
    Default(Syslog),
    /// The socket that was named.
    Socket(Syslog),
    /// The file that was named.
    File(AuditFile),
}

impl Audit {
    /// Opens `path`, or syslog where there is one.
    ///
    /// # Errors
    /// `path` was given and cannot be used: then nothing is done, because it could not be audited.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, Error> {
        let sink = match path {
            Some(path) => named(path)?,
            None => Syslog::connect(Path::new(SYSLOG)).map_or_else(Sink::None, Sink::Default),
        };
        let run = format!("{:016x}", fastrand::u64(..));
        Ok(Self { sink, run, diverted: Cell::new(false), origin: None })
    }

    /// The records of a command that runs in the process of another program.
    pub(crate) fn with_origin(self, origin: Origin) -> Self {
        Self { origin: Some(origin), ..self }
    }

    /// Whether there is anything that records can go to.
    ///
    /// # Errors
    /// There is no syslog.
    pub(crate) fn check(self) -> Result<(), Error> {
        match self.sink {
            Sink::None(e) => Err(Error::system("connect", Path::new(SYSLOG), e)),
            Sink::Default(_) | Sink::Socket(_) | Sink::File(_) => Ok(()),
        }
    }

    /// Records that a command begins which may change something.
    ///
    /// # Errors
    /// A file or socket was named and does not take the record.
    pub(crate) fn begin(&self, command: &str, requested: &Requested<'_>) -> Result<(), Error> {
        // Another program asks once (`check`).
        if let (Sink::None(e), None) = (&self.sink, &self.origin) {
            diagnostics::line(&format!(
                "warning: {SYSLOG} cannot be used ({e}): this command is not audited (--audit-log \
                 names a file)"
            ));
        }
        let line = audit_record::begin(command, requested, &self.run, self.origin.as_ref());
        match (self.write(&line, syslog::NOTICE), &self.sink) {
            (Err(source), Sink::File(_) | Sink::Socket(_)) => Err(Error::NotAudited { source }),
            (Err(e), _) => {
                diagnostics::line(&format!("warning: the audit record could not be written: {e}"));
                Ok(())
            }
            (Ok(()), _) => Ok(()),
        }
    }

    /// Records what a command printed, `document`, and its exit status.
    ///
    /// # Errors
    /// A record is lost.
    pub(crate) fn end(&self, document: &impl Serialize, status: u8) -> Result<(), Error> {
        if matches!(self.sink, Sink::None(_)) {
            return Ok(());
        }
        let document = serde_json::to_value(document).unwrap_or_default();
        let mut result = Ok(());
        // A record that is lost does not keep the others from being written.
        for line in audit_record::end(&document, status, &self.run, self.origin.as_ref()) {
            let written = self.write(&line, audit_record::severity(&line, status));
            result = result.and(written);
        }
        result.map_err(|source| Error::AuditLost { source })
    }

    fn write(&self, line: &Value, severity: u8) -> io::Result<()> {
        match &self.sink {
            Sink::None(_) => Ok(()),
            Sink::File(file) => file.append(&line.to_string()),
            Sink::Socket(socket) => socket.send(line, severity),
            Sink::Default(socket) => {
                socket.send(line, severity).or_else(|e| self.divert(line, severity, &e))
            }
        }
    }

    /// Writes the record to the kernel's log, as syslog did not take it because of `error`.
    fn divert(&self, line: &Value, severity: u8, error: &io::Error) -> io::Result<()> {
        syslog::to_kernel_log(line, severity).map_err(|e| {
            io::Error::other(format!("{SYSLOG}: {error}; {}: {e}", syslog::KERNEL_LOG))
        })?;
        if !self.diverted.replace(true) {
            diagnostics::line(&format!(
                "warning: {SYSLOG} does not take the audit record ({error}): it is in {}",
                syslog::KERNEL_LOG
            ));
        }
        Ok(())
    }
}

/// Opens a file or socket that was named.
fn named(path: &Path) -> Result<Sink, Error> {
    // To open a device may already do something to it, and a FIFO may have no reader.
    match fs::metadata(path).map(|metadata| metadata.file_type()) {
        Ok(kind) if kind.is_socket() => {
            Syslog::connect(path).map(Sink::Socket).map_err(|e| Error::system("connect", path, e))
        }
        Ok(kind) if !kind.is_file() => {
            Err(Error::AuditLog { path: path.to_owned(), kind: file_kind::name(kind) })
        }
        _ => AuditFile::open(path).map(Sink::File),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_path_that_cannot_be_used_is_an_error() {
        assert!(matches!(
            Audit::open(Some(Path::new("/nonexistent/log"))),
            Err(Error::System { .. })
        ));
    }
}
