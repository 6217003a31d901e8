//! `block-volume throttle`: changes the limits of an attached volume, immediately and without the
//! guest's part
//! ([`block_set_io_throttle`](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html#command-QMP-block.block_set_io_throttle)).
//! One command of QEMU changes all of them together, so there is nothing to roll back.

use std::path::PathBuf;

use clap::Args;

use crate::{
    Error,
    cli::{limits::LimitArgs, selector::VolumeSelector, target::Target},
    ops::{
        inspect::VolumeView,
        select,
        session::{self, Session},
    },
    output::{
        envelope::{Envelope, Outcome},
        report::Report,
    },
    qemu::medium::Drive,
};

/// Limit the operations and bytes per second of a volume
///
/// Takes effect immediately, also on a volume in use. Only the limits that are given change; 0
/// means unlimited. A limit for reads and writes together excludes limits for reads or writes
/// alone: to change from one to the other, set the old one to 0 in the same call. The limits are
/// removed with the volume when it is unplugged.
#[derive(Debug, Args)]
#[command(before_help = "Example: ecr-runtime block-volume throttle --sandbox 7d3a --device-path \
                         /dev/xvda --iops 500 --bps-write 20MiB")]
pub struct Throttle {
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

    /// Check everything that can be checked, and report what would be done; change nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Which limits.
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// Runs the verb.
///
/// # Errors
/// The limits are unchanged.
pub async fn run(verb: &Throttle, run_dir: Option<PathBuf>) -> Result<Envelope<Report>, Error> {
    verb.selector.check()?;
    let change = verb.limits.change()?;
    if change.is_empty() {
        let why = "no limit is given, such as --iops or --bps".into();
        return Err(Error::InvalidLimits { why });
    }
    let container = verb.container.as_deref();
    let options = verb.target.session(run_dir, container)?;
    let (mut session, mut signals) = Session::open(options).await?;

    let sandbox = &session.sandbox;
    let prepare = async {
        let (mut qmp, inventory) = session::connect_qemu(sandbox, session.deadline).await?;
        let known = select::one(verb.selector.selection(), container, sandbox, &inventory)?;
        let id = known.id.clone();
        if known.state.is_abandoned {
            return Err(known.abandoned_error());
        }
        if !known.state.device {
            return Err(Error::IncompleteVolume { volume: id.to_string() });
        }
        let mut view = VolumeView::new(&mut qmp, &inventory, &sandbox.id, known).await?;
        view.set_drive(&Drive::read(&mut qmp).await?);
        let present = view.volume.throttle;
        Ok((qmp, id, view.volume, present))
    };
    let (mut qmp, id, mut volume, present) = signals.unless_caught(prepare).await?;
    session.watch.lap("qemu");
    volume.throttle = change.apply(&id, &present)?;
    let result = match volume.throttle == present {
        true => Outcome::Unchanged,
        false => Outcome::Throttled,
    };
    if result == Outcome::Throttled && !verb.dry_run {
        // It is short and not interrupted by a signal: the report says what is in effect.
        volume.throttle.write(&mut qmp, &id).await?;
    }
    session.watch.lap("throttle");
    let report = Report::of(vec![volume]);
    Ok(Envelope::new("throttle", result, report)
        .with_dry_run(verb.dry_run)
        .with_timings(session.watch))
}
