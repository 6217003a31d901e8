//! PID 1 of the test guest, for as long as it takes to start the agent.
//!
//! It mounts proc, sysfs and devtmpfs, turns the initramfs into a mount that `pivot_root` accepts,
//! loads kernel modules, brings `lo` up, starts the observer, and then *becomes* `/usr/bin/agent`,
//! whichever agent the image carries. An error is printed to the console and powers the machine
//! off, so that a harness sees it at once.

mod command_line;
mod error;
mod modules;
mod mounts;
mod network;

use std::{convert::Infallible, ffi::CString, process::Command};

use command_line::CommandLine;
use error::{Error, at};
use nix::{sys::reboot, unistd};

const AGENT: &str = "/usr/bin/agent";
const OBSERVER: &str = "/usr/bin/observer";

fn main() {
    let Err(error) = start();
    eprintln!("guest-init: {error}");
    unistd::sync();
    // There is no caller to report to. Where even this fails, ending PID 1 panics the kernel, which
    // a harness sees too.
    let _ = reboot::reboot(reboot::RebootMode::RB_POWER_OFF);
}

fn start() -> Result<Infallible, Error> {
    mounts::prepare()?;
    let command_line = CommandLine::read()?;
    modules::load(&command_line)?;
    network::bring_loopback_up()?;
    Command::new(OBSERVER).spawn().map_err(at(OBSERVER))?;
    // A harness waits for this line before it dials: a connection that comes while the vsock driver
    // is being set up can leave vhost-device-vsock 0.3.0 deaf for the rest of the guest's life
    // (seen under load, in one boot of five).
    println!("guest-init: starting {AGENT}");
    let agent = CString::new(AGENT).map_err(|_| Error::NulByte)?;
    unistd::execv(&agent, &[&agent]).map_err(|errno| at(AGENT)(errno.into()))
}
