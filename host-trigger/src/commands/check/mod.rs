//! `check`: whether this node is set up, and whether a volume could be plugged into a sandbox. It
//! changes nothing: it reads files of the host, sends queries to QEMU and `Probe` to the guest. The
//! findings are in the order in which a hot-plug would encounter them.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::{
    Deadline, Error,
    cli::target::Target,
    cri::Wanted,
    host::lock,
    kata::{
        node::judgement::PATH_ANNOTATION,
        sandbox::{Sandbox, Search},
    },
    ops::signals::Signals,
    output::findings::{CheckReport, Finding},
    stopwatch::Stopwatch,
};

mod all;
mod guest;
mod kata;
mod lvm;
mod node;
mod policy;
mod qemu;

/// Check whether volumes can be plugged: on this node, and into a sandbox
///
/// Changes nothing, and needs no sandbox. On the node, check reads the caller's rights, the state
/// directories of the sandboxes, the kernel, LVM, which may activate what a guest wrote to a
/// volume, and the configuration of each runtime class of Kata's: whether new sandboxes will have a
/// QMP socket that the shim does not hold, and a controller for volumes. With --sandbox, --pod,
/// --container or --all, it also checks the lock, QEMU (its socket, version and known bugs,
/// controller, free addresses, descriptors, volumes), the plugin in the guest, what the guest's
/// kernel lacks, and each container: its user namespace, its device filter and what that means, and
/// how it would get a device node. The configuration of the runtime that started the sandbox is
/// then checked only for what the sandbox lacks.
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

    /// Container ID or a unique prefix of it; with --pod, the container's name [default: all
    /// containers of the sandbox]
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,

    /// Check every sandbox of the node
    #[arg(long, conflicts_with_all = ["sandbox", "pod", "container", "qmp", "agent"])]
    pub all: bool,
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
    let target = &verb.target;
    let has_sandbox = target.pod.is_some()
        || target.sandbox.is_some()
        || verb.container.is_some()
        || target.qmp.is_some();
    let mut checks = node::check(run_dir.as_deref(), target.vmm_user, !has_sandbox);
    watch.lap("node");
    let mut sandbox_id = None;
    if verb.all {
        all::check(verb, run_dir, deadline, &mut checks).await?;
        watch.lap("sandboxes");
    } else if has_sandbox {
        // An invalid agent address is an error of the command line, not a finding.
        let mut search = target.search(run_dir.clone(), verb.container.as_deref())?;
        match find(verb, run_dir.as_deref(), &mut search, deadline, &mut checks).await? {
            Some(sandbox) => {
                checks.push(Finding::ok("sandbox", sandbox.id.clone()));
                sandbox_id = Some(sandbox.id.clone());
                let container = search.container.as_deref();
                check_sandbox(container, &sandbox, deadline, &mut checks, &mut watch).await;
            }
            None => watch.lap("find"),
        }
    }
    Ok((CheckReport { sandbox: sandbox_id, checks }, watch.finish()))
}

/// Finds the sandbox, by its pod if that is named; that it cannot be found is a finding.
async fn find(
    verb: &Check,
    run_dir: Option<&Path>,
    search: &mut Search,
    deadline: Deadline,
    checks: &mut Vec<Finding>,
) -> Result<Option<Sandbox>, Error> {
    let container = verb.container.as_deref();
    if let Some(pod) = verb.target.pod_search(run_dir, container, Wanted::Named) {
        match pod.find(deadline).await {
            Ok(found) => {
                checks.push(Finding::ok("pod", found.view.to_string()));
                search.sandbox = Some(found.sandbox);
                search.container = found.containers.into_iter().next();
            }
            Err(interrupted @ Error::Interrupted { .. }) => return Err(interrupted),
            Err(e) => {
                checks.push(Finding::problem("pod", &e));
                return Ok(None);
            }
        }
    }
    let found = Sandbox::find(search);
    Ok(found.map_err(|e| checks.push(Finding::problem("sandbox", &e))).ok())
}

async fn check_sandbox(
    container: Option<&str>,
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
    let proved = qemu::check(sandbox, deadline, checks).await;
    let annotated = sandbox.annotation(PATH_ANNOTATION);
    checks.extend(kata::check_sandbox(Path::new("/"), sandbox.runtime(), proved, annotated));
    watch.lap("qemu");
    guest::check(sandbox, container, deadline, checks).await;
    watch.lap("guest");
}
