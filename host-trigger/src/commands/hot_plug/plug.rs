//! The plug of all volumes of one call: its steps in QEMU, and what is rolled back if a step fails.
//! `sequence` has the order of the steps.

use block_volume_api::block_volume::Reason;
use block_volume_qmp::Qmp;

use super::{
    HotPlug,
    preflight::Preflight,
    request::{PlugRequest, RequestedPlace},
    volume::PlugVolume,
};
use crate::{
    Error,
    error::Chain,
    fault,
    host::source::Source,
    kata::{agent::Agent, agent_address::AgentAddress},
    ops::{
        commit,
        rollback::plug::{Added, PlugRollback},
        session::Session,
    },
    path_text,
    qemu::{
        block_node,
        disk::{self, ScsiAddress},
        inventory::Inventory,
        record::{Access, IntentRecord, version},
    },
    volume_id::{VolumeId, reservation_name},
};

/// The version that is written to records.
const TOOL: &str = env!("CARGO_PKG_VERSION");

/// The plug of all volumes of one call.
pub(super) struct Plug<'a> {
    pub(super) verb: &'a HotPlug,
    pub(super) request: PlugRequest,
    pub(super) container: String,
    address: AgentAddress,
    pub(super) agent: Agent,
    pub(super) qmp: Qmp,
    pub(super) volumes: Vec<PlugVolume>,
    /// QEMU has everything but the disks.
    pub(super) has_media: bool,
    /// The guest was asked to attach, and did not reply that it rolled back everything.
    pub(super) guest_asked: bool,
    /// Fields are dropped in their order: the lock is released after QEMU's socket is closed and
    /// the claims of the sources end, so that the next run finds both free.
    pub(super) session: Session,
}

