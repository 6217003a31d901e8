//! What QEMU's [arguments](https://www.qemu.org/docs/master/system/invocation.html), as Kata's
//! runtimes write them, say of the sandbox.
//!
//! | | Go runtime | Rust runtime |
//! |---|---|---|
//! | name | `-name sandbox-SID[,debug-threads=on]`; of a VM of the factory the VM's ID | `-name sandbox-SID` |
//! | its directory | of `-pidfile D/pid`, and of console.sock | `D/root/console.sock` |
//! | a second monitor | `-qmp unix:path=D/extra-monitor.sock,…` (debug mode) | – |
//!
//! D is `/run/vc/vm/SID` or `/run/kata/SID`; with a rootless VMM it is below `/run/user/UID`.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::PathBuf,
};

use super::monitor::SOCKET;
use crate::kata::layout::check_id;

/// The ID of our character device.
pub(super) const MONITOR_ID: &str = "ecr-monitor";
/// The files of Kata's that are in a sandbox's directory, or in `root` below it.
const FILES: [&str; 3] = ["pid", "console.sock", "qmp.sock"];

/// QEMU's arguments, without its name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arguments<'a> {
    words: &'a [OsString],
}

/// A monitor beside the first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SecondMonitor {
    /// QEMU makes none.
    None,
    /// QEMU makes one for QMP.
    Qmp,
    /// QEMU makes something else at the path of our socket.
    Other,
}

impl<'a> Arguments<'a> {
    pub(super) fn of(words: &'a [OsString]) -> Self {
        Self { words }
    }

    /// The ID in the name of the VM; `None` if it is not a sandbox's.
    pub(super) fn sandbox(self) -> Option<String> {
        // As with QEMU, the last name holds.
        let mut names = self
            .values_of(&["name"])
            .flat_map(fields)
            .filter_map(|(key, value)| (key == b"guest" || key.is_empty()).then_some(value));
        let name = names.next_back()?;
        let id = str::from_utf8(name.strip_prefix(b"sandbox-")?).ok()?;
        check_id("sandbox", id).ok()?;
        Some(id.to_owned())
    }

    /// The directories of the sandbox that the paths in the arguments show.
    pub(super) fn directories(self, sandbox: &str) -> Vec<PathBuf> {
        let pid_files = self.values_of(&["pidfile"]).map(|file| PathBuf::from(file.to_owned()));
        let sockets = self.sockets().filter(|path| path.is_absolute());
        let mut found = Vec::new();
        for path in pid_files.chain(sockets) {
            let (Some(name), Some(mut directory)) = (path.file_name(), path.parent()) else {
                continue;
            };
            if directory.file_name() == Some(OsStr::new("root")) {
                directory = directory.parent().unwrap_or(directory);
            }
            let is_known = FILES.iter().any(|file| name == *file);
            let is_its = directory.file_name() == Some(OsStr::new(sandbox));
            if is_known && is_its && !found.iter().any(|one| one == directory) {
                found.push(directory.to_owned());
            }
        }
        found
    }

    /// The monitor that QEMU makes at our socket's path, or has of ours already.
    pub(super) fn second_monitor(self) -> SecondMonitor {
        let is_named = |path: PathBuf| path.file_name() == Some(OsStr::new(SOCKET));
        let is_ours = |value| {
            fields(value).any(|(key, value)| key == b"id" && value == MONITOR_ID.as_bytes())
        };
        if self.monitors(&["qmp", "qmp-pretty"]).any(is_named)
            || self.values_of(&["chardev"]).any(is_ours)
        {
            SecondMonitor::Qmp
        } else if self.sockets().any(is_named) {
            SecondMonitor::Other
        } else {
            SecondMonitor::None
        }
    }

    /// The paths of unix sockets, of monitors and of character devices.
    fn sockets(self) -> impl Iterator<Item = PathBuf> + use<'a> {
        let path = |value| fields(value).find_map(|(key, path)| (key == b"path").then_some(path));
        let devices = self.values_of(&["chardev"]).filter_map(path);
        let devices = devices.map(|path| PathBuf::from(OsString::from_vec(path)));
        self.monitors(&["qmp", "qmp-pretty", "monitor"]).chain(devices)
    }

    /// The paths of the unix sockets of these options.
    fn monitors(self, options: &'static [&'static str]) -> impl Iterator<Item = PathBuf> + use<'a> {
        self.values_of(options).filter_map(|value| {
            let address = OsStr::from_bytes(value.as_bytes().strip_prefix(b"unix:")?);
            let path = fields(address)
                .find_map(|(key, path)| (key.is_empty() || key == b"path").then_some(path))?;
            Some(PathBuf::from(OsString::from_vec(path)))
        })
    }

    /// The values of these options. QEMU takes one dash or two.
    fn values_of(
        self,
        options: &'static [&'static str],
    ) -> impl DoubleEndedIterator<Item = &'a OsStr> + use<'a> {
        self.words.windows(2).filter_map(move |pair| {
            let option = pair[0].as_bytes().strip_prefix(b"-")?;
            let option = option.strip_prefix(b"-").unwrap_or(option);
            options.iter().any(|name| name.as_bytes() == option).then_some(pair[1].as_os_str())
        })
    }
}

/// The fields `key=value` of an option's value; one without a key has an empty one. A comma in a
/// value is written twice.
fn fields(value: &OsStr) -> impl DoubleEndedIterator<Item = (Vec<u8>, Vec<u8>)> + use<> {
    let mut texts = vec![Vec::new()];
    let mut bytes = value.as_bytes().iter().peekable();
    while let Some(&byte) = bytes.next() {
        if byte == b',' && bytes.next_if(|&&next| next == b',').is_none() {
            texts.push(Vec::new());
        } else if let Some(text) = texts.last_mut() {
            text.push(byte);
        }
    }
    texts.into_iter().map(|text| match text.iter().position(|&byte| byte == b'=') {
        Some(equals) => (text[..equals].to_vec(), text[equals + 1..].to_vec()),
        None => (Vec::new(), text),
    })
}

#[cfg(test)]
#[path = "arguments_tests.rs"]
mod tests;
