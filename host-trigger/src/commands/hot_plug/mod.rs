//! `block-volume hot-plug`: the sequence from a host volume to a device in a running container.
//!
//! 1. Before anything changes: find and lock the sandbox, ask the guest, QEMU and the source.
//! 2. Roll back what an interrupted run left of the same volumes.
//! 3. For each volume `add-fd` (with the intent record), `blockdev-add`, `device_add`.
//! 4. One `Attach` for all volumes in the guest; then the commit records are written.
//!
//! All or nothing: after any failure, lost reply, deadline or signal, each step that may have been
//! taken is rolled back.

use std::{path::PathBuf, time::Duration};

use block_volume_api::block_volume::{AttachRequest, ProbeResponse};
use block_volume_qmp::Qmp;
use clap::Args;

mod dry_run;
mod preflight;
mod reconcile;
mod volume;

use preflight::Preflight;
use volume::PlugVolume;

use crate::{
    Error,
    cli::{limits::LimitArgs, target::Target},
    device_path::check_device_path,
    diagnostics, fault,
    kata::{agent::Agent, agent_address::AgentAddress},
    ops::{
        commit,
        guest_request::RequestTime,
        rollback::plug::{Added, PlugRollback},
        session::{Located, Session},
        volume::{Scsi, Volume},
    },
    output::{
        envelope::{Envelope, Outcome},
        report::Report,
    },
    qemu::{
        disk::{self, Addresses, ScsiAddress},
        inventory::Inventory,
        known_bugs,
        record::{Access, IntentRecord, Record},
    },
    sanitize::sanitize,
    volume_id::{VolumeId, reservation_name},
};

/// The largest user and group ID: `chown(2)` takes the next number for "leave it unchanged".
const MAX_ID: i64 = u32::MAX as i64 - 1;
/// The maximum number of volumes in one call.
const MAX_VOLUMES: usize = 256;
/// The maximum number of stages of the guest that are shown.
const MAX_STAGES: usize = 32;
/// The version that is written to records.
const TOOL: &str = env!("CARGO_PKG_VERSION");

/// Attach host block volumes to a running container
///
/// A volume is a block device or a raw image. It is claimed for as long as the sandbox has it.
/// Several volumes can be attached in one call: repeat --block-volume and --device-path in pairs;
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

    /// Container ID or a unique prefix of it
    #[arg(long, value_name = "ID")]
    pub container: String,

    /// virtio-scsi controller, by QEMU's ID [default: scsi0, or the only one]
    #[arg(long, value_name = "ID")]
    pub controller: Option<String>,

    /// Path of the volume on the host
    #[arg(long, value_name = "PATH", required = true)]
    pub block_volume: Vec<PathBuf>,

    /// Path of the device in the container; it must not exist yet
    #[arg(long, value_name = "PATH", required = true)]
    pub device_path: Vec<String>,

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

    /// Owner of the device in the container
    #[arg(long, value_name = "ID", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=MAX_ID))]
    pub uid: u32,

    /// Group of the device in the container
    #[arg(long, value_name = "ID", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=MAX_ID))]
    pub gid: u32,

    /// Permission bits of the device in the container, in octal
    #[arg(long, value_name = "BITS", default_value = "660", value_parser = parse_mode)]
    pub mode: u32,

    /// The limits of each volume, from the start.
    #[command(flatten)]
    pub limits: LimitArgs,
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
    check(verb)?;
    let located = Located::new(verb.target.session(run_dir, Some(&verb.container))?)?;
    let container = located.sandbox.container(&verb.container, &[])?;
    let (mut session, mut signals) = located.lock().await?;

    let Session { sandbox, deadline, watch, .. } = &mut session;
    let preflight = preflight::run(sandbox, &container, verb, *deadline, watch);
    let preflight = signals.unless_caught(preflight).await?;
    fault::point("after-probe").await?;

    let (mut plug, mut inventory, probe) = Plug::new(verb, session, container, preflight)?;
    let done = signals.unless_caught(plug.run(&mut inventory, probe)).await;
    let Err(cause) = done else { return plug.report() };
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

