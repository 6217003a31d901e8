//! Audit records: a line of JSON about each operation, whether it succeeds or fails, to
//! [syslog](https://man7.org/linux/man-pages/man3/syslog.3.html) (facility `authpriv`, by the
//! socket `/dev/log`) or to a file.
//!
//! A record says who called (user, login user, calling process), the command line, the volumes and
//! the result. An operation on several volumes has a record for each. A run that is killed leaves
//! none; the guest's agent has its own.

use std::{
    fs, io,
    os::unix::{fs::FileTypeExt, net::UnixDatagram},
    path::Path,
    time::SystemTime,
};

use nix::unistd::{getppid, getuid};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{audit_file::AuditFile, file_kind};
use crate::{Error, diagnostics, sanitize::sanitize};

/// The default syslog socket.
const SYSLOG: &str = "/dev/log";
/// The facility `authpriv`.
const FACILITY: u8 = 10 << 3;
/// The maximum number of recorded arguments; each has a bounded length.
const MAX_ARGUMENTS: usize = 64;
/// The fields of a volume that are recorded, by their names in the JSON output; absent ones are
/// left out.
const VOLUME_FIELDS: [&str; 13] = [
    "id",
    "container",
    "device_path",
    "source",
    "source_device",
    "size",
    "read_only",
    "shared",
    "guest_device",
    "device_number",
    "state",
    "cause",
    "action",
];

/// Where audit records go.
#[derive(Debug)]
pub(crate) enum Audit {
    /// There is no syslog, and no file or socket was named.
    Disabled,
    Syslog(UnixDatagram),
    File(AuditFile),
}

impl Audit {
    /// Opens `path`, or syslog where there is one.
    ///
    /// # Errors
    /// `path` was given and cannot be used: then nothing is done, because it could not be audited.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, Error> {
        let Some(path) = path else {
            return Ok(syslog(Path::new(SYSLOG)).map_or(Self::Disabled, Self::Syslog));
        };
        // To open a device may already do something to it, and a FIFO may have no reader.
        match fs::metadata(path).map(|metadata| metadata.file_type()) {
            Ok(kind) if kind.is_socket() => {
                syslog(path).map(Self::Syslog).map_err(|e| Error::system("connect", path, e))
            }
            Ok(kind) if !kind.is_file() => {
                Err(Error::AuditLog { path: path.to_owned(), kind: file_kind::name(kind) })
            }
            _ => AuditFile::open(path).map(Self::File),
        }
    }

    /// Records what a command printed, `document`, and its exit status.
    pub(crate) fn record(&self, document: &impl Serialize, status: u8) {
        if matches!(self, Self::Disabled) {
            return;
        }
        let document = serde_json::to_value(document).unwrap_or_default();
        for line in lines(&document, status) {
            if let Err(e) = self.write(&line, severity(&line, status)) {
                diagnostics::line(&format!("warning: the audit record could not be written: {e}"));
            }
        }
    }

    fn write(&self, line: &Value, severity: u8) -> io::Result<()> {
        match self {
            Self::Disabled => Ok(()),
            Self::Syslog(socket) => {
                let priority = FACILITY | severity;
                socket
                    .send(
                        format!("<{priority}>ecr-runtime[{}]: {line}", std::process::id())
                            .as_bytes(),
                    )
                    .map(drop)
            }
            Self::File(file) => file.append(&line.to_string()),
        }
    }
}

/// Connects to syslog. A syslog that no longer reads must not delay the work.
fn syslog(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The syslog severity: warning, notice or informational.
fn severity(line: &Value, status: u8) -> u8 {
    let is_query = matches!(line["command"].as_str(), Some("list" | "inspect" | "stats" | "check"));
    match status {
        0 if is_query => 6,
        0 => 5,
        _ => 4,
    }
}

fn lines(document: &Value, status: u8) -> Vec<Value> {
    let mut line = caller();
    line.insert("command".into(), document["command"].clone());
    line.insert("sandbox".into(), document["volumes"][0]["sandbox"].clone());
    let error = &document["error"];
    line.insert("result".into(), document["result"].clone());
    line.insert("dry_run".into(), document["dry_run"].clone());
    line.insert("exit_code".into(), status.into());
    if !error.is_null() {
        line.insert("reason".into(), error["reason"].clone());
        line.insert("message".into(), error["message"].clone());
    }
    line.retain(|_, value| !value.is_null());
    let volumes = document["volumes"].as_array().filter(|volumes| !volumes.is_empty());
    let Some(volumes) = volumes else { return vec![Value::Object(line)] };
    let with = |volume: &Value| {
        let fields = VOLUME_FIELDS.iter().filter(|field| !volume[**field].is_null());
        let volume: Map<_, _> =
            fields.map(|field| ((*field).to_owned(), volume[*field].clone())).collect();
        let mut line = line.clone();
        line.insert("volume".into(), volume.into());
        Value::Object(line)
    };
    volumes.iter().map(with).collect()
}

/// Who called, and with which arguments.
fn caller() -> Map<String, Value> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let parent = getppid();
    let parent_name = fs::read(format!("/proc/{parent}/comm")).unwrap_or_default();
    let parent_name = String::from_utf8_lossy(&parent_name);
    let login = fs::read("/proc/self/loginuid").ok();
    let login = login.and_then(|text| str::from_utf8(text.trim_ascii()).ok()?.parse().ok());
    let words = std::env::args_os().skip(1).take(MAX_ARGUMENTS);
    let caller = json!({
        "time": since.as_secs_f64(),
        "pid": std::process::id(),
        "uid": getuid().as_raw(),
        // The highest number means that no user has logged in.
        "login_uid": login.filter(|&uid: &u32| uid != u32::MAX),
        "caller": format!("{} ({parent})", sanitize(parent_name.trim_end())),
        "arguments": words.map(|word| sanitize(&word.to_string_lossy())).collect::<Vec<_>>(),
    });
    match caller {
        Value::Object(caller) => caller,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_volume_has_its_own_record() {
        let document = json!({"command": "hot-plug", "result": "attached", "volumes": [
            {"id": "a", "sandbox": "s1", "source_device": "/dev/sdb", "scsi": {}}, {"id": "b", "sandbox": "s1"}]});
        let lines = lines(&document, 0);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["volume"], json!({"id": "a", "source_device": "/dev/sdb"}));
        assert_eq!(
            (&lines[1]["volume"]["id"], &lines[1]["result"]),
            (&"b".into(), &"attached".into())
        );
        assert_eq!((&lines[0]["sandbox"], severity(&lines[0], 0)), (&"s1".into(), 5));
    }

    #[test]
    fn a_failure_is_recorded_with_its_reason() {
        let document = json!({"command": "hot-plug", "result": "error", "error": {"reason": "denied", "exit_code": 11, "message": "x", "remedy": "y"}});
        let lines = lines(&document, 11);
        assert_eq!(
            (lines.len(), &lines[0]["reason"], &lines[0]["result"]),
            (1, &"denied".into(), &"error".into())
        );
        assert_eq!(severity(&lines[0], 11), 4);
        assert!(lines[0]["arguments"].is_array() && lines[0]["uid"].is_u64());
    }

    #[test]
    fn a_given_path_that_cannot_be_used_is_an_error() {
        assert!(matches!(
            Audit::open(Some(Path::new("/nonexistent/log"))),
            Err(Error::System { .. })
        ));
    }
}
