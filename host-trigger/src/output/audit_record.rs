//! The text of audit records: who called (user, login user, calling process), the command line, the
//! volumes and the result. An operation on several volumes has a record for each at its end.

use std::{ffi::OsString, fs, time::SystemTime};

use nix::unistd::{getppid, getuid};
use serde_json::{Map, Value, json};

use super::syslog::NOTICE;
use crate::{path_text, sanitize::sanitize};

/// The maximum number of recorded arguments and requested volumes; each has a bounded length.
const MAX_ARGUMENTS: usize = 64;
/// The fields of a volume that are recorded, by their names in the JSON output; absent ones are
/// left out.
const VOLUME_FIELDS: [&str; 18] = [
    "id",
    "container",
    "pod",
    "device_path",
    "mount_path",
    "fs_type",
    "mount_options",
    "fs_group",
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

/// For whom a command runs in the process of another program.
#[derive(Debug)]
pub(crate) struct Origin {
    /// The words of the command, in place of those of the process.
    pub(crate) words: Vec<OsString>,
    /// More fields of each record.
    pub(crate) fields: Vec<(&'static str, String)>,
}

/// What a command was asked for. IDs may be shortened.
#[derive(Debug, Default)]
pub struct Requested<'a> {
    pub(crate) sandbox: Option<&'a str>,
    /// With a pod, the container's name in it.
    pub(crate) container: Option<&'a str>,
    pub(crate) pod: Option<String>,
    pub(crate) volumes: Vec<RequestedVolume>,
}

/// One volume that a command was asked for, as far as it was named.
#[derive(Debug, Default)]
pub(crate) struct RequestedVolume {
    pub(crate) id: Option<String>,
    pub(crate) source: Option<String>,
    pub(crate) device_path: Option<String>,
    pub(crate) mount_path: Option<String>,
}

/// The record of a command that begins.
pub(super) fn begin(
    command: &str,
    requested: &Requested<'_>,
    run: &str,
    origin: Option<&Origin>,
) -> Value {
    let mut line = caller("begin", run, origin);
    line.insert("command".into(), command.into());
    for (name, id) in [
        ("sandbox", requested.sandbox),
        ("pod", requested.pod.as_deref()),
        ("container", requested.container),
    ] {
        line.extend(id.map(|id| (name.to_owned(), sanitize(id).into())));
    }
    let volumes = requested.volumes.iter().take(MAX_ARGUMENTS).map(|volume| {
        let RequestedVolume { id, source, device_path, mount_path } = volume;
        let parts = [
            ("id", id),
            ("source", source),
            ("device_path", device_path),
            ("mount_path", mount_path),
        ];
        let parts = parts.into_iter().filter_map(|(name, text)| Some((name, text.as_ref()?)));
        Value::Object(parts.map(|(name, text)| (name.to_owned(), sanitize(text).into())).collect())
    });
    let volumes: Vec<_> = volumes.collect();
    if !volumes.is_empty() {
        line.insert("requested".into(), volumes.into());
    }
    line.retain(|_, value| !value.is_null());
    Value::Object(line)
}

/// The records of a command that ended, from what it printed and its exit status.
pub(super) fn end(document: &Value, status: u8, run: &str, origin: Option<&Origin>) -> Vec<Value> {
    let mut line = caller("end", run, origin);
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

/// The syslog severity of a record at the end: warning, notice or informational.
pub(super) fn severity(line: &Value, status: u8) -> u8 {
    let is_query = matches!(
        line["command"].as_str(),
        Some("list" | "inspect" | "stats" | "check" | "node status")
    );
    match status {
        0 if is_query => 6,
        0 => NOTICE,
        _ => 4,
    }
}

/// Returns a record as text of at most `limit` bytes. Of a longer one, `cut` names what is left
/// out.
pub(super) fn shortened(record: &Value, limit: usize) -> String {
    let mut record = record.clone();
    let mut cut = Vec::new();
    for field in
        ["arguments", "message", "requested", "volume", "container", "pod", "sandbox", "caller"]
    {
        let text = record.to_string();
        if text.len() <= limit {
            return text;
        }
        let Some(fields) = record.as_object_mut() else { break };
        let Some(value) = fields.remove(field) else { continue };
        cut.push(field);
        // The volume is still known by its ID.
        if let Some(id) = value.get("id").and_then(Value::as_str) {
            fields.insert("volume_id".into(), sanitize(id).into());
        }
        fields.insert("cut".into(), json!(cut));
    }
    let mut text = record.to_string();
    text.truncate(text.floor_char_boundary(limit));
    text
}

/// Who called, and with which arguments.
fn caller(phase: &str, run: &str, origin: Option<&Origin>) -> Map<String, Value> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let parent = getppid();
    let text = |file: String| {
        let bytes = fs::read(file).unwrap_or_default();
        String::from_utf8_lossy(&bytes).trim_end().to_owned()
    };
    let parent_name = text(format!("/proc/{parent}/comm"));
    let login = text("/proc/self/loginuid".to_owned()).parse().ok();
    let words = match origin {
        Some(origin) => origin.words.clone(),
        None => std::env::args_os().skip(1).take(MAX_ARGUMENTS).collect(),
    };
    let words = words.into_iter().take(MAX_ARGUMENTS);
    let caller = json!({
        "phase": phase,
        "run": run,
        "time": since.as_secs_f64(),
        "pid": std::process::id(),
        "uid": getuid().as_raw(),
        // The highest number means that no user has logged in.
        "login_uid": login.filter(|&uid: &u32| uid != u32::MAX),
        "caller": format!("{} ({parent})", sanitize(&parent_name)),
        "arguments": words.map(|word| sanitize(&path_text::encode(word))).collect::<Vec<_>>(),
    });
    let mut caller = match caller {
        Value::Object(caller) => caller,
        _ => Map::new(),
    };
    let fields = origin.iter().flat_map(|origin| &origin.fields);
    caller.extend(fields.map(|(name, text)| ((*name).to_owned(), sanitize(text).into())));
    caller
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_volume_has_its_own_record() {
        let document = json!({"command": "hot-plug", "result": "attached", "volumes": [
            {"id": "a", "sandbox": "s1", "source_device": "/dev/sdb", "scsi": {}}, {"id": "b", "sandbox": "s1"}]});
        let lines = end(&document, 0, "r", None);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["volume"], json!({"id": "a", "source_device": "/dev/sdb"}));
        assert_eq!(
            (&lines[1]["volume"]["id"], &lines[1]["result"]),
            (&"b".into(), &"attached".into())
        );
        assert_eq!((&lines[0]["sandbox"], severity(&lines[0], 0)), (&"s1".into(), 5));
        assert_eq!((&lines[1]["phase"], &lines[1]["run"]), (&"end".into(), &"r".into()));
    }

    #[test]
    fn a_failure_is_recorded_with_its_reason() {
        let document = json!({"command": "hot-plug", "result": "error", "error": {"reason": "denied", "exit_code": 11, "message": "x", "remedy": "y"}});
        let lines = end(&document, 11, "r", None);
        assert_eq!(
            (lines.len(), &lines[0]["reason"], &lines[0]["result"]),
            (1, &"denied".into(), &"error".into())
        );
        assert_eq!(severity(&lines[0], 11), 4);
        assert!(lines[0]["arguments"].is_array() && lines[0]["uid"].is_u64());
    }

    #[test]
    fn the_beginning_says_what_was_requested() {
        let volume = RequestedVolume {
            source: Some("/dev/a\n".into()),
            device_path: Some("/dev/xvda".into()),
            ..RequestedVolume::default()
        };
        let requested = Requested {
            sandbox: Some("s"),
            pod: Some("shop/db-0".into()),
            container: None,
            volumes: vec![volume],
        };
        let line = begin("hot-plug", &requested, "r", None);
        assert_eq!((&line["phase"], &line["sandbox"]), (&"begin".into(), &"s".into()));
        assert_eq!(line["pod"], "shop/db-0");
        assert_eq!(line["requested"], json!([{"source": "/dev/a\\n", "device_path": "/dev/xvda"}]));
        assert!(line.get("container").is_none() && line.get("exit_code").is_none());
    }

    #[test]
    fn a_record_is_shortened_until_it_fits() {
        let long = "ä".repeat(500);
        let record = json!({"command": "hot-plug", "arguments": [long], "volume": {"id": "v", "source": long}, "exit_code": 0});
        let text = shortened(&record, 900);
        assert_eq!(
            serde_json::from_str::<Value>(&text).unwrap(),
            json!({"command": "hot-plug", "exit_code": 0, "volume_id": "v", "cut": ["arguments", "volume"]})
        );
        assert_eq!(shortened(&record, 1 << 20), record.to_string());
        for limit in 0..200 {
            assert!(shortened(&json!({"other": long}), limit).len() <= limit);
        }
    }
}
