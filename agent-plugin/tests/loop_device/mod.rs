//! A loop device of a test's own.

use std::{
    os::fd::AsFd as _,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use agent_plugin::{
    block::DeviceNumber,
    uevent::{Received, UeventSocket},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Detached when it is dropped.
pub(crate) struct LoopDevice {
    name: String,
}

impl LoopDevice {
    pub(crate) fn over(backing: &Path) -> LoopDevice {
        let output =
            Command::new("losetup").args(["--find", "--show"]).arg(backing).output().unwrap();
        assert!(output.status.success(), "these tests need root: {output:?}");
        let node = String::from_utf8(output.stdout).unwrap();
        LoopDevice { name: node.trim().trim_start_matches("/dev/").to_owned() }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn node(&self) -> String {
        format!("/dev/{}", self.name)
    }

    pub(crate) fn number(&self) -> DeviceNumber {
        let number = std::fs::read_to_string(format!("/sys/class/block/{}/dev", self.name));
        number.unwrap().trim().parse().unwrap()
    }

    /// Detaches it, and returns when it is over nothing any more. While anybody has it open, as a
    /// search for holders in another test has each loop device for a moment, the kernel defers that
    /// to the last close. Then it sends an event.
    pub(crate) fn detach(self) {
        let mut events = UeventSocket::open().unwrap();
        let bound = format!("/sys/class/block/{}/loop/backing_file", self.name);
        let deadline = Instant::now() + Duration::from_secs(30);
        drop(self);
        while Path::new(&bound).exists() {
            let left = PollTimeout::try_from(deadline.saturating_duration_since(Instant::now()));
            let mut ready = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
            assert_ne!(poll(&mut ready, left.unwrap()), Ok(0), "{bound} is still there");
            while events.receive().unwrap() != Received::Nothing {}
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(self.node()).status();
    }
}
