//! `check`: whether this node is set up, and whether a volume could be plugged into a sandbox. It
//! changes nothing: it reads files of the host, sends queries to QEMU and `Probe` to the guest. The
//! findings are in the order in which a hot-plug would encounter them.

use std::path::PathBuf;

use clap::Args;

use crate::{
    Deadline, Error,
    cli::target::Target,
    host::lock,
    kata::sandbox::Sandbox,
    ops::signals::Signals,
    output::findings::{CheckReport, Finding},
    stopwatch::Stopwatch,
};

mod guest;
mod kata;
mod lvm;
mod node;
mod qemu;

/// Check whether volumes can be plugged: on this node, and into a sandbox
///
/// Changes nothing, and needs no sandbox. On the node, check reads the caller's rights, the state
/// directories of the sandboxes, Kata's configuration (whether there is a QMP socket that the shim
/// does not hold), the kernel, and LVM, which may activate what a guest wrote to a volume. With
/// --sandbox or --container, it also checks the lock, QEMU (its socket, version and known bugs,
/// controller, free addresses, descriptors, volumes), the plugin in the guest, and each container:
/// its user namespace, its device filter and what that means, and how it would get a device node.
///
/// Each finding is ok, a warning (a hot-plug works, but there is something to know) or a problem (a
/// hot-plug would fail), with a remedy. The exit status is 0 if there is no problem. Otherwise it
/// is the one that a hot-plug would end with because of the first problem: 3 not found, 7 timed
/// out, 9 refused by the guest, 10 unsupported, 11 permission denied, 12 version skew, 13 QMP
/// socket held, 14 unreachable.
#[derive(Debug, Args)]
#[command(before_help = "Example: ecr-runtime check --sandbox 7d3a")]
pub struct Check {
    /// How to reach the sandbox.
    #[command(flatten)]
    pub target: Target,

    /// Container ID or a unique prefix of it [default: all containers of the sandbox]
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,
}

/// Runs the command. Returns the report, and the stages with their times in microseconds.
///
/// # Errors
/// A signal interrupted it, or the agent's address on the command line is invalid. Problems that it
/// finds are part of the report.
pub async fn run(
    verb: &Check,
    run_dir: Option<PathBuf>,
) -> Result<(CheckReport, Vec<(String, u64)>), Error> {
    let mut signals = Signals::catch()?;
    let deadline = Deadline::of_command(verb.target.timeout);
    signals.unless_caught(check_all(verb, run_dir, deadline)).await
}

async fn check_all(
    verb: &Check,
    run_dir: Option<PathBuf>,
    deadline: Deadline,
) -> Result<(CheckReport, Vec<(String, u64)>), Error> {
    let mut watch = Stopwatch::new();
    let mut checks = node::check(run_dir.as_deref());
    watch.lap("node");
    let mut sandbox_id = None;
    let target = &verb.target;
    if target.sandbox.is_some() || verb.container.is_some() || target.qmp.is_some() {
        // An invalid agent address is an error of the command line, not a finding.
        let search = target.search(run_dir, verb.container.as_deref())?;
        match Sandbox::find(&search) {
            Ok(sandbox) => {
                checks.push(Finding::ok("sandbox", sandbox.id.clone()));
                sandbox_id = Some(sandbox.id.clone());
                check_sandbox(verb, &sandbox, deadline, &mut checks, &mut watch).await;
            }
            Err(e) => checks.push(Finding::problem("sandbox", &e)),
        }
    }
    Ok((CheckReport { sandbox: sandbox_id, checks }, watch.finish()))
}

async fn check_sandbox(
    verb: &Check,
    sandbox: &Sandbox,
    deadline: Deadline,
    checks: &mut Vec<Finding>,
    watch: &mut Stopwatch,
) {
    let directory = sandbox.lock_directory();
    let holder = lock::holder(&directory, deadline).await;
    // QEMU's socket serves one client, and the volumes of a run that is not finished would look
    // incomplete.
    let lock = lock::acquire(&directory, deadline).await;
    checks.push(match (&lock, holder) {
        (Err(e), _) => Finding::problem("lock", e),
        (Ok(_), Some(holder)) => Finding::warning(
            "lock",
            format!("another run held it, and this one waited for it: {holder}"),
            &[],
        ),
        (Ok(_), None) => Finding::ok("lock", "no other run works on the sandbox"),
    });
    watch.lap("lock");
    qemu::check(sandbox, deadline, checks).await;
    watch.lap("qemu");
    guest::check(sandbox, verb.container.as_deref(), deadline, checks).await;
    watch.lap("guest");
}
