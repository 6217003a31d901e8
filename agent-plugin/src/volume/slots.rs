//! One operation at a time on a volume, in the order in which they came; different volumes do not
//! wait for each other.
//!
//! A request takes its place in the queues of all its volumes at once, so two requests can never
//! wait for each other.

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
pub(crate) struct Slots {
    queues: Mutex<HashMap<String, Queue>>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    tickets: VecDeque<Arc<Place>>,
    /// Attached through this service, and not detached since: then a failed request must leave its
    /// disk alone.
    attached: bool,
    /// Directories that were made for it, each with its container, outermost first: for a detach
    /// whose caller never got our answer.
    made: Vec<(String, NodePath)>,
}

#[derive(Debug)]
struct Place {
    serials: Vec<String>,
    /// Which later requests cancel it: for an attach a detach, for a detach that waits for others
    /// all.
    kind: Kind,
    cancelled: AtomicBool,
    cancel: EventFd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Attach,
    Detach,
    PatientDetach,
}

impl Kind {
    fn is_cancelled_by(self, later: Kind) -> bool {
        match self {
            Kind::Attach => later != Kind::Attach,
            Kind::Detach => false,
            Kind::PatientDetach => true,
        }
    }
}

/// A request's place in the queues. Dropping it lets the next request in.
#[derive(Debug)]
pub(crate) struct Ticket {
    slots: Arc<Slots>,
    place: Arc<Place>,
}

impl Slots {
    /// A place at the end of each volume's queue. Never waits.
    pub(crate) fn attach(self: &Arc<Self>, serials: Vec<String>) -> Result<Ticket> {
        self.enqueue(serials, Kind::Attach)
    }

    /// The same; every attach that stands before us in one of the queues, or is under way, is
    /// cancelled. A `patient` one waits for those who hold a disk, until any other request for its
    /// volume comes in.
    pub(crate) fn detach(self: &Arc<Self>, serials: Vec<String>, patient: bool) -> Result<Ticket> {
        self.enqueue(serials, if patient { Kind::PatientDetach } else { Kind::Detach })
    }

    fn enqueue(self: &Arc<Self>, serials: Vec<String>, kind: Kind) -> Result<Ticket> {
        let cancel = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(Error::system("eventfd", "a request"))?;
        let place = Arc::new(Place { serials, kind, cancelled: AtomicBool::new(false), cancel });
        let mut queues = self.lock();
        for serial in &place.serials {
            let queue = queues.entry(serial.clone()).or_default();
            let cancelled = queue.tickets.iter().filter(|ahead| ahead.kind.is_cancelled_by(kind));
            cancelled.for_each(|ahead| ahead.cancel());
            queue.tickets.push_back(place.clone());
        }
        drop(queues);
        // Those that were cancelled may be waiting for their turn.
        self.changed.notify_all();
        Ok(Ticket { slots: self.clone(), place })
    }

    /// A panic elsewhere does not make the queues wrong: every change to them is complete under the
    /// lock.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        // Adding 1 to a counter that nobody reads cannot overflow in 64 bits.
        let _ = self.cancel.write(1);
    }
}

impl Ticket {
    /// Waits until all requests before us are done.
    ///
    /// # Errors
    /// The deadline passed, or we were cancelled.
    pub(crate) fn turn(&self, deadline: Instant) -> Result<()> {
        let mut queues = self.slots.lock();
        loop {
            if self.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let waits_for =
                self.place.serials.iter().find(|serial| !self.is_first(&queues, serial));
            let Some(serial) = waits_for else { return Ok(()) };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::TimedOut {
                    awaited: format!("an earlier request for volume {serial}"),
                });
            }
            let woken = self.slots.changed.wait_timeout(queues, left);
            queues = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn is_first(&self, queues: &HashMap<String, Queue>, serial: &str) -> bool {
        queues
            .get(serial)
            .and_then(|queue| queue.tickets.front())
            .is_some_and(|first| Arc::ptr_eq(first, &self.place))
    }

