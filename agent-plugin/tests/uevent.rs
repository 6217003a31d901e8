//! The uevent socket with events from the running kernel. Needs root and the loop driver.

use std::{
    fs,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use agent_plugin::uevent::{Received, Uevent, UeventSocket};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_KOBJECT_UEVENT};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const LOOP: &str = "/sys/class/block/loop0/uevent";

/// Makes the kernel send a `change` event of loop0 that contains `mark`.
fn trigger(mark: &str) {
    let id = format!("change 6ba7b810-9dad-11d1-80b4-00c04fd430c8 MARK={mark}");
    fs::write(LOOP, id).expect("a test of the uevent socket needs root and the loop driver");
}

/// Receives messages until `take` returns a value, for at most ten seconds.
fn next<T>(socket: &mut UeventSocket, mut take: impl FnMut(Received<'_>) -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        assert!(Instant::now() < deadline, "the event did not arrive");
        let received = socket.receive().expect("the socket");
        let nothing = received == Received::Nothing;
        if let Some(taken) = take(received) {
            return taken;
        }
        if nothing {
            let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(10_000_u16)).expect("poll");
        }
    }
}

fn of_loop0(event: &Uevent<'_>) -> bool {
    event.devpath == "/devices/virtual/block/loop0" && event.action == "change"
}

#[test]
fn an_event_from_the_kernel_arrives() {
    let mut socket = UeventSocket::open().expect("a socket");
    trigger("arrives");
    let (number, is_synthetic) = next(&mut socket, |received| match received {
        Received::Event(event) if of_loop0(&event) => Some((event.number, event.is_synthetic)),
        _ => None,
    });
    assert!(is_synthetic, "a process has asked for it");
    let number = number.expect("a block device has a number");
    assert_eq!(format!("{number}\n"), fs::read_to_string("/sys/class/block/loop0/dev").unwrap());
}

#[test]
fn a_burst_overflows_a_small_buffer_and_the_socket_stays_usable() {
    let mut socket = UeventSocket::with_receive_buffer(2048).expect("a socket");
    (0..200).for_each(|_| trigger("burst"));
    next(&mut socket, |received| (received == Received::Overflow).then_some(()));
    next(&mut socket, |received| (received == Received::Nothing).then_some(()));
    trigger("afterwards");
    next(&mut socket, |received| {
        matches!(received, Received::Event(event) if of_loop0(&event)).then_some(())
    });
}

#[test]
fn events_that_are_lost_silently_after_an_overflow_are_reported_when_the_buffer_is_empty() {
    let mut socket = UeventSocket::with_receive_buffer(4096).expect("a socket");
    (0..200).for_each(|_| trigger("burst"));
    next(&mut socket, |received| (received == Received::Overflow).then_some(()));
    // There is space again, but the kernel drops every event until the buffer is empty, and does
    // not report that a second time.
    next(&mut socket, |received| matches!(received, Received::Event(_)).then_some(()));
    fs::write("/sys/class/block/loop1/uevent", "change").expect("the loop driver");
    let (mut seen, mut reported) = (false, false);
    next(&mut socket, |received| {
        match &received {
            Received::Event(event) => seen |= event.devpath.ends_with("/loop1"),
            Received::Overflow => reported = true,
            Received::Foreign | Received::Nothing => {}
        }
        (received == Received::Nothing).then_some(())
    });
    assert!(!seen, "the kernel did not lose the event, so this test proves nothing");
    assert!(reported, "the event of loop1 is lost, and the socket does not report it");
}

#[test]
fn the_default_buffer_holds_a_burst() {
    let mut socket = UeventSocket::open().expect("a socket");
    (0..2000).for_each(|_| trigger("burst"));
    let mut events = 0;
    next(&mut socket, |received| match received {
        Received::Overflow => panic!("events were lost"),
        Received::Event(event) => {
            events += usize::from(of_loop0(&event));
            (events >= 2000).then_some(())
        }
        _ => None,
    });
}

#[test]
fn an_event_forged_by_a_process_is_ignored() {
    let mut socket = UeventSocket::open().expect("a socket");
    let mut forger = Socket::new(NETLINK_KOBJECT_UEVENT).expect("a socket");
    forger.bind(&SocketAddr::new(0, 0)).expect("bind");
    let forged =
        b"add@/devices/x/0:0:255:1/block/sdz\0ACTION=add\0SUBSYSTEM=block\0DEVTYPE=disk\0MAJOR=8\0MINOR=0\0";
    forger.send_to(forged, &SocketAddr::new(0, 1), 0).expect("root may send to the group");
    next(&mut socket, |received| match received {
        Received::Event(event) => {
            assert!(!event.devpath.ends_with("sdz"), "a forged event was accepted: {event:?}");
            None
        }
        Received::Foreign => Some(()),
        _ => None,
    });
}
