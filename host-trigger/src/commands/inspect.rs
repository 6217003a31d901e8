//! `block-volume inspect`: everything that is known of one volume. It changes nothing.

use std::path::PathBuf;

use clap::Args;

use crate::{
    Error,
    cli::{selector::VolumeSelector, target::Target},
    kata::sandbox::Sandbox,
    ops::{inspect, select, session::Session},
    output::{
        envelope::{Envelope, Outcome},
        listing::Listing,
    },
    qemu::inventory::Inventory,
};

/// Show everything that is known of one volume
///
/// Changes nothing. The states and the exit status 15 are those of list. The holders of the volume
/// in the guest are listed, too.
#[derive(Debug, Args)]
#[command(
    before_help = "Example: ecr-runtime block-volume inspect --sandbox 7d3a --device-path /dev/xvda"
)]
pub struct Inspect {
    /// How to reach the sandbox.
    #[command(flatten)]
    pub target: Target,

    /// Container ID or a unique prefix of it; with --pod, the container's name. Only a volume of
    /// this container is meant
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,

    /// Which volume.
    #[command(flatten)]
    pub selector: VolumeSelector,
}

/// Runs the verb.
///
/// # Errors
/// The sandbox or the volume is not found, or QEMU cannot be asked.
pub async fn run(verb: &Inspect, run_dir: Option<PathBuf>) -> Result<Envelope<Listing>, Error> {
    verb.selector.check()?;
    let container = verb.container.as_deref();
    let options = verb.target.session(run_dir, container)?;
    let (mut session, mut signals) = Session::open(options).await?;
    let choose = |sandbox: &Sandbox, inventory: &Inventory| {
        let selection = verb.selector.selection();
        Ok(vec![select::one(selection, container, sandbox, inventory)?])
    };
    let inspected = inspect::inspect_volumes(&mut session, choose, true);
    let (volumes, guest_error) = signals.unless_caught(inspected).await?;
    let listing = Listing { volumes, guest_error, ..Listing::default() };
    let unknown = listing.unknown();
    Ok(Envelope::new("inspect", Outcome::Inspected, listing)
        .with_error(unknown.as_ref())
        .with_timings(session.watch))
}
