//! One operation at a time on a volume, in the order of arrival; different volumes do not wait for
//! each other.
//!
//! A request joins the queues of all its volumes in one step, so that two requests never wait for
//! each other.

use std::{
    collections::{HashMap, VecDeque},
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::{
    device_node::NodePath,
    error::{Error, Result},
};

/// The queues of all volumes. An idle volume has none.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    queues: Mutex<HashMap<String, Queue>>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    entries: VecDeque<Arc<Entry>>,
    /// Attached through this service, and not detached since: then a failed request must not remove
    /// its disk.
    attached: bool,
    /// Directories that were made for it, each with its container, outermost first: for a detach
    /// whose caller never got the reply to its attach.
    parents: Vec<(String, NodePath)>,
}

/// A request in the queues of its volumes.
#[derive(Debug)]
struct Entry {
    serials: Vec<String>,
    /// Decides which later requests cancel it: a detach cancels an attach, and any request cancels
    /// a detach that waits for holders.
    kind: RequestKind,
    cancelled: AtomicBool,
    cancel: EventFd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RequestKind {
    Attach,
    Detach,
    WaitingDetach,
}

impl RequestKind {
    fn is_cancelled_by(self, later: RequestKind) -> bool {
        match self {
            RequestKind::Attach => later != RequestKind::Attach,
            RequestKind::Detach => false,
            RequestKind::WaitingDetach => true,
        }
    }
}

/// A request's place in the queues. Dropping it starts the next request.
#[derive(Debug)]
pub(crate) struct Ticket {
    queues: Arc<Queues>,
    entry: Arc<Entry>,
}

impl Queues {
    /// Joins the end of each volume's queue. Never waits.
    pub(crate) fn attach(self: &Arc<Self>, serials: Vec<String>) -> Result<Ticket> {
        self.enqueue(serials, RequestKind::Attach)
    }

    /// Joins the end of each volume's queue, and cancels every attach that is in one of the queues
    /// or under way. A detach that `waits` for holders of a disk does so until any other request
    /// for its volume arrives.
    pub(crate) fn detach(self: &Arc<Self>, serials: Vec<String>, waits: bool) -> Result<Ticket> {
        self.enqueue(serials, if waits { RequestKind::WaitingDetach } else { RequestKind::Detach })
    }

    fn enqueue(self: &Arc<Self>, serials: Vec<String>, kind: RequestKind) -> Result<Ticket> {
        let cancel = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(Error::system("eventfd", "a request"))?;
        let entry = Arc::new(Entry { serials, kind, cancelled: AtomicBool::new(false), cancel });
        let mut queues = self.lock();
        for serial in &entry.serials {
            let queue = queues.entry(serial.clone()).or_default();
            let cancelled = queue.entries.iter().filter(|ahead| ahead.kind.is_cancelled_by(kind));
            cancelled.for_each(|ahead| ahead.cancel());
            queue.entries.push_back(entry.clone());
        }
        drop(queues);
        // Those that were cancelled may be waiting for their turn.
        self.changed.notify_all();
        Ok(Ticket { queues: self.clone(), entry })
    }

    /// A panic elsewhere does not leave the queues inconsistent: every change to them is complete
    /// under the lock.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        // Adding 1 to a counter that is never read cannot overflow in 64 bits.
        let _ = self.cancel.write(1);
    }
}

impl Ticket {
    /// Waits until all earlier requests for these volumes are done.
    ///
    /// # Errors
    /// The deadline passed, or this request was cancelled.
    pub(crate) fn wait_for_turn(&self, deadline: Instant) -> Result<()> {
        let mut queues = self.queues.lock();
        loop {
            if self.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let waits_for =
                self.entry.serials.iter().find(|serial| !self.is_first(&queues, serial));
            let Some(serial) = waits_for else { return Ok(()) };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::TimedOut {
                    awaited: format!("an earlier request for volume {serial}"),
                });
            }
            let woken = self.queues.changed.wait_timeout(queues, left);
            queues = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn is_first(&self, queues: &HashMap<String, Queue>, serial: &str) -> bool {
        queues
            .get(serial)
            .and_then(|queue| queue.entries.front())
            .is_some_and(|first| Arc::ptr_eq(first, &self.entry))
    }

    /// Whether a later request, or the end of the caller, cancelled this one.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.entry.cancelled.load(Ordering::Acquire)
    }

    /// Readable once [`Ticket::is_cancelled`].
    pub(crate) fn cancelled(&self) -> BorrowedFd<'_> {
        self.entry.cancel.as_fd()
    }

    /// Returns what cancels the request when it is dropped, for a request that waits for holders
    /// and whose caller may close the connection.
    pub(crate) fn cancel_on_drop(&self) -> CancelOnDrop {
        CancelOnDrop(self.entry.clone())
    }

    /// Records whether a volume is attached.
    pub(crate) fn set_attached(&self, serial: &str, attached: bool) {
        if let Some(queue) = self.queues.lock().get_mut(serial) {
            queue.attached = attached;
            if !attached {
                queue.parents.clear();
            }
        }
    }

    /// Records which directories were made in a container for a volume that is attached.
    pub(crate) fn record_parents(&self, serial: &str, container: &str, made: &[NodePath]) {
        if let Some(queue) = self.queues.lock().get_mut(serial) {
            queue.parents.extend(made.iter().map(|path| (container.to_owned(), path.clone())));
        }
    }

    /// The directories that were made for `path` in a container, as far as this service made them.
    pub(crate) fn parents_made(
        &self,
        serial: &str,
        container: &str,
        path: &NodePath,
    ) -> Vec<NodePath> {
        let queues = self.queues.lock();
        let made = queues.get(serial).map(|queue| queue.parents.as_slice()).unwrap_or_default();
        let is_of = |(in_container, parent): &&(String, NodePath)| {
            in_container == container && path.is_below(parent)
        };
        made.iter().filter(is_of).map(|(_, parent)| parent.clone()).collect()
    }

    /// Whether this service attached the volume, and did not detach it since.
    pub(crate) fn is_attached(&self, serial: &str) -> bool {
        self.queues.lock().get(serial).is_some_and(|queue| queue.attached)
    }
}

/// See [`Ticket::cancel_on_drop`].
#[derive(Debug)]
pub(crate) struct CancelOnDrop(Arc<Entry>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut queues = self.queues.lock();
        for serial in &self.entry.serials {
            if let Some(queue) = queues.get_mut(serial) {
                queue.entries.retain(|entry| !Arc::ptr_eq(entry, &self.entry));
                if queue.entries.is_empty() && !queue.attached {
                    queues.remove(serial);
                }
            }
        }
        drop(queues);
        self.queues.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;
