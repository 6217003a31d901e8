//! `node`: whether Kata starts the wrapper `ecr-qemu` on this node, so that new sandboxes have a
//! QMP socket which the shim does not hold. Nothing of Kata's own files is changed: a drop-in
//! beside the configurations names the wrapper, and a record names the QEMU that the wrapper
//! becomes.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand};

use crate::{
    Deadline, Error,
    format::Format,
    host::lock,
    output::{envelope::Envelope, node_report::NodeReport},
};

mod configured;
mod disable;
mod enable;
mod own_directory;
mod status;
#[cfg(test)]
mod tests;

/// The verbs of `node`.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeVerb {
    Enable(Enable),
    Disable(Disable),
    Status(Status),
}

/// Which runtime classes, and how to report.
#[derive(Debug, Args)]
pub struct Selection {
    /// Work on this runtime class only, and on those whose configuration is in the same directory;
    /// may be repeated [default: all of Kata's]
    #[arg(long, value_name = "NAME")]
    pub runtime_class: Vec<String>,

    /// Output format
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "human")]
    pub output: Format,
}

/// Let Kata start QEMU by ecr-qemu in new sandboxes
///
/// Finds the runtime classes of Kata's in the configuration of containerd and CRI-O, and the
/// configuration of each. Beside it, in config.d, a drop-in is written that names the wrapper
/// ecr-qemu, and the QEMU that it named until then is recorded for the wrapper. The configuration
/// itself is not changed.
///
/// The runtimes apply each drop-in to every configuration in the directory. Where one of them is
/// not QEMU's or has another path, enable refuses, names the runtime classes that would change, and
/// prints the commands for a configuration in a directory of its own. Either all directories are
/// enabled, or nothing is changed. Running sandboxes stay as they are.
#[derive(Debug, Args)]
#[command(before_help = "Example: ecr-runtime node enable --dry-run")]
pub struct Enable {
    /// Which runtime classes, and how to report.
    #[command(flatten)]
    pub selection: Selection,

    /// The wrapper: ecr-qemu, or a copy of it with another name for a second QEMU [default:
    /// ecr-qemu beside this program]
    #[arg(long, value_name = "PATH")]
    pub wrapper: Option<PathBuf>,

    /// Report what would be done, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Let Kata start QEMU itself again in new sandboxes
///
/// Removes what enable wrote: the drop-ins, the record of the wrapper, and the directories that
/// were made for them. Everything is then as it was before. Running sandboxes keep their second QMP
/// socket until they end. A drop-in that was edited is refused.
#[derive(Debug, Args)]
#[command(before_help = "Example: ecr-runtime node disable")]
pub struct Disable {
    /// Which runtime classes, and how to report.
    #[command(flatten)]
    pub selection: Selection,

    /// Remove zz-ecr-runtime.toml also if it was edited
    #[arg(long)]
    pub force: bool,

    /// Report what would be done, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Show for each runtime class whether Kata starts QEMU by ecr-qemu
///
/// For each runtime class of Kata's: the runtime (Go or Rust), its configuration, the hypervisor,
/// QEMU's path, and whether ecr-qemu is enabled, disabled, or refused and why. Changes nothing.
#[derive(Debug, Args)]
#[command(before_help = "Example: ecr-runtime node status")]
pub struct Status {
    /// Which runtime classes, and how to report.
    #[command(flatten)]
    pub selection: Selection,
}

impl NodeVerb {
    /// The command as it is typed.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Enable(_) => "node enable",
            Self::Disable(_) => "node disable",
            Self::Status(_) => "node status",
        }
    }

    pub(crate) fn dry_run(&self) -> bool {
        match self {
            Self::Enable(verb) => verb.dry_run,
            Self::Disable(verb) => verb.dry_run,
            Self::Status(_) => false,
        }
    }

    pub(crate) fn output(&self) -> Format {
        match self {
            Self::Enable(verb) => verb.selection.output,
            Self::Disable(verb) => verb.selection.output,
            Self::Status(verb) => verb.selection.output,
        }
    }

    /// Whether it may change something.
    pub(crate) fn changes(&self) -> bool {
        !matches!(self, Self::Status(_)) && !self.dry_run()
    }
}

/// Locked while something is changed. Other users could hold the lock of a directory of Kata's.
const LOCK: &str = "/run/ecr-runtime";
/// The maximum time for the lock: a run takes some milliseconds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs a verb on this node, after any run that is changing something.
///
/// # Errors
/// It failed before it knew the runtime classes. Otherwise the envelope has the error beside them.
pub(crate) async fn run(verb: &NodeVerb) -> Result<Envelope<NodeReport>, Error> {
    let deadline = Deadline::after(LOCK_TIMEOUT);
    let _lock = match verb.changes() {
        true => Some(lock::acquire_private(Path::new(LOCK), deadline).await?),
        false => None,
    };
    run_at(Path::new("/"), verb)
}

/// Runs a verb on the node whose files are below `root`.
fn run_at(root: &Path, verb: &NodeVerb) -> Result<Envelope<NodeReport>, Error> {
    let done = match verb {
        NodeVerb::Enable(verb) => enable::run(root, verb),
        NodeVerb::Disable(verb) => disable::run(root, verb),
        NodeVerb::Status(verb) => status::run(root, verb),
    };
    Ok(done?.with_dry_run(verb.dry_run()))
}