/// Checks the command line alone.
fn check(verb: &HotPlug) -> Result<(), Error> {
    let (volumes, paths) = (verb.block_volume.len(), verb.device_path.len());
    if volumes != paths {
        return Err(Error::Unpaired { volumes, paths });
    }
    verb.limits.change()?.alone()?;
    if volumes > MAX_VOLUMES {
        return Err(Error::TooMany { count: volumes });
    }
    for (index, path) in verb.device_path.iter().enumerate() {
        check_device_path(path).map_err(|why| Error::DevicePath { path: path.clone(), why })?;
        if verb.device_path[..index].contains(path) {
            return Err(Error::Repeated { what: "the device path", value: path.clone() });
        }
    }
    Ok(())
}

/// The plug of all volumes of one call.
struct Plug<'a> {
    verb: &'a HotPlug,
    session: Session,
    container: String,
    address: AgentAddress,
    agent: Agent,
    qmp: Qmp,
    volumes: Vec<PlugVolume>,
    /// The guest was asked to attach, and did not reply that it rolled back everything.
    guest_asked: bool,
}

impl<'a> Plug<'a> {
    fn new(
        verb: &'a HotPlug,
        session: Session,
        container: String,
        preflight: Preflight,
    ) -> Result<(Self, Option<Inventory>, ProbeResponse), Error> {
        let run = format!("{:08x}", fastrand::u32(..));
        let limits = verb.limits.change()?.alone()?;
        let mut volumes: Vec<PlugVolume> = Vec::with_capacity(preflight.sources.len());
        for (source, path) in preflight.sources.into_iter().zip(&verb.device_path) {
            let id = VolumeId::derive(&session.sandbox.id, &source.identity);
            if volumes.iter().any(|volume| volume.id == id) {
                let value = source.given.display().to_string();
                return Err(Error::Repeated { what: "the volume", value });
            }
            let intent = IntentRecord {
                v: 1,
                id: id.to_string(),
                container: container.clone(),
                path: path.clone(),
                source: source.device.to_string_lossy().into_owned(),
                size: source.size,
                access: if verb.read_only { Access::ReadOnly } else { Access::ReadWrite },
                uid: verb.uid,
                gid: verb.gid,
                mode: verb.mode,
                tool: TOOL.to_owned(),
                run: run.clone(),
            };
            volumes.push(PlugVolume {
                id,
                source,
                intent,
                existing: None,
                leftover: false,
                added: Added::Nothing,
                set: 0,
                controller: preflight.controller.clone(),
                address: ScsiAddress { target: 0, lun: 0 },
                attached: None,
                limits,
            });
        }
        let Preflight { address, agent, qmp, inventory, probe, .. } = preflight;
        let plug =
            Self { verb, session, container, address, agent, qmp, volumes, guest_asked: false };
        Ok((plug, inventory, probe))
    }

    async fn run(
        &mut self,
        inventory: &mut Option<Inventory>,
        mut probe: ProbeResponse,
    ) -> Result<(), Error> {
        let warnings = known_bugs::warnings(self.qmp.version());
        warnings.for_each(|warning| diagnostics::line(&warning));
        let rolled_back = match inventory {
            Some(inventory) => self.reconcile(inventory).await?,
            None => false,
        };
        if rolled_back && !self.verb.dry_run {
            // The rollback may have freed a path.
            let paths = self.verb.device_path.clone();
            probe = self.agent.probe(&self.container, paths, self.session.deadline).await?;
        }
        // In a dry run the leftovers still are at the path and over the source.
        for index in 0..self.volumes.len() {
            let volume = &self.volumes[index];
            if volume.is_attached() || self.verb.dry_run && volume.leftover {
                continue;
            }
            let free = preflight::check_path(&probe, &volume.intent.path);
            if matches!(free, Err(Error::PathTaken { .. })) {
                self.check_path_in_qemu(index).await?;
            }
            free?;
            let volume = &self.volumes[index];
            if volume.existing.is_none() {
                volume.source.claim()?;
            }
        }
        self.session.watch.lap("reconcile");
        if self.verb.dry_run {
            return self.dry_run(&probe).await;
        }
        let mut addresses = Addresses::shuffled();
        for index in 0..self.volumes.len() {
            match self.volumes[index].existing {
                None => self.add_disk(index, &mut addresses).await?,
                Some(_) => self.begin_attachment(index).await?,
            }
        }
        self.attach().await?;
        self.write_commits().await
    }

