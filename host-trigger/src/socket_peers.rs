//! Is another client connected to a listening unix socket? Read from
//! [`/proc/net/unix`](https://man7.org/linux/man-pages/man5/proc_pid_net.5.html).
//!
//! The server's end of a connection carries the path that the listener was bound to. A connection that still waits in the
//! listener's queue is shown as connecting (state 02), one that the server has accepted as connected (03): QEMU's monitor
//! accepts one client at a time, so an accepted one while we wait for the greeting is somebody else. The table shows the
//! reader's network namespace, and an end belongs to the namespace of the client that connected, so that the listener's own
//! (a sandbox has one) is looked at as well.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Is a client connected to `socket` whose connection the server has accepted? `server` is the process that listens.
pub(crate) fn another_client(socket: &Path, server: Option<i32>) -> bool {
    let tables = ["/proc/net/unix".to_owned(), format!("/proc/{}/net/unix", server.unwrap_or(0))];
    let directory = PathBuf::from(format!("/proc/{}/cwd", server.unwrap_or(0)));
    tables
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .any(|table| accepted(&table).any(|bound| same_file(&directory.join(bound), socket)))
}

/// The paths of server ends that are connected.
fn accepted(table: &str) -> impl Iterator<Item = &str> {
    table.lines().skip(1).filter_map(|line| {
        // Num RefCount Protocol Flags Type St Inode Path
        let mut fields = line.split_ascii_whitespace();
        let (flags, _type, state) = (fields.nth(3)?, fields.next()?, fields.next()?);
        let path = line.split_once(fields.next()?)?.1.trim_start();
        (flags == "00000000" && state == "03" && !path.is_empty() && !path.starts_with('@')).then_some(path)
    })
}

fn same_file(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn only_an_accepted_client_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("monitor");
        let listener = UnixListener::bind(&path).unwrap();
        let _queued = UnixStream::connect(&path).unwrap();
        assert!(!another_client(&path, None));
        let _accepted = listener.accept().unwrap();
        assert!(another_client(&path, None));
        assert!(!another_client(&directory.path().join("other"), None));
    }

    #[test]
    fn paths_with_spaces_are_whole() {
        let table = "Num\n0000: 00000003 00000000 00000000 0001 03 4711 /a b/c\n0000: 00000002 00000000 00010000 0001 01 4712 /l\n";
        assert_eq!(accepted(table).collect::<Vec<_>>(), ["/a b/c"]);
    }
}
