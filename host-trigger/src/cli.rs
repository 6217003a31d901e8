//! The command line, by [clap](https://docs.rs/clap): flags and their checks.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::{
    Error,
    agent::AgentAddress,
    check::Check,
    output::Format,
    resize::Resize,
    sandbox::Search,
    stats::Stats,
    stopwatch::parse_duration,
    throttle::{LimitArgs, Throttle},
    volume::VolumeId,
};

/// The number above it is no user's and no group's: `chown(2)` takes it for "leave it".
const LARGEST_ID: i64 = u32::MAX as i64 - 1;

/// Hot-plugs host block volumes into running containers of VM sandboxes.
#[derive(Debug, Parser)]
#[command(name = "ecr-runtime", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// Directory of the sandboxes' state [default: /run/vc, then /run/kata]
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) run_dir: Option<PathBuf>,

    /// Where a line about each operation goes: a file, or a syslog socket [default: /dev/log, where
    /// there is one]
    #[arg(long, value_name = "PATH", global = true)]
    pub(crate) audit_log: Option<PathBuf>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Check(Box<Check>),
    /// Works on block volumes
    BlockVolume {
        #[command(subcommand)]
        verb: Verb,
    },
    /// Prints a completion script
    Completions {
        /// For this shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    HotPlug(Box<HotPlug>),
    HotUnplug(Box<HotUnplug>),
    List(Box<List>),
    Inspect(Box<Inspect>),
    Resize(Box<Resize>),
    Throttle(Box<Throttle>),
    Stats(Box<Stats>),
    Repair(Box<Repair>),
}

/// Which sandbox, how to reach it, and how to tell what came of it; the same for all verbs.
#[derive(Debug, Args)]
pub struct Target {
    /// The sandbox's id, or the start of it [default: the one that has the container]
    #[arg(long, value_name = "ID")]
    pub sandbox: Option<String>,

    /// Time for the whole command, such as 30s or 1500ms
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub timeout: Duration,

    /// How the result is printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "human")]
    pub output: Format,

    /// QEMU's QMP socket, in place of the one that belongs to the sandbox
    #[arg(long, value_name = "PATH")]
    pub qmp: Option<PathBuf>,

    /// The agent's address: vsock://CID:PORT, hvsock://PATH:PORT or unix://PATH
    #[arg(long, value_name = "ADDRESS")]
    pub agent: Option<String>,

    /// Says on standard error what is done
    #[arg(short, long)]
    pub verbose: bool,
}

/// Makes host block volumes usable in a running container
///
/// A volume is a block device or a raw image. It is claimed for as long as the sandbox has it.
/// Several volumes take one call: repeat --block-volume and --device-path in pairs; then all of
/// them are plugged or none.
#[derive(Debug, Args)]
pub struct HotPlug {
    /// How to reach the sandbox.
    #[command(flatten)]
    pub target: Target,

    /// The container's id, or the start of it
    #[arg(long, value_name = "ID")]
    pub container: String,

    /// The virtio-scsi controller, by QEMU's id [default: scsi0, or the only one]
    #[arg(long, value_name = "ID")]
    pub controller: Option<String>,

    /// Path of the volume on the host
    #[arg(long, value_name = "PATH", required = true)]
    pub block_volume: Vec<PathBuf>,

    /// Path of the device in the container; nothing may be there yet
    #[arg(long, value_name = "PATH", required = true)]
    pub device_path: Vec<String>,

    /// The container can only read
    #[arg(long)]
    pub read_only: bool,

    /// The volume may be plugged into another container of this sandbox, or at another path,
    /// already: then this is one more use of the same disk. Nothing keeps their writers from each
    /// other then: an ordinary file system that two of them mount is destroyed
    #[arg(long)]
    pub shared: bool,

    /// Only checks what can be checked, and says what would be done; changes nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Owner of the device in the container
    #[arg(long, value_name = "ID", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=LARGEST_ID))]
    pub uid: u32,

    /// Group of the device in the container
    #[arg(long, value_name = "ID", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=LARGEST_ID))]
    pub gid: u32,

    /// Permission bits of the device in the container, in octal
    #[arg(long, value_name = "BITS", default_value = "660", value_parser = parse_mode)]
    pub mode: u32,

    /// What every volume is limited to, from the start.
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// Which volume of those that are plugged.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Which {
    /// Path of the device in the container
    #[arg(long, value_name = "PATH")]
    pub device_path: Option<String>,

    /// The volume's id, as hot-plug and list tell it
    #[arg(long, value_name = "ID", value_parser = parse_volume)]
    pub volume: Option<VolumeId>,
}

