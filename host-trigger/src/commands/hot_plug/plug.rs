//! The plug of all volumes of one call, step by step, and what is rolled back if a step fails.

use std::time::Duration;

use block_volume_api::block_volume::{AttachRequest, ProbeResponse};
use block_volume_qmp::Qmp;

use super::{
    HotPlug,
    preflight::{self, Preflight},
    volume::PlugVolume,
};
use crate::{
    Error, diagnostics,
    error::Chain,
    fault,
    kata::{agent::Agent, agent_address::AgentAddress},
    ops::{
        commit,
        guest_request::RequestTime,
        rollback::plug::{Added, PlugRollback},
        session::Session,
    },
    path_text,
    qemu::{
        disk::{self, Addresses, ScsiAddress},
        inventory::Inventory,
        known_bugs,
        record::{Access, IntentRecord, Record},
    },
    sanitize::sanitize,
    volume_id::{VolumeId, reservation_name},
};

/// The maximum number of stages of the guest that are shown.
const MAX_STAGES: usize = 32;
/// The version that is written to records.
const TOOL: &str = env!("CARGO_PKG_VERSION");

/// The plug of all volumes of one call.
pub(super) struct Plug<'a> {
    pub(super) verb: &'a HotPlug,
    container: String,
    address: AgentAddress,
    pub(super) agent: Agent,
    pub(super) qmp: Qmp,
    pub(super) volumes: Vec<PlugVolume>,
    /// The guest was asked to attach, and did not reply that it rolled back everything.
    guest_asked: bool,
    /// Fields are dropped in their order: the lock is released after QEMU's socket is closed and
    /// the claims of the sources end, so that the next run finds both free.
    pub(super) session: Session,
}

impl<'a> Plug<'a> {
    pub(super) fn new(
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
                source: path_text::encode(&source.device),
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
            Self { verb, container, address, agent, qmp, volumes, guest_asked: false, session };
        Ok((plug, inventory, probe))
    }

    pub(super) async fn run(
        &mut self,
        inventory: &mut Option<Inventory>,
        mut probe: ProbeResponse,
    ) -> Result<(), Error> {
        let warnings = known_bugs::warnings(self.qmp.version());
        warnings.for_each(|warning| diagnostics::line(&warning));
        let rolled_back = match inventory {
            Some(inventory) => {
                self.check_abandoned(inventory)?;
                self.reconcile(inventory).await?
            }
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
                let file = volume.source.claim(self.session.deadline).await?;
                if self.verb.image_format.is_none() {
                    volume.source.check_format(file)?;
                }
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
        let file = volume.source.claim(self.session.deadline).await?;
        volume.set = qmp.add_fd(file, None, &intent).await?.set;
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

    /// Describes what this run may have put into QEMU and the guest.
    pub(super) fn describe_added(&self) -> Vec<String> {
        let describe = |volume: &PlugVolume| volume.added_volume().describe(self.guest_asked);
        self.volumes.iter().filter_map(describe).collect()
    }

    /// Rolls back everything that this run may have done. Returns what could not be rolled back.
    pub(super) async fn roll_back(&mut self) -> Vec<String> {
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
}

/// QEMU's refusal of a file that is locked, as an error of the source.
fn held_elsewhere(error: Error, volume: &PlugVolume) -> Error {
    if !disk::is_locked(&error) {
        return error;
    }
    let path = volume.source.given.clone();
    Error::SourceHeld { path, chain: Chain::default(), holder: "a QEMU that has it open".into() }
}