impl<'a> Plug<'a> {
    pub(super) fn new(
        verb: &'a HotPlug,
        request: PlugRequest,
        session: Session,
        container: String,
        preflight: Preflight,
    ) -> Result<(Self, Option<Inventory>), Error> {
        let run = format!("{:08x}", fastrand::u32(..));
        let limits = verb.limits.change()?.alone()?;
        let mut volumes: Vec<PlugVolume> = Vec::with_capacity(preflight.sources.len());
        for (source, place) in preflight.sources.into_iter().zip(&request.places) {
            let id = VolumeId::derive(&session.sandbox.id, &source.identity);
            if volumes.iter().any(|volume| volume.id == id) {
                let value = source.given.display().to_string();
                return Err(Error::Repeated { what: "the volume", value });
            }
            let RequestedPlace { path, mount, uid, gid, mode } = place.clone();
            let intent = IntentRecord {
                v: version(mount.is_some()),
                id: id.to_string(),
                container: container.clone(),
                path,
                mount,
                source: path_text::encode(&source.device),
                size: source.size,
                access: if request.read_only { Access::ReadOnly } else { Access::ReadWrite },
                uid,
                gid,
                mode,
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
                is_in_guest: false,
                set: 0,
                controller: preflight.controller.clone(),
                address: ScsiAddress { target: 0, lun: 0 },
                attached: None,
                record_is_due: false,
                recorded: None,
                limits,
            });
        }
        let Preflight { address, agent, qmp, inventory, .. } = preflight;
        let (has_media, guest_asked) = (false, false);
        let plug = Self {
            verb,
            request,
            container,
            address,
            agent,
            qmp,
            volumes,
            has_media,
            guest_asked,
            session,
        };
        Ok((plug, inventory))
    }

    /// Names the volume that an error of the guest is about by its path, where the remedy is about
    /// the volume on the host.
    pub(super) fn explain(&self, cause: Error) -> Error {
        let Error::Guest { reason: Reason::REASON_NO_FILE_SYSTEM, message, volume, .. } = &cause
        else {
            return cause;
        };
        match self.volumes.iter().find(|known| known.id.as_str() == volume) {
            Some(PlugVolume { source, intent, .. }) => {
                let requested = intent.mount.as_ref().map(|mount| mount.fs_type.as_str());
                // The types that are only read are made from a directory.
                let fs_type = match requested {
                    None | Some("" | "erofs" | "squashfs") => "ext4",
                    Some(fs_type) => fs_type,
                };
                Error::NoFileSystem {
                    path: source.given.clone(),
                    fs_type: fs_type.to_owned(),
                    message: message.clone(),
                }
            }
            None => cause,
        }
    }

    /// Records a further attachment of a disk before the guest is asked for it, and reserves its
    /// path.
    pub(super) async fn begin_attachment(&mut self, index: usize) -> Result<(), Error> {
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
            block_node::reserve_path(qmp, &reservation_name(container, path)).await?;
            fault::point("after-reserve-path").await?;
            self.session.watch.lap("begin_attachment");
        }
        Ok(())
    }

    /// Checks the sources of new disks once more, as late as possible.
    pub(super) async fn claim_sources(&self) -> Result<(), Error> {
        let is_left = |volume: &&PlugVolume| self.verb.dry_run && volume.leftover;
        let new =
            self.volumes.iter().filter(|volume| volume.existing.is_none() && !is_left(volume));
        let sources: Vec<_> = new.map(|volume| &volume.source).collect();
        if sources.is_empty() {
            return Ok(());
        }
        let check_format = self.verb.image_format.is_none();
        Source::claim_all(&sources, check_format, self.session.deadline).await
    }

    /// Passes the new volumes to QEMU and adds their block nodes, each under the name that reserves
    /// its path: QEMU refuses the name if another volume has the path.
    pub(super) async fn add_nodes(&mut self) -> Result<(), Error> {
        let new = (0..self.volumes.len()).filter(|&index| self.volumes[index].existing.is_none());
        let new: Vec<_> = new.collect();
        if new.is_empty() {
            return Ok(());
        }
        for &index in &new {
            let volume = &mut self.volumes[index];
            volume.set = volume.id.set();
            // Assume that a sent command ran: a QEMU that was stopped may execute it from its
            // socket buffer when it resumes, with no client connected (1 in 5, QEMU 10.0).
            volume.added = Added::Disk;
        }
        let read_only = self.request.read_only;
        let nodes = new.iter().map(|&index| self.volumes[index].new_node(read_only));
        let nodes = nodes.collect::<Result<Vec<_>, _>>()?;
        let all = block_node::add_all(&mut self.qmp, &nodes).await?;
        drop(nodes);
        let (mut failed, mut path_taken) = (None, Vec::new());
        for (&index, added) in new.iter().zip(all) {
            let volume = &mut self.volumes[index];
            match added {
                block_node::Added::Whole => {}
                block_node::Added::PathTaken => {
                    volume.added = Added::Records;
                    path_taken.push(index);
                }
                block_node::Added::Failed(e) => {
                    if matches!(e, Error::ConcurrentRun { .. }) {
                        volume.added = Added::Records;
                    }
                    failed = failed.or(Some(held_elsewhere(e, volume)));
                }
            }
        }
        failed.map_or(Ok(()), Err)?;
        for index in path_taken {
            self.add_without_reservation(index).await?;
        }
        fault::point("after-blockdev-add").await?;
        self.session.watch.lap("blockdev_add");
        Ok(())
    }

    /// Adds the block node of a volume whose path is reserved: the name may have outlived its
    /// attachment, because the disk has others, or a run was interrupted.
    async fn add_without_reservation(&mut self, index: usize) -> Result<(), Error> {
        self.check_path_in_qemu(index).await?;
        let volume = &mut self.volumes[index];
        volume.added = Added::Disk;
        let node = volume.new_node(self.request.read_only)?;
        let added = block_node::add_without_reservation(&mut self.qmp, &node).await;
        if matches!(added, Err(Error::ConcurrentRun { .. })) {
            volume.added = Added::Records;
        }
        added.map_err(|e| held_elsewhere(e, &self.volumes[index]))
    }

    /// Adds the new volumes to the VM as disks, those that it does not have. Returns false if the
    /// address of one is taken.
    pub(super) async fn add_disks(&mut self) -> Result<bool, Error> {
        let is_new = |volume: &PlugVolume| volume.existing.is_none() && !volume.is_in_guest;
        let new = self.volumes.iter().filter(|volume| is_new(volume));
        let disks: Vec<_> = new.map(PlugVolume::new_disk).collect();
        if disks.is_empty() {
            return Ok(true);
        }
        let all = disk::add_all(&mut self.qmp, &disks).await?;
        let mut is_whole = true;
        for (volume, added) in self.volumes.iter_mut().filter(|volume| is_new(volume)).zip(all) {
            volume.is_in_guest = added.map_err(|e| held_elsewhere(e, volume))?;
            is_whole &= volume.is_in_guest;
            let PlugVolume { id, controller, address: ScsiAddress { target, lun }, .. } = volume;
            let address = format!("{}:{target}:{lun}", controller.id);
            self.session.log.step(|| match volume.is_in_guest {
                true => format!("volume {id} is disk {address}"),
                false => format!("the address {address} is taken"),
            });
        }
        if is_whole {
            fault::point("after-device-add").await?;
        }
        self.session.watch.lap("device_add");
        Ok(is_whole)
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
