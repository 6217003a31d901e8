//! One operation at a time on a volume, in the order of arrival; different volumes do not wait for
//! each other.
//!
//! A request joins the queues of all its volumes in one step, so that two requests never wait for
//! each other.
//!
//! It joins them when the agent has allowed it and has found its containers: a request that is
//! refused cancels no other. An attach announces itself before that, since a caller that has lost
//! its reply sends a detach, and relies on that one to cancel it.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
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
    queues: Mutex<Vec<Queue>>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    serial: String,
    entries: VecDeque<Arc<Entry>>,
    /// Attaches that were announced. Nothing waits for them: they have not begun.
    announced: Vec<Arc<Entry>>,
    /// Attached through this service, and not detached since: then a failed request must not remove
    /// its disk.
    attached: bool,
    /// For a detach whose caller never got the reply to its attach.
    made: Vec<Made>,
}

impl Queue {
    fn is_idle(&self) -> bool {
        self.entries.is_empty() && self.announced.is_empty() && !self.attached
    }
}

// There are as many queues as volumes: few.

fn find<'a>(queues: &'a [Queue], serial: &str) -> Option<&'a Queue> {
    queues.iter().find(|queue| queue.serial == serial)
}

fn find_mut<'a>(queues: &'a mut [Queue], serial: &str) -> Option<&'a mut Queue> {
    queues.iter_mut().find(|queue| queue.serial == serial)
}

/// The queue of a volume, which may be new.
fn queue_of<'a>(queues: &'a mut Vec<Queue>, serial: &str) -> &'a mut Queue {
    let at = match queues.iter().position(|queue| queue.serial == serial) {
        Some(at) => at,
        None => {
            queues.push(Queue { serial: serial.to_owned(), ..Queue::default() });
            queues.len() - 1
        }
    };
    &mut queues[at]
}

/// The directories that were made for one attachment, outermost first.
#[derive(Debug)]
struct Made {
    container: String,
    path: NodePath,
    parents: Vec<NodePath>,
}

impl Made {
    fn is_for(&self, container: &str, path: &NodePath) -> bool {
        self.container == container && self.path == *path
    }
}

/// A request in the queues of its volumes.
#[derive(Debug)]
struct Entry {
    serials: Vec<String>,
    /// Decides which later requests cancel it: a detach cancels an attach, and any request cancels
    /// a detach that waits for holders.
    kind: RequestKind,
    cancelled: AtomicBool,
    /// Not before it joins the queues: a request that waits for the agent has no descriptor.
    cancel: OnceLock<EventFd>,
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

/// A request's place in the queues. Dropping the last clone starts the next request.
#[derive(Debug, Clone)]
pub(crate) struct Ticket {
    place: Arc<Place>,
}

/// Whether a request was cancelled.
#[derive(Debug, Clone)]
pub(super) struct Cancellation(Arc<Entry>);

impl Cancellation {
    /// # Errors
    /// [`Error::Cancelled`].
    pub(super) fn check(&self) -> Result<()> {
        if self.0.is_cancelled() { Err(Error::Cancelled.into()) } else { Ok(()) }
    }
}

/// An attach that is not in the queues yet.
#[derive(Debug)]
pub(crate) struct Announced {
    place: Place,
}

#[derive(Debug)]
struct Place {
    queues: Arc<Queues>,
    entry: Arc<Entry>,
}

impl Queues {
    /// Announces an attach: a detach that arrives from now on cancels it, and it cancels nothing.
    pub(crate) fn announce(self: &Arc<Self>, serials: Vec<String>) -> Announced {
        let entry = Arc::new(Entry::new(serials, RequestKind::Attach));
        let mut queues = self.lock();
        for serial in &entry.serials {
            queue_of(&mut queues, serial).announced.push(entry.clone());
        }
        drop(queues);
        Announced { place: Place { queues: self.clone(), entry } }
    }

    /// Joins the end of each volume's queue, and cancels every attach that is announced, in one of
    /// the queues or under way. A detach that `waits` for holders of a disk does so until any other
    /// request for its volume arrives. Never waits.
    pub(crate) fn detach(self: &Arc<Self>, serials: Vec<String>, waits: bool) -> Result<Ticket> {
        let kind = if waits { RequestKind::WaitingDetach } else { RequestKind::Detach };
        let entry = Arc::new(Entry::new(serials, kind));
        Place { queues: self.clone(), entry }.join()
    }

    /// A panic elsewhere does not leave the queues inconsistent: every change to them is complete
    /// under the lock.
    fn lock(&self) -> MutexGuard<'_, Vec<Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Announced {
    /// As [`Ticket::cancel_on_drop`], also while the attach is not in the queues.
    pub(crate) fn cancel_on_drop(&self) -> CancelOnDrop {
        self.place.cancel_on_drop()
    }

    /// Joins the end of each volume's queue.
    ///
    /// # Errors
    /// A detach has cancelled it.
    pub(crate) fn join(self) -> Result<Ticket> {
        self.place.join()
    }
}

impl Place {
    fn cancel_on_drop(&self) -> CancelOnDrop {
        CancelOnDrop { queues: self.queues.clone(), entry: self.entry.clone() }
    }

