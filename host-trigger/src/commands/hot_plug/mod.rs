//! `block-volume hot-plug`: the sequence from a host volume to a device, or a mounted file system,
//! in a running container.
//!
//! 1. Before anything changes: find and lock the sandbox, reach the guest, QEMU and the source.
//! 2. Roll back what an interrupted run left of the same volumes.
//! 3. While the guest looks up whether all volumes can be attached: for each volume `add-fd` (with
//!    the intent record) and `blockdev-add`.
//! 4. For each volume `device_add`; the guest attaches all of them, and QEMU gets the commit
//!    records before the guest commits.
//!
//! All or nothing: after any failure, lost reply, deadline or signal, each step that may have been
//! taken is rolled back.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

mod dry_run;
mod mounts;
mod plug;
mod preflight;
mod reconcile;
mod report;
mod request;
mod sequence;
mod volume;

use plug::Plug;
use request::PlugRequest;

use crate::{
    Error,
    cli::{limits::LimitArgs, mount::MountArgs, target::Target, volumes::VolumeArgs},
    fault,
    ops::session::{Located, Session},
    output::{envelope::Envelope, report::Report},
};

/// The largest user and group ID: `chown(2)` takes the next number for "leave it unchanged".
const MAX_ID: i64 = u32::MAX as i64 - 1;

/// Attach host block volumes to a running container
///
/// A volume is a block device or a raw image. It is claimed for as long as the sandbox has it. The
/// container gets a device (--device-path), or the volume's file system is mounted (--mount-path).
/// Several volumes can be attached in one call: repeat --block-volume and one of these in pairs;
/// then either all of them are attached or none.
#[derive(Debug, Args)]
#[command(
    before_help = "Example: ecr-runtime block-volume hot-plug --container 4f1c --block-volume \
                         /dev/vg/data --device-path /dev/xvda"
)]
pub struct HotPlug {
    /// How to reach the sandbox.
    #[command(flatten)]
    pub target: Target,

    /// Container ID or a unique prefix of it; with --pod, the container's name [default there: the
    /// only container that runs]
    #[arg(long, value_name = "ID", required_unless_present = "pod")]
    pub container: Option<String>,

    /// virtio-scsi controller, by QEMU's ID [default: scsi0, or the only one]
    #[arg(long, value_name = "ID")]
    pub controller: Option<String>,

    /// The volumes and their paths.
    #[command(flatten)]
    pub volumes: VolumeArgs,

    /// Format of the images: their bytes are the disk's, whatever they look like. Without it, a
    /// file that begins or ends like an image of another format (qcow2, VMDK, VHD, VHDX, VDI,
    /// LUKS) is refused
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub image_format: Option<ImageFormat>,

    /// The container can only read
    #[arg(long)]
    pub read_only: bool,

    /// Attach the volume even if another container of this sandbox has it, or this container at
    /// another path: all use the same disk. Nothing coordinates their writes: an ordinary file
    /// system that two of them mount is destroyed
    #[arg(long)]
    pub shared: bool,

    /// Check everything that can be checked, and report what would be done; change nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Owner of the device in the container [default: 0]
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u32).range(..=MAX_ID))]
    pub uid: Option<u32>,

    /// Group of the device in the container [default: 0]
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u32).range(..=MAX_ID))]
    pub gid: Option<u32>,

    /// Permission bits of the device in the container, in octal [default: 660]
    #[arg(long, value_name = "BITS", value_parser = parse_mode)]
    pub mode: Option<u32>,

    /// How file systems are mounted.
    #[command(flatten)]
    pub mount: MountArgs,

    /// The limits of each volume, from the start.
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// The format of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ImageFormat {
    /// The bytes of the file are the disk's.
    Raw,
}

fn parse_mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok();
    mode.filter(|&mode| mode <= 0o777 && !text.starts_with('+'))
        .ok_or_else(|| "expected permission bits in octal, at most 777".to_owned())
}

/// Runs the verb.
///
/// # Errors
/// The volumes are not attached; unless it is [`Error::Incomplete`], nothing is left of the
/// attempt.
pub async fn run(verb: &HotPlug, run_dir: Option<PathBuf>) -> Result<Envelope<Report>, Error> {
    // Of a pod, the container was found.
    let prefix = verb.container.as_deref().unwrap_or_default();
    let options = verb.target.session(run_dir, Some(prefix))?;
    let request = PlugRequest::new(verb, options.deadline)?;
    let located = Located::new(options)?;
    let container = located.sandbox.container(prefix, &[])?;
    let (mut session, mut signals) = located.lock().await?;

    let Session { sandbox, deadline, watch, .. } = &mut session;
    let preflight = preflight::run(sandbox, verb, &request, *deadline, watch);
    let preflight = signals.unless_caught(preflight).await?;
    fault::point("after-preflight").await?;

    let (mut plug, mut inventory) = Plug::new(verb, request, session, container, preflight)?;
    let done = signals.unless_caught(plug.run(&mut inventory)).await;
    let Err(cause) = done else { return plug.report() };
    let cause = plug.explain(cause);
    let may_be_left = plug.describe_added();
    let left = tokio::select! {
        left = plug.roll_back() => left,
        _ = signals.next() => {
            let text = "a second signal ended the rollback".to_owned();
            [vec![text], may_be_left].concat()
        }
    };
    if left.is_empty() {
        Err(cause)
    } else {
        Err(Error::Incomplete { cause: Box::new(cause), left })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::parse_mode;

    #[rstest]
    #[case("660", Some(0o660))]
    #[case("0600", Some(0o600))]
    #[case("1777", None)]
    #[case("8", None)]
    #[case("+7", None)]
    #[case("", None)]
    fn modes_are_octal(#[case] text: &str, #[case] mode: Option<u32>) {
        assert_eq!(parse_mode(text).ok(), mode);
    }
}
