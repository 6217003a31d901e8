//! Waits until a holder may have released a disk, by what the kernel offers for each kind:
//!
//! | holder | event |
//! |---|---|
//! | a process | [inotify(7)](https://man7.org/linux/man-pages/man7/inotify.7.html) `IN_CLOSE` on the inode that it has open; its end closes it, too |
//! | a mount | `POLLPRI` on [`/proc/PID/mountinfo`](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html), and the end of the process that it was read through |
//! | swap | `POLLPRI` on [`/proc/swaps`](https://man7.org/linux/man-pages/man5/proc_swaps.5.html) |
//! | device mapper, md, loop | [uevents](https://man7.org/linux/man-pages/man7/netlink.7.html) of that device |
//! | an unknown holder | none: the holders are found again, after 10 ms at first and half a second in the end |
//!
//! A mount is an unknown holder for a moment, too: the kernel reports an unmount before it gives up
//! the claim.
//!
//! Each of these is set up before the holders are found, or is followed by a second check.

use std::{
    fs::File,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    rc::Rc,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

use super::{
    found::{Found, Trace},
    process,
};
use crate::{
    error::{Error, Result},
    inode::Inode,
    pidfd,
    uevent::{Received, UeventSocket},
};

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A wait. It is created before the holders are found first.
#[derive(Debug)]
pub struct Watch {
    uevents: UeventSocket,
    pause: Duration,
}

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// Something may have changed: find the holders again.
    Changed,
    /// The deadline passed.
    TimedOut,
    /// The request was cancelled.
    Cancelled,
}

impl Watch {
    /// # Errors
    /// The kernel refuses a socket.
    pub fn new() -> Result<Watch> {
        Ok(Watch { uevents: UeventSocket::open()?, pause: FIRST_PAUSE })
    }

    /// Waits until something may have changed about `found`, until `deadline`, or until `cancelled`
    /// is readable.
    ///
    /// # Errors
    /// The kernel refuses a descriptor that the wait needs.
    pub fn wait(
        &mut self,
        found: &[Found],
        deadline: Instant,
        cancelled: BorrowedFd<'_>,
    ) -> Result<Waited> {
        let descriptors = found.iter().filter_map(|found| match &found.trace {
            Trace::Descriptor(path, inode) => Some((path.as_path(), inode)),
            _ => None,
        });
        let Some(closes) = watch_closes(descriptors)? else { return Ok(Waited::Changed) };
        let Some(Changes { files, processes }) = changes(found)? else {
            return Ok(Waited::Changed);
        };
        let pauses = found.iter().any(|found| matches!(found.trace, Trace::Nothing));
        let until = if pauses { deadline.min(Instant::now() + self.pause) } else { deadline };

        loop {
            let mut fds = vec![
                PollFd::new(cancelled, PollFlags::POLLIN),
                PollFd::new(self.uevents.as_fd(), PollFlags::POLLIN),
                PollFd::new(closes.as_fd(), PollFlags::POLLIN),
            ];
            // POLLIN is always set.
            fds.extend(files.iter().map(|file| PollFd::new(file.as_fd(), PollFlags::POLLPRI)));
            fds.extend(
                processes.iter().map(|process| PollFd::new(process.as_fd(), PollFlags::POLLIN)),
            );
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(self.timed_out(until < deadline));
            }
            let timeout =
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut fds, timeout) {
                Ok(0) | Err(Errno::EINTR) => continue,
                Ok(_) => {}
                Err(errno) => return Err(Error::system("poll", &"the holders of a disk")(errno)),
            }
            let is_ready = |fd: &PollFd<'_>| fd.any() == Some(true);
            if is_ready(&fds[0]) {
                return Ok(Waited::Cancelled);
            }
            let uevents_only = is_ready(&fds[1]) && !fds[2..].iter().any(is_ready);
            drop(fds);
            if !uevents_only || self.receive_all()? {
                self.pause = FIRST_PAUSE;
                return Ok(Waited::Changed);
            }
        }
    }

    fn timed_out(&mut self, pause: bool) -> Waited {
        if !pause {
            return Waited::TimedOut;
        }
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Waited::Changed
    }

    /// Receives all pending events. Returns whether one is about a holder, as lost ones may have
    /// been.
    fn receive_all(&mut self) -> Result<bool> {
        let mut is_about_holder = false;
        loop {
            match self.uevents.receive()? {
                Received::Event(event) => {
                    is_about_holder |= !event.is_synthetic
                        && event.subsystem == "block"
                        && is_made_of_disks(event.devpath)
                }
                Received::Overflow => is_about_holder = true,
                Received::Foreign => {}
                Received::Nothing => return Ok(is_about_holder),
            }
        }
    }
}

/// Whether an event is about a device that is made of disks: every such device is virtual.
fn is_made_of_disks(devpath: &str) -> bool {
    devpath.starts_with("/devices/virtual/block/")
}

