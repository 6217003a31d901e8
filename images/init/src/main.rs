//! PID 1 of the test guest until the agent starts.
//!
//! It mounts proc, sysfs and devtmpfs, turns the initramfs into a mount that `pivot_root` accepts,
//! loads kernel modules, brings `lo` up, starts the observer, and then *executes* `/usr/bin/agent`,
//! the agent of the image, or in an image with an init system that one, which starts the agent. It
//! prints an error to the console and powers the machine off, so that a harness detects it
//! immediately.
//!
//! The kernel also starts it to load the module of a file system.

mod command_line;
mod error;
mod modules;
mod mounts;
mod network;

use std::{
    convert::Infallible,
    env,
    ffi::CString,
    path::Path,
    process::{Command, ExitCode},
};

use command_line::CommandLine;
use error::{Error, at};
use nix::{sys::reboot, unistd};

const AGENT: &str = "/usr/bin/agent";
/// An init system, in images that have one.
const INIT_SYSTEM: &str = "/sbin/init";
const OBSERVER: &str = "/usr/bin/observer";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().collect();
    if let Some(name) = modules::requested(&arguments) {
        // The kernel sees by itself whether it has now what it asked for.
        return modules::load_requested(name).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    let Err(error) = start();
    eprintln!("guest-init: {error}");
    unistd::sync();
    // There is no caller to report to. If this fails, the end of PID 1 panics the kernel, which a
    // harness detects, too.
    let _ = reboot::reboot(reboot::RebootMode::RB_POWER_OFF);
    ExitCode::FAILURE
}

fn start() -> Result<Infallible, Error> {
    mounts::prepare()?;
    let command_line = CommandLine::read()?;
    modules::load(&command_line)?;
    modules::answer_requests()?;
    network::bring_loopback_up()?;
    Command::new(OBSERVER).spawn().map_err(at(OBSERVER))?;
    // A harness waits for this line before it connects. A connection during the setup of the vsock
    // driver can make vhost-device-vsock 0.3.0 ignore the guest until its end (seen under load, in
    // one boot of five).
    let next = if Path::new(INIT_SYSTEM).exists() { INIT_SYSTEM } else { AGENT };
    println!("guest-init: starting {next}");
    let program = CString::new(next).map_err(|_| Error::NulByte)?;
    unistd::execv(&program, &[&program]).map_err(|errno| at(next)(errno.into()))
}