    fn join(self) -> Result<Ticket> {
        let Place { queues, entry } = &self;
        let cancel = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(Error::system("eventfd", &"a request"))?;
        entry.cancel.get_or_init(|| cancel);
        let mut all = queues.lock();
        if entry.is_cancelled() {
            // The lock is taken again when the place is dropped.
            drop(all);
            return Err(Error::Cancelled.into());
        }
        for serial in &entry.serials {
            let queue = queue_of(&mut all, serial);
            queue.announced.retain(|announced| !Arc::ptr_eq(announced, entry));
            let ahead = queue.entries.iter().chain(&queue.announced);
            let cancelled = ahead.filter(|ahead| ahead.kind.is_cancelled_by(entry.kind));
            cancelled.for_each(|ahead| ahead.cancel());
            queue.entries.push_back(entry.clone());
        }
        drop(all);
        // Those that were cancelled may be waiting for their turn.
        queues.changed.notify_all();
        Ok(Ticket { place: Arc::new(self) })
    }
}

impl Entry {
    fn new(serials: Vec<String>, kind: RequestKind) -> Entry {
        Entry { serials, kind, cancelled: AtomicBool::new(false), cancel: OnceLock::new() }
    }

    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        if let Some(cancel) = self.cancel.get() {
            // Adding 1 to a counter that is never read cannot overflow in 64 bits.
            let _ = cancel.write(1);
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}

impl Ticket {
    /// Waits until all earlier requests for these volumes are done.
    ///
    /// # Errors
    /// The deadline passed, or this request was cancelled.
    pub(crate) fn wait_for_turn(&self, deadline: Instant) -> Result<()> {
        let mut queues = self.lock();
        loop {
            if self.is_cancelled() {
                return Err(Error::Cancelled.into());
            }
            let serials = &self.place.entry.serials;
            let waits_for = serials.iter().find(|serial| !self.is_first(&queues, serial));
            let Some(serial) = waits_for else { return Ok(()) };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::TimedOut {
                    awaited: format!("an earlier request for volume {serial}"),
                }
                .into());
            }
            let woken = self.place.queues.changed.wait_timeout(queues, left);
            queues = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Queue>> {
        self.place.queues.lock()
    }

    fn is_first(&self, queues: &[Queue], serial: &str) -> bool {
        find(queues, serial)
            .and_then(|queue| queue.entries.front())
            .is_some_and(|first| Arc::ptr_eq(first, &self.place.entry))
    }

    /// Whether a later request, or the end of the caller, cancelled this one.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.place.entry.is_cancelled()
    }

    /// Tells another thread whether the request was cancelled. It keeps no place in the queues.
    pub(super) fn cancellation(&self) -> Cancellation {
        Cancellation(self.place.entry.clone())
    }

    /// Readable once [`Ticket::is_cancelled`].
    pub(crate) fn cancelled(&self) -> BorrowedFd<'_> {
        self.place.entry.cancel.get().expect("it was made before the queues were joined").as_fd()
    }

    /// Returns what cancels the request when it is dropped, for a request that is of use to its
    /// caller alone.
    pub(crate) fn cancel_on_drop(&self) -> CancelOnDrop {
        self.place.cancel_on_drop()
    }

    /// Records whether a volume is attached.
    pub(crate) fn set_attached(&self, serial: &str, attached: bool) {
        if let Some(queue) = find_mut(&mut self.lock(), serial) {
            queue.attached = attached;
            if !attached {
                queue.made.clear();
            }
        }
    }

    /// Records which directories were made in a container for an attachment.
    pub(crate) fn record_parents(
        &self,
        serial: &str,
        container: &str,
        path: &NodePath,
        made: &[NodePath],
    ) {
        // A repeated attach has made none; those that the first one made are its own.
        if let Some(queue) = find_mut(&mut self.lock(), serial)
            && !made.is_empty()
        {
            queue.made.retain(|made| !made.is_for(container, path));
            let (container, parents) = (container.to_owned(), made.to_vec());
            queue.made.push(Made { container, path: path.clone(), parents });
        }
    }

    /// The directories that this service made for an attachment.
    pub(crate) fn parents_made(
        &self,
        serial: &str,
        container: &str,
        path: &NodePath,
    ) -> Vec<NodePath> {
        let queues = self.lock();
        let mut made = find(&queues, serial).map(|queue| queue.made.iter()).unwrap_or_default();
        let made = made.find(|made| made.is_for(container, path));
        made.map(|made| made.parents.clone()).unwrap_or_default()
    }

    /// The directories above `path` that this service made in the container for other attachments,
    /// which are there still. The last one that is detached finds them empty.
    pub(crate) fn parents_above(&self, container: &str, path: &NodePath) -> Vec<NodePath> {
        let queues = self.lock();
        let made = queues.iter().flat_map(|queue| &queue.made);
        let parents =
            made.filter(|made| made.container == container).flat_map(|made| &made.parents);
        parents.filter(|parent| path.is_below(parent)).cloned().collect()
    }

    /// Forgets them: the attachment is detached.
    pub(crate) fn forget_parents(&self, serial: &str, container: &str, path: &NodePath) {
        if let Some(queue) = find_mut(&mut self.lock(), serial) {
            queue.made.retain(|made| !made.is_for(container, path));
        }
    }

    /// Whether this service attached the volume, and did not detach it since.
    pub(crate) fn is_attached(&self, serial: &str) -> bool {
        find(&self.lock(), serial).is_some_and(|queue| queue.attached)
    }
}

/// See [`Ticket::cancel_on_drop`].
#[derive(Debug)]
pub(crate) struct CancelOnDrop {
    queues: Arc<Queues>,
    entry: Arc<Entry>,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.entry.cancel();
        // It may be waiting for its turn: under the lock, so that it is not between its look and
        // its wait.
        drop(self.queues.lock());
        self.queues.changed.notify_all();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut queues = self.queues.lock();
        for serial in &self.entry.serials {
            if let Some(queue) = find_mut(&mut queues, serial) {
                queue.entries.retain(|entry| !Arc::ptr_eq(entry, &self.entry));
                queue.announced.retain(|entry| !Arc::ptr_eq(entry, &self.entry));
            }
        }
        queues.retain(|queue| !queue.is_idle());
        drop(queues);
        self.queues.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;