    /// Whether a later request, or the end of our caller, asked us to give up.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.place.cancelled.load(Ordering::Acquire)
    }

    /// Readable once [`Ticket::is_cancelled`].
    pub(crate) fn cancelled(&self) -> BorrowedFd<'_> {
        self.place.cancel.as_fd()
    }

    /// Cancels the request when it is dropped, for as long as it waits for somebody: the caller may
    /// go away.
    pub(crate) fn caller(&self) -> Caller {
        Caller(self.place.clone())
    }

    /// Notes that a volume is attached, or no longer.
    pub(crate) fn set_attached(&self, serial: &str, attached: bool) {
        if let Some(queue) = self.slots.lock().get_mut(serial) {
            queue.attached = attached;
            if !attached {
                queue.made.clear();
            }
        }
    }

    /// Notes which directories were made in a container for a volume that is attached.
    pub(crate) fn note_made(&self, serial: &str, container: &str, made: &[NodePath]) {
        if let Some(queue) = self.slots.lock().get_mut(serial) {
            queue.made.extend(made.iter().map(|path| (container.to_owned(), path.clone())));
        }
    }

    /// Those that were made for `path` there, as far as this service has done it.
    pub(crate) fn made(&self, serial: &str, container: &str, path: &NodePath) -> Vec<NodePath> {
        let queues = self.slots.lock();
        let made = queues.get(serial).map(|queue| queue.made.as_slice()).unwrap_or_default();
        let is_of = |(in_container, parent): &&(String, NodePath)| {
            in_container == container && path.is_below(parent)
        };
        made.iter().filter(is_of).map(|(_, parent)| parent.clone()).collect()
    }

    /// Whether this service attached the volume, and did not detach it since.
    pub(crate) fn is_attached(&self, serial: &str) -> bool {
        self.slots.lock().get(serial).is_some_and(|queue| queue.attached)
    }
}

/// The caller of a request, see [`Ticket::caller`].
#[derive(Debug)]
pub(crate) struct Caller(Arc<Place>);

impl Drop for Caller {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut queues = self.slots.lock();
        for serial in &self.place.serials {
            if let Some(queue) = queues.get_mut(serial) {
                queue.tickets.retain(|place| !Arc::ptr_eq(place, &self.place));
                if queue.tickets.is_empty() && !queue.attached {
                    queues.remove(serial);
                }
            }
        }
        drop(queues);
        self.slots.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use super::*;