/// Watches the inodes behind descriptors of processes. `None`: one of them is closed already.
fn watch_closes<'a>(
    descriptors: impl Iterator<Item = (&'a Path, &'a Inode)>,
) -> Result<Option<Inotify>> {
    let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
    let inotify =
        Inotify::init(flags).map_err(Error::system("inotify_init1", &"the holders of a disk"))?;
    for (path, inode) in descriptors {
        match inotify.add_watch(path, AddWatchFlags::IN_CLOSE) {
            Ok(_) => {}
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ESRCH) => return Ok(None),
            Err(errno) => {
                return Err(Error::system("inotify_add_watch", &path.display())(errno));
            }
        }
        // It may have been closed, and its number reused, before the watch was added.
        let is_it =
            |found: Inode| (found.number, found.file_system) == (inode.number, inode.file_system);
        if !process::inode(path).is_some_and(is_it) {
            return Ok(None);
        }
    }
    Ok(Some(inotify))
}

/// The files of `/proc` on which the kernel reports changes, and the processes that they are about.
#[derive(Debug, Default)]
struct Changes {
    files: Vec<Rc<File>>,
    processes: Vec<OwnedFd>,
}

/// Collects what [`Trace::Changes`] needs. `None`: one of the processes has ended.
fn changes(found: &[Found]) -> Result<Option<Changes>> {
    let Changes { mut files, mut processes } = Changes::default();
    for found in found {
        let Trace::Changes(file, process) = &found.trace else { continue };
        if files.iter().any(|known| Rc::ptr_eq(known, file)) {
            continue;
        }
        files.push(file.clone());
        match process.map(open_process).transpose() {
            Ok(process) => processes.extend(process),
            Err(Errno::ESRCH) => return Ok(None),
            Err(errno) => {
                return Err(Error::system("pidfd_open", &"a process that sees the mount")(errno));
            }
        }
    }
    Ok(Some(Changes { files, processes }))
}

fn open_process(pid: u32) -> Result<OwnedFd, Errno> {
    pidfd::open(libc::pid_t::try_from(pid).map_err(|_| Errno::EINVAL)?)
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command, thread};

    use nix::sys::eventfd::EventFd;

    use super::*;
    use crate::{
        block::DeviceNumber,
        holder::HolderKind,
        holders::{Disk, Scope, find},
    };

    const LONG: Duration = Duration::from_secs(20);

    /// A free loop device stands for a disk.
    fn disk(name: &str) -> Disk {
        let number: DeviceNumber = fs::read_to_string(format!("/sys/class/block/{name}/dev"))
            .expect("these tests need root and the loop module")
            .trim()
            .parse()
            .unwrap();
        let devices = vec![(name.to_owned(), number)];
        Disk { serial: "s".into(), path: "/x".into(), devices, mounted: None }
    }

    fn of_sleep(disk: &Disk) -> Vec<Found> {
        let deadline = Instant::now() + LONG;
        let found = find(std::slice::from_ref(disk), &[], Scope::Opened, deadline).unwrap();
        found
            .certain()
            .unwrap()
            .into_iter()
            .filter(|found| found.holder.command == "sleep")
            .collect()
    }

    #[test]
    fn the_end_of_a_process_ends_the_wait() {
        let disk = disk("loop1");
        let open = File::open("/dev/loop1").unwrap();
        let mut child = Command::new("sleep").arg("60").stdin(open).spawn().unwrap();
        let cancelled = EventFd::new().unwrap();
        let mut watch = Watch::new().unwrap();
        let found = of_sleep(&disk);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].holder.kind, HolderKind::Process);
        let began = Instant::now();
        let waited = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(50));
                child.kill().unwrap();
                child.wait().unwrap();
            });
            // Other processes may open and close this device in the meantime.
            while !of_sleep(&disk).is_empty() {
                watch.wait(&found, began + LONG, cancelled.as_fd()).unwrap();
            }
            watch.wait(&found, began + LONG, cancelled.as_fd()).unwrap()
        });
        assert_eq!(waited, Waited::Changed, "a closed descriptor needs no wait");
        assert!(began.elapsed() < LONG);
    }

    #[test]
    fn without_an_event_the_pauses_become_longer() {
        let cancelled = EventFd::new().unwrap();
        let mut watch = Watch::new().unwrap();
        let found = [Found::unknown(&disk("loop2"))];
        let began = Instant::now();
        // Events of this machine's other devices reset the pause.
        while watch.pause < FIRST_PAUSE * 8 {
            let waited = watch.wait(&found, began + LONG, cancelled.as_fd()).unwrap();
            assert_eq!(waited, Waited::Changed, "the pauses never grow");
        }
        let waited = watch.wait(&found, Instant::now(), cancelled.as_fd()).unwrap();
        assert_eq!(waited, Waited::TimedOut);
    }

    #[test]
    fn a_cancelled_wait_ends() {
        let cancelled = EventFd::from_value(1).unwrap();
        let mut watch = Watch::new().unwrap();
        let waited = watch.wait(&[], Instant::now() + LONG, cancelled.as_fd()).unwrap();
        assert_eq!(waited, Waited::Cancelled);
    }

    #[test]
    fn only_virtual_devices_are_made_of_disks() {
        assert!(is_made_of_disks("/devices/virtual/block/dm-0"));
        assert!(!is_made_of_disks(
            "/devices/pci0000:00/0000:00:01.0/virtio0/host0/target0:0:5/0:0:5:3/block/sda"
        ));
    }
}
