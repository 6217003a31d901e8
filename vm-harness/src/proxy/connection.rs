//! One client's connection through a proxy: two relays, and what the rules do between them.

use std::{
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use nix::sys::socket::{Shutdown, shutdown};

use super::{Fault, Message, Protocol, Shared, Side, descriptors};

/// Between the pieces of a message that is split: the other side gets to read them one by one.
const MOMENT: Duration = Duration::from_millis(1);

/// Both ends, and what is between them.
pub(super) struct Connection<P> {
    number: usize,
    client: Peer,
    server: Peer,
    protocol: Mutex<P>,
    held: Mutex<Vec<Held>>,
    shared: Arc<Shared>,
}

/// One end. Whoever writes a message holds `writing`, so that messages stay whole.
struct Peer {
    stream: UnixStream,
    writing: Mutex<()>,
}

/// Bytes on their way, with the descriptors that belong to them.
struct Parcel {
    from: Side,
    message: Option<Message>,
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// A parcel that goes on when another message has passed.
struct Held {
    until: Message,
    parcel: Parcel,
}

impl<P: Protocol> Connection<P> {
    /// Relays in both directions until one of the peers ends the connection.
    pub(super) fn open(
        number: usize,
        client: UnixStream,
        server: UnixStream,
        shared: &Arc<Shared>,
    ) {
        let peer = |stream| Peer { stream, writing: Mutex::new(()) };
        let connection = Arc::new(Self {
            number,
            client: peer(client),
            server: peer(server),
            protocol: Mutex::default(),
            held: Mutex::default(),
            shared: Arc::clone(shared),
        });
        for from in [Side::Client, Side::Server] {
            let connection = Arc::clone(&connection);
            thread::spawn(move || {
                // An error is the end of a connection like any other.
                let _ = connection.relay(from);
                connection.end();
            });
        }
    }

    fn relay(self: &Arc<Self>, from: Side) -> io::Result<()> {
        let source = match from {
            Side::Client => &self.client,
            Side::Server => &self.server,
        };
        let mut chunk = vec![0; 64 * 1024];
        let (mut bytes, mut descriptors) = (Vec::new(), Vec::new());
        loop {
            let (length, received) = descriptors::receive(&source.stream, &mut chunk)?;
            if length == 0 {
                return self.deliver(&Parcel { from, message: None, bytes, descriptors });
            }
            bytes.extend_from_slice(&chunk[..length]);
            descriptors.extend(received);
            while let Some(parcel) = self.first_of(from, &mut bytes, &mut descriptors) {
                self.pass(parcel)?;
            }
        }
    }

    /// Takes the first whole message off `bytes`, and notes it: whoever has got an answer finds it,
    /// and its question, in the record.
    fn first_of(
        &self,
        from: Side,
        bytes: &mut Vec<u8>,
        descriptors: &mut Vec<OwnedFd>,
    ) -> Option<(Parcel, Option<Fault>)> {
        let taken = lock(&self.protocol).take(from, bytes)?;
        let fault = taken.message.as_ref().and_then(|message| self.shared.rules().befall(message));
        if let Some(shown) = taken.shown {
            self.shared.traffic.add(self.number, from, shown, fault.as_ref());
        }
        let bytes = bytes.drain(..taken.length).collect();
        let descriptors = std::mem::take(descriptors);
        Some((Parcel { from, message: taken.message, bytes, descriptors }, fault))
    }

    fn pass(self: &Arc<Self>, (mut parcel, fault): (Parcel, Option<Fault>)) -> io::Result<()> {
        let Some(fault) = fault else { return self.deliver(&parcel) };
        match fault {
            Fault::Delay(time) => {
                let this = Arc::clone(self);
                thread::spawn(move || {
                    thread::sleep(time);
                    // The connection may have ended meanwhile.
                    let _ = this.deliver(&parcel);
                });
                Ok(())
            }
            Fault::Drop => {
                if parcel.from == Side::Client {
                    lock(&self.protocol).never_came();
                }
                Ok(())
            }
            Fault::Twice => {
                self.deliver(&parcel)?;
                parcel.descriptors.clear();
                self.deliver(&parcel)
            }
            Fault::Cut => Err(io::ErrorKind::ConnectionAborted.into()),
            Fault::CutAfter(length) => {
                parcel.bytes.truncate(length);
                self.deliver(&parcel)?;
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            Fault::Split(length) => self.deliver_in(&parcel, length),
            Fault::Behind(until) => {
                lock(&self.held).push(Held { until, parcel });
                Ok(())
            }
            Fault::Inject(bytes) => {
                let injected =
                    Parcel { from: Side::Server, message: None, bytes, descriptors: Vec::new() };
                self.deliver(&injected)?;
                self.deliver(&parcel)
            }
            Fault::Edit(change) => {
                parcel.bytes = change(&parcel.bytes);
                self.deliver(&parcel)
            }
        }
    }

    fn deliver(&self, parcel: &Parcel) -> io::Result<()> {
        self.deliver_in(parcel, parcel.bytes.len().max(1))
    }

    /// Delivers in pieces of `length` bytes, and then whatever waited for this message.
    fn deliver_in(&self, parcel: &Parcel, length: usize) -> io::Result<()> {
        let to = match parcel.from {
            Side::Client => &self.server,
            Side::Server => &self.client,
        };
        let writing = lock(&to.writing);
        let mut descriptors = parcel.descriptors.as_slice();
        for (number, piece) in parcel.bytes.chunks(length).enumerate() {
            if number > 0 {
                thread::sleep(MOMENT);
            }
            descriptors::send(&to.stream, piece, descriptors)?;
            descriptors = &[];
        }
        drop(writing);
        let Some(message) = &parcel.message else { return Ok(()) };
        let released: Vec<Held> =
            lock(&self.held).extract_if(.., |held| held.until == *message).collect();
        released.iter().try_for_each(|held| self.deliver(&held.parcel))
    }

    fn end(&self) {
        for peer in [&self.client, &self.server] {
            // It may have ended by itself.
            let _ = shutdown(peer.stream.as_raw_fd(), Shutdown::Both);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Read as _, Write as _},
        os::unix::net::UnixListener,
        path::Path,
    };

    use serde_json::json;

    use super::*;
    use crate::proxy::{QmpProxy, Rule, command, event, greeting, reply_to};

    /// A QEMU that greets, answers every command with its own line number, and has an event behind
    /// each answer.
    fn qemu(path: &Path) {
        let listener = UnixListener::bind(path).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                (&stream).write_all(b"{\"QMP\": {}}\r\n").unwrap();
                for (number, line) in
                    BufReader::new(&stream).lines().map_while(Result::ok).enumerate()
                {
                    let name = serde_json::from_str::<serde_json::Value>(&line).unwrap()["execute"]
                        .clone();
                    let answer = format!(
                        "{}\r\n{}\r\n",
                        json!({ "return": number }),
                        json!({ "event": "E", "of": name })
                    );
                    if (&stream).write_all(answer.as_bytes()).is_err() {
                        break;
                    }
                }
            }
        });
    }

    /// What a client hears that says all of `commands` once it is greeted, until there are `lines`
    /// lines, or no more.
    fn heard(
        rules: impl IntoIterator<Item = Rule>,
        commands: &[&str],
        lines: usize,
    ) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qemu.sock");
        qemu(&path);
        let proxy = QmpProxy::start_with(&path, rules).unwrap();
        let client = UnixStream::connect(proxy.path()).unwrap();
        let mut told = BufReader::new(&client).lines().map_while(Result::ok).take(lines);
        let mut heard: Vec<String> = told.next().into_iter().collect();
        for name in commands {
            (&client).write_all(format!("{}\n", json!({ "execute": name })).as_bytes()).unwrap();
        }
        heard.extend(told);
        proxy.assert_all_met();
        heard
    }

    const QMP: &str = r#"{"QMP": {}}"#;
    const FIRST: &str = r#"{"return":0}"#;
    const EVENT: &str = r#"{"event":"E","of":"a"}"#;

    #[test]
    fn each_fault_does_what_it_says() {
        let on = |message, fault| [Rule::on(message, fault)];
        assert_eq!(heard([], &["a"], 3), [QMP, FIRST, EVENT]);
        assert_eq!(heard(on(reply_to("a"), Fault::Drop), &["a"], 2), [QMP, EVENT]);
        assert_eq!(heard(on(event("E"), Fault::Twice), &["a"], 4), [QMP, FIRST, EVENT, EVENT]);
        assert_eq!(
            heard(on(reply_to("a"), Fault::Behind(event("E"))), &["a"], 3),
            [QMP, EVENT, FIRST]
        );
        let late = Fault::Delay(Duration::from_millis(50));
        assert_eq!(heard(on(reply_to("a"), late), &["a"], 3), [QMP, EVENT, FIRST]);
        assert_eq!(heard(on(greeting(), Fault::Split(1)), &["a"], 3), [QMP, FIRST, EVENT]);
        // It is not passed on, so that what comes is the answer to the second.
        assert_eq!(heard(on(command("a"), Fault::Drop), &["a", "b"], 2), [QMP, FIRST]);
        assert_eq!(heard(on(command("a"), Fault::Cut), &["a"], 9), [QMP]);
        assert_eq!(heard(on(reply_to("a"), Fault::CutAfter(5)), &["a"], 9), [QMP, &FIRST[..5]]);
        let event = Fault::inject_event("X", &json!(1));
        let heard_first = r#"{"timestamp":{"seconds":1,"microseconds":2},"event":"X","data":1}"#;
        assert_eq!(heard(on(command("a"), event), &["a"], 3), [QMP, heard_first, FIRST]);
        let other = Fault::edit_json(|command| command["execute"] = json!("z"));
        assert_eq!(heard(on(command("a"), other), &["a"], 3)[2], r#"{"event":"E","of":"z"}"#);
    }

    #[test]
    fn lines_and_descriptors_reach_the_other_side_and_are_recorded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qemu.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let record = directory.path().join("record");
        let rules = [Rule::on(command("add-fd"), Fault::Split(3))];
        let proxy =
            QmpProxy::start_at(&directory.path().join("proxy"), &path, rules, Some(&record))
                .unwrap();
        let qemu = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut byte = [0];
            let (_, descriptors) = descriptors::receive(&stream, &mut byte).unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            (&stream).write_all(b"{\"return\": {}}\r\n").unwrap();
            let mut contents = String::new();
            let passed = descriptors.into_iter().next().unwrap();
            std::fs::File::from(passed).read_to_string(&mut contents).unwrap();
            (line, contents)
        });
        let passed = directory.path().join("passed");
        std::fs::write(&passed, "contents").unwrap();
        let client = UnixStream::connect(proxy.path()).unwrap();
        let file = OwnedFd::from(std::fs::File::open(&passed).unwrap());
        descriptors::send(&client, b"{\"execute\":\"add-fd\"}\n", &[file]).unwrap();
        let mut answer = String::new();
        BufReader::new(&client).read_line(&mut answer).unwrap();
        assert_eq!(answer, "{\"return\": {}}\r\n");
        assert_eq!(
            qemu.join().unwrap(),
            ("\"execute\":\"add-fd\"}\n".to_owned(), "contents".to_owned())
        );
        assert_eq!(proxy.commands(), ["add-fd"]);
        let recorded = std::fs::read_to_string(&record).unwrap();
        assert_eq!(recorded, proxy.json_lines());
        let lines = proxy.lines();
        assert_eq!((&lines[0]["from"], &lines[0]["fault"]), (&json!("client"), &json!("split:3")));
        assert_eq!((&lines[1]["from"], &lines[1]["fault"]), (&json!("server"), &json!(null)));
    }
}
