//! The order of requests, and which of them cancel each other.

use std::{thread, time::Duration};

use super::*;

fn serials(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

impl Queues {
    fn attach(self: &Arc<Self>, serials: Vec<String>) -> Result<Ticket> {
        self.announce(serials).join()
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

#[test]
fn requests_for_one_volume_run_one_after_the_other() {
    let queues = Arc::new(Queues::default());
    let first = queues.attach(serials(&["a"])).unwrap();
    let second = queues.attach(serials(&["a"])).unwrap();
    first.wait_for_turn(soon()).unwrap();
    let error = second.wait_for_turn(Instant::now()).unwrap_err();
    assert_eq!(error.to_string(), "timed out waiting for an earlier request for volume a");
    drop(first);
    second.wait_for_turn(soon()).unwrap();
}

#[test]
fn other_volumes_do_not_wait() {
    let queues = Arc::new(Queues::default());
    let first = queues.attach(serials(&["a"])).unwrap();
    first.wait_for_turn(soon()).unwrap();
    queues.attach(serials(&["b"])).unwrap().wait_for_turn(Instant::now()).unwrap();
}

#[test]
fn batches_in_opposite_order_do_not_block_each_other() {
    let queues = Arc::new(Queues::default());
    let batches = thread::scope(|scope| {
        let run = |names: [&'static str; 2]| {
            let queues = queues.clone();
            scope.spawn(move || {
                (0..500)
                    .try_for_each(|_| queues.attach(serials(&names)).unwrap().wait_for_turn(soon()))
            })
        };
        [run(["a", "b"]), run(["b", "a"])].map(|thread| thread.join().unwrap())
    });
    assert!(batches.iter().all(Result::is_ok), "{batches:?}");
    assert!(queues.lock().is_empty());
}

#[test]
fn a_detach_cancels_earlier_attaches_and_no_detach() {
    let queues = Arc::new(Queues::default());
    let running = queues.attach(serials(&["a", "b"])).unwrap();
    running.wait_for_turn(soon()).unwrap();
    let waiting = queues.attach(serials(&["b"])).unwrap();
    let elsewhere = queues.attach(serials(&["c"])).unwrap();
    let first = queues.detach(serials(&["b"]), false).unwrap();
    let second = queues.detach(serials(&["b"]), false).unwrap();
    assert!(running.is_cancelled() && !elsewhere.is_cancelled() && !first.is_cancelled());
    assert!(matches!(
        waiting.wait_for_turn(soon()).as_ref().map_err(|error| &**error),
        Err(Error::Cancelled)
    ));
    drop((running, waiting));
    first.wait_for_turn(soon()).unwrap();
    drop(first);
    second.wait_for_turn(soon()).unwrap();
}

#[test]
fn a_detach_that_waits_for_holders_is_cancelled_by_any_later_request() {
    let queues = Arc::new(Queues::default());
    let waiting = queues.detach(serials(&["a"]), true).unwrap();
    let second = queues.detach(serials(&["a"]), true).unwrap();
    assert!(waiting.is_cancelled() && !second.is_cancelled());
    let third = queues.attach(serials(&["a"])).unwrap();
    assert!(second.is_cancelled() && !third.is_cancelled());
}

#[test]
fn a_waiting_request_wakes_when_it_is_cancelled() {
    let queues = Arc::new(Queues::default());
    let running = queues.detach(serials(&["a"]), false).unwrap();
    let waiting = queues.attach(serials(&["a"])).unwrap();
    let result = thread::scope(|scope| {
        let waiter = scope.spawn(|| waiting.wait_for_turn(soon()));
        drop(queues.detach(serials(&["a"]), false).unwrap());
        waiter.join().unwrap()
    });
    assert!(matches!(result.as_ref().map_err(|error| &**error), Err(Error::Cancelled)));
    drop(running);
}

#[test]
fn a_caller_that_closes_its_connection_cancels_its_request() {
    let queues = Arc::new(Queues::default());
    let ticket = queues.detach(serials(&["a"]), false).unwrap();
    let caller = ticket.cancel_on_drop();
    assert!(!ticket.is_cancelled());
    drop(caller);
    assert!(ticket.is_cancelled());
}

#[test]
fn a_request_that_waits_for_its_turn_notices_that_its_caller_is_gone() {
    let queues = Arc::new(Queues::default());
    let running = queues.attach(serials(&["a"])).unwrap();
    let waiting = queues.attach(serials(&["a"])).unwrap();
    let caller = waiting.cancel_on_drop();
    let result = thread::scope(|scope| {
        let waiter = scope.spawn(|| waiting.wait_for_turn(soon()));
        drop(caller);
        waiter.join().unwrap()
    });
    assert!(matches!(result.as_ref().map_err(|error| &**error), Err(Error::Cancelled)));
    drop(running);
}

#[test]
fn a_caller_that_is_gone_cancels_an_attach_that_is_announced() {
    let queues = Arc::new(Queues::default());
    let announced = queues.announce(serials(&["a"]));
    drop(announced.cancel_on_drop());
    assert!(matches!(announced.join().as_ref().map_err(|error| &**error), Err(Error::Cancelled)));
    assert!(queues.lock().is_empty());
}

#[test]
fn an_attached_volume_is_remembered_until_it_is_detached() {
    let queues = Arc::new(Queues::default());
    let ticket = queues.attach(serials(&["a"])).unwrap();
    ticket.set_attached("a", true);
    drop(ticket);
    let ticket = queues.detach(serials(&["a"]), false).unwrap();
    assert!(ticket.is_attached("a"));
    ticket.set_attached("a", false);
    drop(ticket);
    assert!(queues.lock().is_empty());
}

#[test]
fn an_attach_that_is_announced_cancels_nothing_before_it_joins() {
    let queues = Arc::new(Queues::default());
    let patient = queues.detach(serials(&["a"]), true).unwrap();
    // Refused, for example by the policy.
    drop(queues.announce(serials(&["a"])));
    assert!(!patient.is_cancelled());
    let attach = queues.announce(serials(&["a"])).join().unwrap();
    assert!(patient.is_cancelled() && !attach.is_cancelled());
    drop(patient);
    attach.wait_for_turn(soon()).unwrap();
}

#[test]
fn a_detach_cancels_an_attach_that_is_announced_and_does_not_wait_for_it() {
    let queues = Arc::new(Queues::default());
    let announced = queues.announce(serials(&["a", "b"]));
    let elsewhere = queues.announce(serials(&["c"]));
    let detach = queues.detach(serials(&["b"]), false).unwrap();
    detach.wait_for_turn(Instant::now()).unwrap();
    assert!(matches!(announced.join().as_ref().map_err(|error| &**error), Err(Error::Cancelled)));
    elsewhere.join().unwrap();
    drop(detach);
    assert!(queues.lock().is_empty());
}

#[test]
fn the_next_request_waits_for_the_last_clone_of_a_ticket() {
    let queues = Arc::new(Queues::default());
    let first = queues.detach(serials(&["a"]), false).unwrap();
    let second = queues.attach(serials(&["a"])).unwrap();
    let under_way = first.clone();
    drop(first);
    second.wait_for_turn(Instant::now()).unwrap_err();
    drop(under_way);
    second.wait_for_turn(Instant::now()).unwrap();
}

#[test]
fn directories_are_remembered_for_their_attachment_until_it_is_detached() {
    let queues: Arc<Queues> = Arc::default();
    let path = |text: &str| NodePath::new(text).unwrap();
    let (deep, x) = ([path("/dev/n"), path("/dev/n/m")], path("/dev/n/m/x"));
    let ticket = queues.attach(serials(&["a"])).unwrap();
    ticket.record_parents("a", "c1", &x, &deep);
    ticket.record_parents("a", "c1", &path("/dev/n/x"), &deep[..1]);
    // A repeated attach finds them.
    ticket.record_parents("a", "c1", &x, &[]);
    ticket.set_attached("a", true);
    drop(ticket);
    let ticket = queues.detach(serials(&["a", "b"]), false).unwrap();
    assert!(ticket.parents_made("a", "c2", &x).is_empty());
    assert!(ticket.parents_made("b", "c1", &x).is_empty());
    assert_eq!(ticket.parents_made("a", "c1", &x), deep);
    let above = |container, text| ticket.parents_above(container, &path(text));
    assert_eq!(above("c1", "/dev/n/m/y"), [&deep[..], &deep[..1]].concat());
    assert_eq!(above("c1", "/dev/n/m"), [&deep[..1], &deep[..1]].concat());
    assert!(above("c1", "/dev/nn/x").is_empty() && above("c2", "/dev/n/m/y").is_empty());
    ticket.forget_parents("a", "c1", &x);
    assert!(ticket.parents_made("a", "c1", &x).is_empty());
    assert_eq!(ticket.parents_made("a", "c1", &path("/dev/n/x")), deep[..1]);
    ticket.record_parents("a", "c1", &x, &deep);
    ticket.set_attached("a", false);
    assert!(ticket.parents_made("a", "c1", &x).is_empty());
}

#[test]
fn cycles_beside_a_shared_disk_that_stays_leave_nothing() {
    let queues: Arc<Queues> = Arc::default();
    let path = |text: &str| NodePath::new(text).unwrap();
    let count = || find(&queues.lock(), "a").map_or(0, |queue| queue.made.len());
    let first = queues.attach(serials(&["a"])).unwrap();
    first.record_parents("a", "c1", &path("/dev/n/x"), &[path("/dev/n")]);
    first.set_attached("a", true);
    drop(first);
    for _ in 0..1000 {
        let further = queues.attach(serials(&["a"])).unwrap();
        further.record_parents("a", "c2", &path("/dev/n/x"), &[path("/dev/n")]);
        drop(further);
        assert_eq!(count(), 2);
        let detach = queues.detach(serials(&["a"]), false).unwrap();
        detach.forget_parents("a", "c2", &path("/dev/n/x"));
        drop(detach);
        assert_eq!(count(), 1);
    }
}
