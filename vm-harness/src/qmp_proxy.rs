//! A proxy between `ecr-runtime` and QEMU that records all traffic as JSON lines.
//!
//! It relays bytes as they come, and the descriptors that travel with them ([`SCM_RIGHTS`](https://man7.org/linux/man-pages/man7/unix.7.html)).

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Instant,
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, recvmsg, sendmsg, shutdown};
use serde_json::{Value, json};

use crate::Error;

/// A recording proxy. Its socket is removed when it is dropped.
#[derive(Debug)]
pub struct QmpProxy {
    directory: tempfile::TempDir,
    record: Arc<Record>,
}

#[derive(Debug)]
struct Record {
    start: Instant,
    lines: Mutex<Vec<Value>>,
}

impl QmpProxy {
    /// Listens beside QEMU's socket `qmp`; each client gets a connection of its own to QEMU.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start(qmp: &Path) -> Result<Self, Error> {
        let base = Path::new("/tmp");
        let directory = tempfile::Builder::new()
            .prefix("vmh-")
            .tempdir_in(base)
            .map_err(Error::file("make a directory in", base))?;
        let path = directory.path().join("qmp.sock");
        let listener = UnixListener::bind(&path).map_err(Error::file("listen on", path))?;
        let record = Arc::new(Record { start: Instant::now(), lines: Mutex::default() });
        let (qmp, recording) = (qmp.to_owned(), Arc::clone(&record));
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(qemu) = UnixStream::connect(&qmp) else { continue };
                relay_both_ways(client, qemu, &recording);
            }
        });
        Ok(Self { directory, record })
    }

    /// What to name in `--qmp`.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("qmp.sock")
    }

    /// Everything so far: `{"at_us", "from": "client"|"qemu", "line"}` each.
    pub fn lines(&self) -> Vec<Value> {
        self.record.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same as JSON lines, for a file.
    pub fn json_lines(&self) -> String {
        self.lines().iter().map(|line| format!("{line}\n")).collect()
    }

    /// The names of the commands so far, in order.
    pub fn commands(&self) -> Vec<String> {
        let from_client = self.lines().into_iter().filter(|line| line["from"] == "client");
        from_client.filter_map(|line| line["line"]["execute"].as_str().map(str::to_owned)).collect()
    }
}

impl Record {
    fn add(&self, from: &str, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        if text.trim().is_empty() {
            return;
        }
        let parsed = serde_json::from_str::<Value>(&text).unwrap_or_else(|_| Value::from(text.trim()));
        let at = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push(json!({ "at_us": at, "from": from, "line": parsed }));
    }
}

fn relay_both_ways(client: UnixStream, qemu: UnixStream, record: &Arc<Record>) {
    let client = Arc::new(client);
    let qemu = Arc::new(qemu);
    for (name, from, to) in [("client", &client, &qemu), ("qemu", &qemu, &client)] {
        let (from, to, record) = (Arc::clone(from), Arc::clone(to), Arc::clone(record));
        // The threads end with the connection.
        thread::spawn(move || {
            // An error is the end of a connection like any other.
            let _ = relay(name, &from, &to, &record);
            let _ = shutdown(to.as_raw_fd(), Shutdown::Both);
            let _ = shutdown(from.as_raw_fd(), Shutdown::Both);
        });
    }
}

fn relay(name: &str, from: &UnixStream, to: &UnixStream, record: &Record) -> io::Result<()> {
    let mut buffer = [0; 64 * 1024];
    let mut line = Vec::new();
    loop {
        let (length, descriptors) = receive(from, &mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        // Recorded first: whoever has got an answer finds it, and its question, in the record.
        for &byte in &buffer[..length] {
            line.push(byte);
            if byte == b'\n' {
                record.add(name, &mem::take(&mut line));
            }
        }
        send(to, &buffer[..length], &descriptors)?;
    }
}

fn receive(from: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; 8]);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(from.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            descriptors.extend(received.into_iter().map(owned));
        }
    }
    Ok((message.bytes, descriptors))
}

#[expect(unsafe_code, reason = "nix returns received descriptors as bare numbers")]
fn owned(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for this process, and nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

fn send(to: &UnixStream, mut bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
    let numbers: Vec<RawFd> = descriptors.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let mut control: &[ControlMessage<'_>] = if numbers.is_empty() { &[] } else { &rights };
    while !bytes.is_empty() {
        let sent =
            sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
        bytes = &bytes[sent..];
        control = &[];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};

    use super::*;

    #[test]
    fn lines_and_descriptors_reach_the_other_side_and_are_recorded() {
        let directory = tempfile::tempdir().unwrap();
        let qmp = directory.path().join("qemu.sock");
        let listener = UnixListener::bind(&qmp).unwrap();
        let proxy = QmpProxy::start(&qmp).unwrap();
        let qemu = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 256];
            let (length, descriptors) = receive(&stream, &mut buffer).unwrap();
            (&stream).write_all(b"{\"return\": {}}\r\n").unwrap();
            let mut contents = String::new();
            std::fs::File::from(descriptors.into_iter().next().unwrap())
                .read_to_string(&mut contents)
                .unwrap();
            (buffer[..length].to_vec(), contents)
        });
        let passed = directory.path().join("passed");
        std::fs::write(&passed, "contents").unwrap();
        let client = UnixStream::connect(proxy.path()).unwrap();
        let file = OwnedFd::from(std::fs::File::open(&passed).unwrap());
        send(&client, b"{\"execute\":\"add-fd\"}\n", &[file]).unwrap();
        let mut answer = String::new();
        BufReader::new(&client).read_line(&mut answer).unwrap();
        assert_eq!(answer, "{\"return\": {}}\r\n");
        let (line, contents) = qemu.join().unwrap();
        assert_eq!(
            (line.as_slice(), contents.as_str()),
            (b"{\"execute\":\"add-fd\"}\n".as_slice(), "contents")
        );
        assert_eq!(proxy.commands(), ["add-fd"]);
        let lines = proxy.json_lines();
        let recorded: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&recorded[0]["from"], &recorded[1]["from"]), (&json!("client"), &json!("qemu")));
    }
}
