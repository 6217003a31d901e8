//! `check`: is this node set up, and could a volume be plugged into this sandbox? It only looks:
//! files of the host, queries to QEMU, `Probe` to the guest. What it finds comes in the order in
//! which a hot-plug would meet it.

use std::path::PathBuf;

use clap::Args;

use crate::{
    Deadline, Error,
    checked::{Checked, Finding, Status},
    cli::Target,
    lock,
    output::{SCHEMA, Timings},
    sandbox::Place,
    signals::Signals,
    stopwatch::Stopwatch,
};

mod guest;
mod kata;
mod lvm;
mod node;
mod qemu;

/// Looks whether volumes can be plugged: on this node, and into a sandbox
///
/// Changes nothing, and can be run before there is any sandbox. Of the node it looks at the
/// caller's rights, the directories of the sandboxes, Kata's configuration (is there a QMP socket
/// that the shim does not hold?), the kernel, and LVM, which may activate what a guest wrote. With
/// --sandbox or --container also at the lock, QEMU (its socket, version and known bugs, controller,
/// free addresses, descriptors, volumes), the plugin in the guest, and each container: its user
/// namespace, its device filter and what that means, how it would get a device.
///
/// Each is ok, a warning (a hot-plug works, and there is something to know) or a problem (it would
/// fail), with the way out. The exit status is 0 if there is no problem, else that of the hot-plug
/// which the first one would end: 3 not found, 7 time-out, 9 refused by the guest, 10 unsupported,
/// 11 no permission, 12 version skew, 13 QMP socket held, 14 unreachable.
#[derive(Debug, Args)]
pub struct Check {
    /// How to reach the sandbox.
    #[command(flatten)]
    pub target: Target,

    /// The container's id, or the start of it [default: all containers of the sandbox]
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,
}

/// Runs the verb.
///
/// # Errors
/// It was interrupted; what is wrong is a part of the answer.
pub async fn run(verb: &Check, run_dir: Option<PathBuf>) -> Result<Checked, Error> {
    let mut signals = Signals::catch()?;
    let deadline = Deadline::after(verb.target.timeout);
    tokio::select! {
        checked = look(verb, run_dir, deadline) => checked,
        interrupted = signals.next() => Err(interrupted),
    }
}

async fn look(
    verb: &Check,
    run_dir: Option<PathBuf>,
    deadline: Deadline,
) -> Result<Checked, Error> {
    let mut watch = Stopwatch::new();
    let mut checks = node::look(run_dir.as_deref());
    watch.lap("node");
    let mut sandbox = None;
    let target = &verb.target;
    if target.sandbox.is_some() || verb.container.is_some() || target.qmp.is_some() {
        // The address that was named is a part of the command line, not of the sandbox.
        let search = target.search(run_dir, verb.container.as_deref())?;
        match Place::find(&search) {
            Ok(place) => {
                checks.push(Finding::ok("sandbox", place.sandbox.clone()));
                sandbox = Some(place.sandbox.clone());
                look_at_sandbox(verb, &place, deadline, &mut checks, &mut watch).await;
            }
            Err(e) => checks.push(Finding::problem("sandbox", &e)),
        }
    }
    let result = checks.iter().map(|finding| finding.status).max().unwrap_or(Status::Ok);
    let (schema, command, timings_us) = (SCHEMA, "check".to_owned(), Timings(watch.finish()));
    Ok(Checked { schema, command, result, sandbox, checks, timings_us })
}

async fn look_at_sandbox(
    verb: &Check,
    place: &Place,
    deadline: Deadline,
    checks: &mut Vec<Finding>,
    watch: &mut Stopwatch,
) {
    let directory = place.lock_directory();
    let holder = lock::holder(&directory);
    // QEMU's socket serves one client, and a run in the middle of its work would look half done.
    let lock = lock::acquire(&directory, deadline).await;
    checks.push(match (&lock, holder) {
        (Err(e), _) => Finding::problem("lock", e),
        (Ok(_), Some(holder)) => Finding::warning(
            "lock",
            format!("another run had it, and was waited for: {holder}"),
            &[],
        ),
        (Ok(_), None) => Finding::ok("lock", "no other run works on the sandbox"),
    });
    watch.lap("lock");
    qemu::look(place, deadline, checks).await;
    watch.lap("qemu");
    guest::look(place, verb.container.as_deref(), deadline, checks).await;
    watch.lap("guest");
}
