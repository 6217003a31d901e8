//! For an auditor: a line of JSON about each operation, whatever came of it, to
//! [syslog](https://man7.org/linux/man-pages/man3/syslog.3.html) (the facility `authpriv`, over the
//! socket `/dev/log`) or to a file.
//!
//! It tells who (user, login user, the process that called), what (the command line), which
//! volumes, and the result. An operation on several volumes has a line for each. A run that is
//! killed leaves none here; the guest's agent has its own.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::{
        fs::{FileTypeExt, OpenOptionsExt},
        net::UnixDatagram,
    },
    path::Path,
    sync::Mutex,
    time::SystemTime,
};

use nix::unistd::{getppid, getuid};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{Error, output, printable::printable};

/// Where it goes if nothing else is said.
const SYSLOG: &str = "/dev/log";
/// `authpriv`, as syslog counts facilities.
const FACILITY: u8 = 10 << 3;
/// The most words of the command line that are noted, of several hundred characters each.
const MOST_WORDS: usize = 64;
/// Of a volume, in the words of the program's own output; what is not there is left out.
const OF_A_VOLUME: [&str; 12] = [
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
    "was",
    "did",
];

/// Where the lines go.
#[derive(Debug)]
pub(crate) enum Audit {
    /// There is no syslog, and nobody named a place.
    Nowhere,
    Syslog(UnixDatagram),
    File(Mutex<File>),
}

impl Audit {
    /// Opens `path`, or syslog where there is one.
    ///
    /// # Errors
    /// The path was named, and cannot be used: nothing is done then that nobody could audit.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, Error> {
        let Some(path) = path else {
            return Ok(syslog(Path::new(SYSLOG)).map_or(Self::Nowhere, Self::Syslog));
        };
        if fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
            return syslog(path).map(Self::Syslog).map_err(|e| Error::system("connect", path, e));
        }
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        file.map(|file| Self::File(Mutex::new(file))).map_err(|e| Error::system("open", path, e))
    }

    /// Notes what a command tells, `document`, and with which status.
    pub(crate) fn note(&self, document: &impl Serialize, status: u8) {
        if matches!(self, Self::Nowhere) {
            return;
        }
        let document = serde_json::to_value(document).unwrap_or_default();
        for line in lines(&document, status) {
            if let Err(e) = self.write(&line, severity(&line, status)) {
                output::note(&format!("the line for the auditor could not be written: {e}"));
            }
        }
    }

    fn write(&self, line: &Value, severity: u8) -> io::Result<()> {
        match self {
            Self::Nowhere => Ok(()),
            Self::Syslog(socket) => {
                let priority = FACILITY | severity;
                socket
                    .send(
                        format!("<{priority}>ecr-runtime[{}]: {line}", std::process::id())
                            .as_bytes(),
                    )
                    .map(drop)
            }
            // One write: lines of several runs do not mix.
            Self::File(file) => {
                let mut file = file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                file.write_all(format!("{line}\n").as_bytes())
            }
        }
    }
}

/// A syslog that does not read any more must not hold up the work.
fn syslog(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Warning, notice or information.
fn severity(line: &Value, status: u8) -> u8 {
    let looks = matches!(line["command"].as_str(), Some("list" | "inspect" | "stats" | "check"));
    match status {
        0 if looks => 6,
        0 => 5,
        _ => 4,
    }
}

fn lines(document: &Value, status: u8) -> Vec<Value> {
    let mut line = caller();
    line.insert("command".into(), document["command"].clone());
    line.insert("sandbox".into(), document["volumes"][0]["sandbox"].clone());
    let error = &document["error"];
    line.insert(
        "result".into(),
        if error.is_null() { document["result"].clone() } else { "failed".into() },
    );
    line.insert("exit_code".into(), status.into());
    if !error.is_null() {
        line.insert("reason".into(), error["reason"].clone());
        line.insert("message".into(), error["message"].clone());
    }
    line.retain(|_, value| !value.is_null());
    let volumes = document["volumes"].as_array().filter(|volumes| !volumes.is_empty());
    let Some(volumes) = volumes else { return vec![Value::Object(line)] };
    let with = |volume: &Value| {
        let fields = OF_A_VOLUME.iter().filter(|field| !volume[**field].is_null());
        let volume: Map<_, _> =
            fields.map(|field| ((*field).to_owned(), volume[*field].clone())).collect();
        let mut line = line.clone();
        line.insert("volume".into(), volume.into());
        Value::Object(line)
    };
    volumes.iter().map(with).collect()
}

/// Who, and what was asked for.
fn caller() -> Map<String, Value> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let parent = getppid();
    let parent_name = fs::read_to_string(format!("/proc/{parent}/comm")).unwrap_or_default();
    let login = fs::read_to_string("/proc/self/loginuid")
        .ok()
        .and_then(|text| text.trim_end().parse().ok());
    let words = std::env::args_os().skip(1).take(MOST_WORDS);
    let caller = json!({
        "time": since.as_secs_f64(),
        "pid": std::process::id(),
        "uid": getuid().as_raw(),
        // The highest number says that nobody has logged in.
        "login_uid": login.filter(|&uid: &u32| uid != u32::MAX),
        "caller": format!("{} ({parent})", printable(parent_name.trim_end())),
        "arguments": words.map(|word| printable(&word.to_string_lossy())).collect::<Vec<_>>(),
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
    fn each_volume_has_a_line_of_its_own() {
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
    fn a_failure_has_a_line_with_its_reason() {
        let document =
            json!({"error": {"reason": "denied", "exit_code": 11, "message": "x", "hint": null}});
        let lines = lines(&document, 11);
        assert_eq!(
            (lines.len(), &lines[0]["reason"], &lines[0]["result"]),
            (1, &"denied".into(), &"failed".into())
        );
        assert_eq!(severity(&lines[0], 11), 4);
        assert!(lines[0]["arguments"].is_array() && lines[0]["uid"].is_u64());
    }

    #[test]
    fn a_place_that_was_named_and_cannot_be_used_is_an_error() {
        assert!(matches!(
            Audit::open(Some(Path::new("/nonexistent/log"))),
            Err(Error::System { .. })
        ));
    }
}