    /// Records a further attachment of a disk before the guest is asked for it, and reserves its
    /// path.
    async fn begin_attachment(&mut self, index: usize) -> Result<(), Error> {
        let (volume, qmp) = (&mut self.volumes[index], &mut self.qmp);
        if let Some(begun) = volume.begun().filter(|_| !volume.is_attached()) {
            volume.added = Added::Attachment;
            let carrier = commit::write(qmp, volume.set, &begun).await?;
            volume.begin(carrier, begun);
            fault::point("after-record-attachment").await?;
        }
        if volume.is_further() {
            // Also for one that was attached: an interrupted unplug may have released its path.
            let IntentRecord { container, path, .. } = &volume.intent;
            disk::reserve_path(qmp, &reservation_name(container, path)).await?;
            fault::point("after-reserve-path").await?;
            self.session.watch.lap("begin_attachment");
        }
        Ok(())
    }

    /// Passes the volume to QEMU and adds it to the VM as a disk.
    async fn add_disk(&mut self, index: usize, addresses: &mut Addresses) -> Result<(), Error> {
        let (volume, qmp) = (&mut self.volumes[index], &mut self.qmp);
        // Assume that a sent command ran: a QEMU that was stopped may execute it from its socket
        // buffer when it resumes, with no client connected (1 in 5, QEMU 10.0).
        volume.added = Added::Records;
        let intent = Record::Intent(volume.intent.clone()).to_opaque();
        volume.set = qmp.add_fd(volume.source.claim()?, None, &intent).await?.set;
        fault::point("after-add-fd").await?;
        self.session.watch.lap("add_fd");

        volume.added = Added::Disk;
        self.add_node(index).await?;
        fault::point("after-blockdev-add").await?;
        self.session.watch.lap("blockdev_add");

        let (volume, qmp) = (&mut self.volumes[index], &mut self.qmp);
        let (backend, controller) = (volume.backend(), &volume.controller.id);
        let added = disk::add_device(qmp, &volume.id, backend, controller, addresses).await;
        volume.address = added.map_err(|e| held_elsewhere(e, volume))?;
        fault::point("after-device-add").await?;
        self.session.watch.lap("device_add");
        // Before the guest makes it usable: QEMU cannot add a device with limits.
        if !volume.limits.is_unlimited() {
            volume.limits.write(qmp, &volume.id).await?;
            self.session.watch.lap("throttle");
        }
        let PlugVolume { id, controller, address: ScsiAddress { target, lun }, .. } = volume;
        self.session.log.step(|| format!("volume {id} is disk {}:{target}:{lun}", controller.id));
        Ok(())
    }

    /// Adds the volume's block node under the name that reserves its path: QEMU refuses the name if
    /// another volume has the path.
    async fn add_node(&mut self, index: usize) -> Result<(), Error> {
        let IntentRecord { container, path, .. } = &self.volumes[index].intent;
        let reservation = reservation_name(container, path);
        if self.try_add_node(index, Some(&reservation)).await? {
            return Ok(());
        }
        self.volumes[index].added = Added::Records;
        self.check_path_in_qemu(index).await?;
        // The name outlived its attachment: the disk has others, or a run was interrupted.
        self.volumes[index].added = Added::Disk;
        self.try_add_node(index, None).await.map(drop)
    }

    async fn try_add_node(
        &mut self,
        index: usize,
        reservation: Option<&str>,
    ) -> Result<bool, Error> {
        let (volume, qmp) = (&mut self.volumes[index], &mut self.qmp);
        let (backend, read_only) = (volume.backend(), self.verb.read_only);
        let added =
            disk::add_node(qmp, &volume.id, backend, read_only, volume.set, reservation).await;
        if matches!(added, Err(Error::ConcurrentRun { .. })) {
            volume.added = Added::Records;
        }
        added.map_err(|e| held_elsewhere(e, volume))
    }

