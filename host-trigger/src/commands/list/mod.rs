//! `block-volume list`: the volumes of a sandbox, as QEMU and the guest have them now. It sends
//! queries to QEMU and `Inspect` to the guest, and changes nothing.

mod all;

use std::path::PathBuf;

use clap::Args;

use crate::{
    Error,
    cli::target::Target,
    kata::sandbox::Sandbox,
    ops::{inspect, select, session::Session},
    output::{
        envelope::{Envelope, Outcome},
        listing::Listing,
    },
    qemu::inventory::Inventory,
};

/// Show the volumes of a sandbox as QEMU and the guest have them now
///
/// Changes nothing. The state of a volume is `attached`; `incomplete` (a run was interrupted, or
/// something removed a part: repair completes it or rolls it back); `stale: container gone`; or
/// `stale: container restarted` (the container of this ID was started later, and does not have the
/// volume); `unknown` with its cause (the guest does not reply, refuses, or cannot tell; the
/// container is paused or unreachable); or `abandoned` (freed by hot-unplug --without-guest). Stale
/// volumes are freed by hot-unplug and repair; hot-plug attaches them to the container that runs
/// now; repair detaches abandoned ones in the guest. A shared volume has a row for each attachment.
///
/// If the guest could not tell the state of a volume, the exit status is 15, after everything is
/// printed. The names of pods are those that the container engine has noted in its bundles; --all
/// asks the engine for the others.
#[derive(Debug, Args)]
#[command(before_help = "Example: ecr-runtime block-volume list --sandbox 7d3a")]
pub struct List {
    /// How to reach the sandbox.
    #[command(flatten)]
    pub target: Target,

    /// Container ID or a unique prefix of it; with --pod, the container's name [default: all
    /// containers]
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,

    /// Show the volumes of every sandbox of the node. One that cannot be asked is shown with its
    /// error, and the exit status is then 15
    #[arg(long, conflicts_with_all = ["sandbox", "pod", "container", "qmp", "agent"])]
    pub all: bool,
}

/// Runs the verb.
///
/// # Errors
/// The sandbox is not found, or its QEMU cannot be asked.
pub async fn run(verb: &List, run_dir: Option<PathBuf>) -> Result<Envelope<Listing>, Error> {
    if verb.all {
        return all::run(verb, run_dir).await;
    }
    let container = verb.container.as_deref();
    let options = verb.target.session(run_dir, container)?;
    let (mut session, mut signals) = Session::open(options).await?;
    let choose =
        |sandbox: &Sandbox, inventory: &Inventory| select::all(container, sandbox, inventory);
    let inspected = inspect::inspect_volumes(&mut session, choose, false);
    let (volumes, guest_error) = signals.unless_caught(inspected).await?;
    let listing = Listing { volumes, guest_error, ..Listing::default() };
    let unknown = listing.unknown();
    Ok(Envelope::new("list", Outcome::Listed, listing)
        .with_error(unknown.as_ref())
        .with_timings(session.watch))
}
