//! Detects that a listening unix socket serves another client while ours waits. The source is
//! [`/proc/net/unix`](https://man7.org/linux/man-pages/man5/proc_pid_net.5.html).
//!
//! The server's end of a connection carries the path that the listener was bound to. A connection
//! that still waits in the listener's queue is shown as connecting (state 02), one that the server
//! has accepted as connected (03). QEMU's monitor accepts one client at a time: if one connection
//! is accepted and another one waits, the accepted one belongs to another client. If none waits,
//! ours was accepted and the server is merely silent. The table shows the network namespace of its
//! reader, and an end belongs to the namespace of the client that connected. Therefore the table of
//! the listener's namespace (a sandbox has its own) is read, too. Every user can bind a socket to a
//! path of any bytes.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

/// The state of a connection that the server has not accepted yet.
const CONNECTING: &[u8] = b"02";
/// The state of a connection that the server has accepted.
const CONNECTED: &[u8] = b"03";

/// Whether the server of `socket` has a client while ours waits to be accepted. `server` is the
/// process that listens.
pub(crate) fn another_client(socket: &Path, server: Option<i32>) -> bool {
    let tables = ["/proc/net/unix".to_owned(), format!("/proc/{}/net/unix", server.unwrap_or(0))];
    let tables = tables.map(|table| fs::read(table).unwrap_or_default());
    let server = PathBuf::from(format!("/proc/{}", server.unwrap_or(0)));
    let any = |state| {
        let mut ends = tables.iter().flat_map(|table| server_ends(table, state));
        ends.any(|bound| {
            // A server with a path that is too long for an address binds by a descriptor of its
            // own.
            let bound = match Path::new(bound).strip_prefix("/proc/self") {
                Ok(below) => server.join(below),
                Err(_) => server.join("cwd").join(bound),
            };
            same_file(&bound, socket)
        })
    };
    any(CONNECTED) && any(CONNECTING)
}

/// Returns the paths of the server ends in the state `wanted`.
fn server_ends<'a>(table: &'a [u8], wanted: &[u8]) -> impl Iterator<Item = &'a OsStr> {
    table.split(|&byte| byte == b'\n').skip(1).filter_map(move |line| {
        // Num RefCount Protocol Flags Type St Inode Path
        let (mut fields, mut rest) = ([&b""[..]; 7], line);
        for field in &mut fields {
            rest = rest.trim_ascii_start();
            let end = rest.iter().position(|&byte| byte == b' ')?;
            (*field, rest) = (&rest[..end], &rest[end + 1..]);
        }
        let is_path = !rest.is_empty() && !rest.starts_with(b"@");
        (fields[3] == b"00000000" && fields[5] == wanted && is_path)
            .then_some(OsStr::from_bytes(rest))
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
    fn another_client_is_reported_only_if_one_is_served_while_one_waits() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(OsStr::from_bytes(b"monitor\xff"));
        let listener = UnixListener::bind(&path).unwrap();
        let _first = UnixStream::connect(&path).unwrap();
        assert!(!another_client(&path, None), "our client waits, and no client is served");
        let _accepted = listener.accept().unwrap();
        assert!(!another_client(&path, None), "our client was accepted, and the server is silent");
        let _second = UnixStream::connect(&path).unwrap();
        assert!(another_client(&path, None));
        assert!(!another_client(&directory.path().join("other"), None));
    }

    #[test]
    fn a_path_with_spaces_is_read_to_its_end() {
        let table = b"Num\n0000: 00000003 00000000 00000000 0001 03 4711 a b/c 4711\n0000: 00000002 00000000 00010000 0001 01 4712 /l\n";
        assert_eq!(server_ends(table, CONNECTED).collect::<Vec<_>>(), ["a b/c 4711"]);
    }
}
