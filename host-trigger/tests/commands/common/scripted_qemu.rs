//! A hostile program in QEMU's place: it speaks as much QMP as a test needs, and counts the
//! descriptors that it gets.

use std::{
    io::{IoSliceMut, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::{Arc, Mutex},
};

use nix::{
    cmsg_space,
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
};
use serde_json::Value;

const GREETING: &str = "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 2, \"minor\": 0, \"major\": 10}, \"package\": \"\"}, \"capabilities\": []}}\r\n";

/// What it got so far.
#[derive(Debug, Default)]
pub struct Received {
    pub connections: usize,
    pub commands: Vec<Value>,
    pub descriptors: Vec<OwnedFd>,
}

/// The program. It ends with the test.
#[derive(Debug, Clone)]
pub struct ScriptedQemu(Arc<Mutex<Received>>);

impl ScriptedQemu {
    /// Listens at `path`. It accepts the capabilities, and answers each later command by `answer`,
    /// which gets the command's name, its ID as JSON, and the connection.
    pub fn listen(
        path: &Path,
        answer: impl Fn(&str, &str, &mut UnixStream) + Send + 'static,
    ) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let received = Arc::new(Mutex::new(Received::default()));
        let this = Self(received.clone());
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                received.lock().unwrap().connections += 1;
                // The client may have gone at any time.
                let _ = stream.write_all(GREETING.as_bytes());
                while let Some(line) = read_line(&stream, &received) {
                    let Ok(command) = serde_json::from_str::<Value>(&line) else { continue };
                    let (name, id) = (command["execute"].clone(), command["id"].to_string());
                    received.lock().unwrap().commands.push(command);
                    match name.as_str().unwrap() {
                        "qmp_capabilities" => reply(&mut stream, "{}", &id),
                        name => answer(name, &id, &mut stream),
                    }
                }
            }
        });
        this
    }

    pub fn received(&self) -> std::sync::MutexGuard<'_, Received> {
        self.0.lock().unwrap()
    }
}

/// Sends the reply `value` to the command `id`.
pub fn reply(stream: &mut UnixStream, value: &str, id: &str) {
    let _ = stream.write_all(format!("{{\"return\": {value}, \"id\": {id}}}\r\n").as_bytes());
}

/// Reads a line byte by byte, with the descriptors that come with it.
fn read_line(stream: &UnixStream, received: &Mutex<Received>) -> Option<String> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let (mut byte, mut space) = ([0], cmsg_space!([i32; 8]));
        let mut buffers = [IoSliceMut::new(&mut byte)];
        let got = recvmsg::<()>(
            stream.as_raw_fd(),
            &mut buffers,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )
        .ok()?;
        for message in got.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(numbers) = message {
                received.lock().unwrap().descriptors.extend(numbers.into_iter().map(own));
            }
        }
        if got.bytes == 0 {
            return None;
        }
        line.push(byte[0]);
    }
    String::from_utf8(line).ok()
}

fn own(number: i32) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: the kernel has just made the descriptor for this process.
    #[expect(unsafe_code, reason = "a received descriptor is a number")]
    unsafe {
        OwnedFd::from_raw_fd(number)
    }
}