    /// Asks the guest to attach all volumes.
    async fn attach(&mut self) -> Result<(), Error> {
        let RequestTime { timeout_ms, reply_by } = RequestTime::until(self.session.deadline);
        let request = AttachRequest {
            attachments: self.volumes.iter().map(PlugVolume::attachment).collect(),
            timeout_ms,
            ..Default::default()
        };
        self.guest_asked = true;
        let reply = self.agent.attach(&request, reply_by).await;
        if matches!(reply, Err(Error::Guest { undone: true, .. })) {
            self.guest_asked = false;
        }
        let reply = reply?;
        fault::point("after-attach").await?;
        for stage in reply.stages.iter().take(MAX_STAGES) {
            let name = format!("guest_{}", sanitize(&stage.name));
            self.session.watch.record(name, Duration::from_micros(stage.micros));
        }
        if reply.attached.len() != self.volumes.len() {
            return Err(commit::mismatch("another number of volumes"));
        }
        let pairs = request.attachments.iter().zip(reply.attached);
        for (volume, (requested, attached)) in self.volumes.iter_mut().zip(pairs) {
            commit::check(requested, &attached)?;
            volume.attached = Some(attached);
        }
        self.session.watch.lap("attach");
        Ok(())
    }

    /// Writes the commit records. With its record a volume is attached; without it a later run
    /// rolls the volume back.
    async fn write_commits(&mut self) -> Result<(), Error> {
        for volume in &self.volumes {
            let Some(attached) = &volume.attached else { continue };
            if volume.is_recorded(attached) {
                continue;
            }
            let record = volume.new_commit(attached);
            commit::replace(&mut self.qmp, volume.set, volume.carrier(), &record).await?;
        }
        fault::point("after-commit").await?;
        self.session.watch.lap("commit");
        Ok(())
    }

    /// What this run may have put into QEMU and the guest, for people.
    fn describe_added(&self) -> Vec<String> {
        let describe = |volume: &PlugVolume| volume.added_volume().describe(self.guest_asked);
        self.volumes.iter().filter_map(describe).collect()
    }

    /// Rolls back everything that this run may have done. Returns what could not be rolled back.
    async fn roll_back(&mut self) -> Vec<String> {
        let mut rollback = PlugRollback {
            sandbox: &self.session.sandbox,
            log: self.session.log,
            deadline: self.session.deadline,
            qmp: &mut self.qmp,
            agent: &self.agent,
            address: &self.address,
            guest_asked: self.guest_asked,
            volumes: self.volumes.iter().map(PlugVolume::added_volume).collect(),
        };
        rollback.run().await
    }

    fn report(self) -> Result<Envelope<Report>, Error> {
        let is_unchanged = |volume: &PlugVolume| {
            volume.is_attached()
                && volume.attached.as_ref().is_some_and(|attached| attached.unchanged)
        };
        let result = match self.volumes.iter().all(is_unchanged) {
            true => Outcome::Unchanged,
            false => Outcome::Attached,
        };
        let volumes = self.volumes.iter().map(|volume| {
            let reported = Volume {
                id: volume.id.to_string(),
                sandbox: self.session.sandbox.id.clone(),
                container: volume.intent.container.clone(),
                device_path: volume.intent.path.clone(),
                source: volume.source.given.clone(),
                source_device: volume.source.device.clone(),
                size: volume.size(),
                read_only: self.verb.read_only,
                shared: volume.is_shared(),
                throttle: volume.limits,
                scsi: Scsi {
                    controller: volume.controller.id.clone(),
                    target: volume.address.target,
                    lun: volume.address.lun,
                },
                ..Volume::default()
            };
            match &volume.attached {
                Some(attached) => reported.with_commit(volume.new_commit(attached)),
                None => reported,
            }
        });
        let report = Report { volumes: volumes.collect(), broken_holders: Vec::new() };
        let watch = self.session.watch;
        Ok(Envelope::new("hot-plug", result, report)
            .with_dry_run(self.verb.dry_run)
            .with_timings(watch))
    }
}

/// QEMU's refusal of a file that is locked, as an error of the source.
fn held_elsewhere(error: Error, volume: &PlugVolume) -> Error {
    if !disk::is_locked(&error) {
        return error;
    }
    let path = volume.source.given.clone();
    Error::SourceHeld { path, holder: "a QEMU that has it open".into() }
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