/// Takes a volume away from its container, and frees it on the host
///
/// A volume that somebody in the guest holds is not taken away (exit status 5), and nothing
/// changes; who holds it is told: processes that have the device open, by whatever node, mounts in
/// any container or outside, device mapper, md, loop devices, swap. With --wait they get time to
/// let go. With --force it goes all the same: what the guest has not written back is written as far
/// as that is possible, whoever used the device gets I/O errors from then on, a file system on it
/// stays mounted and broken until it is unmounted, and what was broken is told. The container may
/// be gone; a volume that a killed run left half plugged or half unplugged is taken away as far as
/// it is there. On success the guest has no disk, the container no node and no right, and QEMU no
/// device, node or descriptor of it: the host can use the volume again.
///
/// A volume that is not there is `unchanged`, with exit status 0, where --volume names it: it is as
/// asked for. A path alone does not tell which volume was meant, so that with --device-path it is
/// not found (exit status 3).
///
/// A SIGINT, SIGTERM or SIGHUP ends a wait, with nothing changed. Otherwise, once the guest was
/// asked, a first SIGINT, SIGTERM or SIGHUP lets the removal go on to its end; a second one ends it
/// at once. A removal that was cut short is completed by the same command.
#[derive(Debug, Args)]
pub struct HotUnplug {
    /// How to reach the sandbox.
    #[command(flatten)]
    pub target: Target,

    /// The container's id, or the start of it; only a volume of this container is meant
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,

    /// Which volume.
    #[command(flatten)]
    pub which: Which,

    /// Time for those who hold the volume to let go of it, at most 9m; it comes on top of
    /// --timeout. Other commands on the sandbox wait as long
    #[arg(long, value_name = "TIME", value_parser = parse_wait)]
    pub wait: Option<Duration>,

    /// Takes it away from those who hold it, and tells who that was
    #[arg(long, conflicts_with = "wait")]
    pub force: bool,

    /// Only checks what can be checked, and says what would be done; changes nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Shows the volumes of a sandbox as QEMU and the guest have them now
///
/// Changes nothing. The state is `attached`, `incomplete` (a run was killed, or a part was taken
/// away: repair brings it to an end), `stale: container gone`, or `stale: container restarted` (the
/// container of this id was started since, and does not have it). Stale ones are freed by
/// hot-unplug and repair; hot-plug gives them to the container that runs now. A shared volume has a
/// line for each of its uses. Where the guest does not answer, QEMU's part is shown, and that it is
/// only that.
#[derive(Debug, Args)]
pub struct List {
    /// How to reach the sandbox.
    #[command(flatten)]
    pub target: Target,

    /// The container's id, or the start of it [default: all containers]
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,
}

/// Shows all that is known of one volume
///
/// Changes nothing. The states are those of list.
#[derive(Debug, Args)]
pub struct Inspect {
    /// How to reach the sandbox.
    #[command(flatten)]
    pub target: Target,

    /// The container's id, or the start of it; only a volume of this container is meant
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,

    /// Which volume.
    #[command(flatten)]
    pub which: Which,
}

/// Completes or undoes whatever killed runs left in a sandbox
///
/// Each volume of which anything is there is brought to an end: wholly plugged, or wholly gone. A
/// plug that the guest had done is completed; any other is undone. An unplug that had begun is
/// completed. A node or a right that the container lost is made again. A volume whose container is
/// gone is freed. Descriptors of ours that nothing uses are removed. A volume that is well is kept,
/// and nothing of anybody else's is touched.
///
/// The exit status is 0 if all is well then, and 8 if something is left: the guest does not answer
/// and has a say, the volume is in use, or its record is lost. It says of each volume what it was,
/// what was done, and why.
///
/// A first SIGINT, SIGTERM or SIGHUP lets the volume that is worked on be finished; a second one
/// ends it at once. Either way it can be run again.
#[derive(Debug, Args)]
pub struct Repair {
    /// How to reach the sandbox.
    #[command(flatten)]
    pub target: Target,

    /// Only says what would be done; changes nothing
    #[arg(long)]
    pub dry_run: bool,
}

impl Target {
    /// What is looked for, below `run_dir` if one was named; `container` tells the sandbox where
    /// that is not named.
    ///
    /// # Errors
    /// The agent's address is not one.
    pub fn search(
        &self,
        run_dir: Option<PathBuf>,
        container: Option<&str>,
    ) -> Result<Search, Error> {
        let agent = self.agent.as_deref().map(str::parse::<AgentAddress>).transpose()?;
        Ok(Search {
            run_dir,
            sandbox: self.sandbox.clone(),
            container: container.map(str::to_owned),
            qmp: self.qmp.clone(),
            agent,
        })
    }
}

fn parse_mode(text: &str) -> Result<u32, String> {
    let mode =
        u32::from_str_radix(text, 8).ok().filter(|&mode| mode <= 0o777 && !text.starts_with('+'));
    mode.ok_or_else(|| "expected permission bits in octal, at most 777".to_owned())
}

/// With what is left of an ordinary time-out, a longer one does not fit into one request to the
/// guest.
fn parse_wait(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(540);
    let wait = parse_duration(text)?;
    if wait <= LONGEST { Ok(wait) } else { Err("expected at most 9m".to_owned()) }
}

pub(crate) fn parse_volume(text: &str) -> Result<VolumeId, String> {
    VolumeId::parse(text)
        .ok_or_else(|| "expected sixteen hexadecimal digits in lower case".to_owned())
}

impl Verb {
    pub(crate) fn target(&self) -> &Target {
        match self {
            Self::HotPlug(verb) => &verb.target,
            Self::HotUnplug(verb) => &verb.target,
            Self::List(verb) => &verb.target,
            Self::Inspect(verb) => &verb.target,
            Self::Resize(verb) => &verb.target,
            Self::Throttle(verb) => &verb.target,
            Self::Stats(verb) => &verb.target,
            Self::Repair(verb) => &verb.target,
        }
    }
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
