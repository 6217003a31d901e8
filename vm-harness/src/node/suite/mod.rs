//! What runs in a node: scenarios, each with a line of the report. The first that fails ends the
//! suite, because each builds upon the earlier ones.
//!
//! | file | knows |
//! |---|---|
//! | `runner` | how a scenario is run and reported |
//! | `program` | programs of the node, and `ecr-runtime` as an administrator types it |
//! | `process` | processes of the node: a sandbox's QEMU and shim |
//! | `journal` | the journal |
//! | `containerd` | the configuration of containerd, and its client |
//! | `setup` | from a Debian node to one with the package |
//! | `workload` | a pod, its container, and commands in that |
//! | `sequence` | the scenarios with a pod, in their order |
//! | `scenarios` | what is proved with a workload |
//! | `own` | workloads whose sandbox is one of this harness |
//! | `kata` | workloads of Kata's |

mod containerd;
mod journal;
mod kata;
mod own;
mod process;
mod program;
mod runner;
mod scenarios;
mod sequence;
mod setup;
mod workload;

use self::runner::{Failed, Runner};
use super::{image::SCENARIOS, scenario::Selection};
use crate::{Error, environment::variable};

/// Runs the suite, and reports it to the harness outside.
///
/// # Errors
/// This machine is no node of [`super::Node`].
pub async fn run() -> Result<(), Error> {
    let mut runner = Runner::connect()?;
    let selection = Selection::parse(&variable(SCENARIOS).unwrap_or_default());
    // A failure was reported.
    let _: Result<(), Failed> = scenarios(&mut runner, &selection).await;
    runner.end();
    Ok(())
}

async fn scenarios(runner: &mut Runner, selection: &Selection) -> Result<(), Failed> {
    setup::install(runner).await?;
    let classes = kata::runtime_classes();
    if classes.is_empty() {
        own::run(runner, selection).await
    } else {
        kata::run(runner, selection, &classes).await
    }
}
