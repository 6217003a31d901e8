//! The connection of one client through a proxy: two relays, which apply the faults.

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

use super::{
    descriptors,
    fault::Fault,
    framing::{Framing, Side},
    message::Message,
    shared::Shared,
};

/// Pause between the pieces of a split message, so that the peer reads them one by one.
const PAUSE: Duration = Duration::from_millis(1);

/// Both ends, and the state between them.
pub(super) struct Connection<F> {
    number: usize,
    client: Peer,
    server: Peer,
    framing: Mutex<F>,
    deferred: Mutex<Vec<Deferred>>,
    shared: Arc<Shared>,
}

/// One end. A writer holds `writing` for a whole message, so that messages do not mix.
struct Peer {
    stream: UnixStream,
    writing: Mutex<()>,
}

/// Bytes to be delivered, with the descriptors that belong to them.
struct Parcel {
    from: Side,
    message: Option<Message>,
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// A parcel that is delivered after another message.
struct Deferred {
    until: Message,
    parcel: Parcel,
}

/// What was received and not passed on.
#[derive(Default)]
struct Inflow {
    bytes: Vec<u8>,
    /// Each descriptor with the position behind the bytes that it came with. The kernel ends what
    /// is received at once behind a message with descriptors, so the last of these bytes is of that
    /// message.
    descriptors: Vec<(usize, OwnedFd)>,
}

impl Inflow {
    fn add(&mut self, bytes: &[u8], descriptors: Vec<OwnedFd>) {
        self.bytes.extend_from_slice(bytes);
        let end = self.bytes.len();
        self.descriptors.extend(descriptors.into_iter().map(|descriptor| (end, descriptor)));
    }

    /// Takes the first `length` bytes and their descriptors.
    fn take(&mut self, length: usize) -> (Vec<u8>, Vec<OwnedFd>) {
        let bytes = self.bytes.drain(..length).collect();
        let descriptors = self.descriptors.extract_if(.., |(end, _)| *end <= length);
        let descriptors = descriptors.map(|(_, descriptor)| descriptor).collect();
        self.descriptors.iter_mut().for_each(|(end, _)| *end -= length);
        (bytes, descriptors)
    }
}

impl<F: Framing> Connection<F> {
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
            framing: Mutex::default(),
            deferred: Mutex::default(),
            shared: Arc::clone(shared),
        });
        for from in [Side::Client, Side::Server] {
            let connection = Arc::clone(&connection);
            thread::spawn(move || {
                // An error ends the connection, as the end of the stream does.
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
        let mut inflow = Inflow::default();
        loop {
            let (length, received) = descriptors::receive(&source.stream, &mut chunk)?;
            if length == 0 {
                let (bytes, descriptors) = inflow.take(inflow.bytes.len());
                return self.deliver(&Parcel { from, message: None, bytes, descriptors });
            }
            inflow.add(&chunk[..length], received);
            while let Some(parcel) = self.next_parcel(from, &mut inflow) {
                self.pass(parcel)?;
            }
        }
    }

    /// Takes the first complete message from `bytes`, and records it. It is recorded before it is
    /// delivered: who has received a reply finds it, and its command, in the record.
    fn next_parcel(&self, from: Side, inflow: &mut Inflow) -> Option<(Parcel, Option<Fault>)> {
        let frame = lock(&self.framing).next_frame(from, &inflow.bytes)?;
        let fault =
            frame.message.as_ref().and_then(|message| self.shared.rules().fault_for(message));
        if let Some(shown) = frame.shown {
            self.shared.traffic.add(self.number, from, shown, fault.as_ref());
        }
        let (bytes, descriptors) = inflow.take(frame.length);
        Some((Parcel { from, message: frame.message, bytes, descriptors }, fault))
    }

    fn pass(self: &Arc<Self>, (mut parcel, fault): (Parcel, Option<Fault>)) -> io::Result<()> {
        let Some(fault) = fault else { return self.deliver(&parcel) };
        match fault {
            Fault::Delay(time) => {
                let this = Arc::clone(self);
                thread::spawn(move || {
                    thread::sleep(time);
                    // The connection may have ended in the meantime.
                    let _ = this.deliver(&parcel);
                });
                Ok(())
            }
            Fault::Stall(time) => {
                thread::sleep(time);
                self.deliver(&parcel)
            }
            Fault::Drop => {
                if parcel.from == Side::Client {
                    lock(&self.framing).command_was_dropped();
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
                lock(&self.deferred).push(Deferred { until, parcel });
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

    /// Delivers in pieces of `length` bytes, and then what was deferred until this message.
    fn deliver_in(&self, parcel: &Parcel, length: usize) -> io::Result<()> {
        let to = match parcel.from {
            Side::Client => &self.server,
            Side::Server => &self.client,
        };
        let writing = lock(&to.writing);
        let mut descriptors = parcel.descriptors.as_slice();
        for (number, piece) in parcel.bytes.chunks(length).enumerate() {
            if number > 0 {
                thread::sleep(PAUSE);
            }
            descriptors::send(&to.stream, piece, descriptors)?;
            descriptors = &[];
        }
        drop(writing);
        let Some(message) = &parcel.message else { return Ok(()) };
        let released: Vec<Deferred> =
            lock(&self.deferred).extract_if(.., |deferred| deferred.until == *message).collect();
        released.iter().try_for_each(|deferred| self.deliver(&deferred.parcel))
    }

    fn end(&self) {
        for peer in [&self.client, &self.server] {
            // The peer may have closed it already.
            let _ = shutdown(peer.stream.as_raw_fd(), Shutdown::Both);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