    fn serials(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn requests_for_one_volume_go_one_after_the_other() {
        let slots = Arc::new(Slots::default());
        let first = slots.attach(serials(&["a"])).unwrap();
        let second = slots.attach(serials(&["a"])).unwrap();
        first.turn(soon()).unwrap();
        let error = second.turn(Instant::now()).unwrap_err();
        assert_eq!(error.to_string(), "timed out waiting for an earlier request for volume a");
        drop(first);
        second.turn(soon()).unwrap();
    }

    #[test]
    fn other_volumes_do_not_wait() {
        let slots = Arc::new(Slots::default());
        let first = slots.attach(serials(&["a"])).unwrap();
        first.turn(soon()).unwrap();
        slots.attach(serials(&["b"])).unwrap().turn(Instant::now()).unwrap();
    }

    #[test]
    fn batches_in_opposite_order_do_not_block_each_other() {
        let slots = Arc::new(Slots::default());
        let batches = thread::scope(|scope| {
            let run = |names: [&'static str; 2]| {
                let slots = slots.clone();
                scope.spawn(move || {
                    (0..500).try_for_each(|_| slots.attach(serials(&names)).unwrap().turn(soon()))
                })
            };
            [run(["a", "b"]), run(["b", "a"])].map(|thread| thread.join().unwrap())
        });
        assert!(batches.iter().all(Result::is_ok), "{batches:?}");
        assert!(slots.lock().is_empty());
    }

    #[test]
    fn a_detach_cancels_the_attaches_before_it_and_no_detach() {
        let slots = Arc::new(Slots::default());
        let running = slots.attach(serials(&["a", "b"])).unwrap();
        running.turn(soon()).unwrap();
        let waiting = slots.attach(serials(&["b"])).unwrap();
        let elsewhere = slots.attach(serials(&["c"])).unwrap();
        let first = slots.detach(serials(&["b"]), false).unwrap();
        let second = slots.detach(serials(&["b"]), false).unwrap();
        assert!(running.is_cancelled() && !elsewhere.is_cancelled() && !first.is_cancelled());
        assert!(matches!(waiting.turn(soon()), Err(Error::Cancelled)));
        drop((running, waiting));
        first.turn(soon()).unwrap();
        drop(first);
        second.turn(soon()).unwrap();
    }

    #[test]
    fn a_patient_detach_gives_way_to_whatever_comes_after_it() {
        let slots = Arc::new(Slots::default());
        let patient = slots.detach(serials(&["a"]), true).unwrap();
        let second = slots.detach(serials(&["a"]), true).unwrap();
        assert!(patient.is_cancelled() && !second.is_cancelled());
        let third = slots.attach(serials(&["a"])).unwrap();
        assert!(second.is_cancelled() && !third.is_cancelled());
    }

    #[test]
    fn a_waiting_request_wakes_when_it_is_cancelled() {
        let slots = Arc::new(Slots::default());
        let running = slots.detach(serials(&["a"]), false).unwrap();
        let waiting = slots.attach(serials(&["a"])).unwrap();
        let result = thread::scope(|scope| {
            let waiter = scope.spawn(|| waiting.turn(soon()));
            drop(slots.detach(serials(&["a"]), false).unwrap());
            waiter.join().unwrap()
        });
        assert!(matches!(result, Err(Error::Cancelled)));
        drop(running);
    }

    #[test]
    fn a_caller_that_goes_away_cancels_its_request() {
        let slots = Arc::new(Slots::default());
        let ticket = slots.detach(serials(&["a"]), false).unwrap();
        let caller = ticket.caller();
        assert!(!ticket.is_cancelled());
        drop(caller);
        assert!(ticket.is_cancelled());
    }

    #[test]
    fn an_attached_volume_is_remembered_until_it_is_detached() {
        let slots = Arc::new(Slots::default());
        let ticket = slots.attach(serials(&["a"])).unwrap();
        ticket.set_attached("a", true);
        drop(ticket);
        let ticket = slots.detach(serials(&["a"]), false).unwrap();
        assert!(ticket.is_attached("a"));
        ticket.set_attached("a", false);
        drop(ticket);
        assert!(slots.lock().is_empty());
    }

    #[test]
    fn directories_are_remembered_for_their_container_until_the_volume_goes() {
        let slots: Arc<Slots> = Arc::default();
        let path = |text: &str| NodePath::new(text).unwrap();
        let ticket = slots.attach(serials(&["a"])).unwrap();
        ticket.note_made("a", "c1", &[path("/dev/n"), path("/dev/n/m")]);
        ticket.set_attached("a", true);
        drop(ticket);
        let ticket = slots.detach(serials(&["a", "b"]), false).unwrap();
        assert_eq!(ticket.made("a", "c1", &path("/dev/n/m/x")), [path("/dev/n"), path("/dev/n/m")]);
        assert_eq!(ticket.made("a", "c1", &path("/dev/n/x")), [path("/dev/n")]);
        assert!(ticket.made("a", "c2", &path("/dev/n/m/x")).is_empty());
        assert!(ticket.made("b", "c1", &path("/dev/n/m/x")).is_empty());
        ticket.set_attached("a", false);
        assert!(ticket.made("a", "c1", &path("/dev/n/m/x")).is_empty());
    }
}
