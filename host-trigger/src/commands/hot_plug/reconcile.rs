//! Reconciles the request with what exists of the volumes: attached, shared by others, or left by
//! an interrupted run. A leftover is rolled back first, so that the plug begins from nothing; a dry
//! run only remembers it.

use block_volume_api::block_volume::ProbeResponse;

use super::{plug::Plug, volume::PlugVolume};
use crate::{
    Error,
    host::source::Source,
    ops::{
        rollback::leftover::{self, Extent},
        session::PROBE_TIMEOUT,
    },
    qemu::{
        inventory::Inventory,
        record::IntentRecord,
        throttle::Limits,
        volume_state::{Attachment, VolumeState},
    },
};

impl Plug<'_> {
    /// Finds what is attached already, and rolls back what interrupted runs left.
    pub(super) async fn reconcile(&mut self, inventory: &mut Inventory) -> Result<(), Error> {
        for index in 0..self.volumes.len() {
            if !inventory.volume(&self.volumes[index].id).is_absent() {
                inventory.read_nodes(&mut self.qmp).await?;
            }
            let state = inventory.volume(&self.volumes[index].id);
            if let Some(size) = state.attached_size() {
                self.reconcile_disk(index, inventory, &state, size).await?;
            } else if state.is_absent() {
                self.check_path_in(inventory, index)?;
                inventory.check_set(&self.volumes[index].id)?;
            } else {
                self.volumes[index].leftover = true;
                if self.verb.dry_run {
                    continue;
                }
                self.roll_back_leftover(index, &state, Extent::Volume).await?;
                let source = &mut self.volumes[index].source;
                if !source.is_claimed() {
                    let (read_only, deadline) = (self.request.read_only, self.session.deadline);
                    *source = Source::open(&source.given, read_only, deadline).await?;
                }
            }
        }
        Ok(())
    }

    /// Checks that nothing new is plugged beside an abandoned volume: its container may still have
    /// the device node and the right, and a new disk could get the device number. What is attached
    /// already has its number.
    pub(super) fn check_abandoned(&self, inventory: &Inventory) -> Result<(), Error> {
        let attachments = inventory.attachments();
        // The block nodes may not have been read.
        let has_disk = |volume: &PlugVolume| {
            let mut same = attachments.iter().filter(|known| known.id == volume.id);
            same.any(|known| {
                known.state.device
                    && known.attachment.as_ref().is_some_and(Attachment::is_committed)
            })
        };
        match attachments.iter().find(|known| known.state.is_abandoned) {
            Some(known) if !self.volumes.iter().all(has_disk) => Err(known.abandoned_error()),
            _ => Ok(()),
        }
    }

    /// Reconciles with a whole disk.
    async fn reconcile_disk(
        &mut self,
        index: usize,
        inventory: &Inventory,
        state: &VolumeState,
        size: u64,
    ) -> Result<(), Error> {
        let (shared, controller) = (self.verb.shared, self.verb.controller.as_deref());
        let volume = &mut self.volumes[index];
        volume.use_existing(state, size, shared, controller, inventory)?;
        // The limits are the disk's, for all its attachments.
        let mut limits = Limits::read(&mut self.qmp).await?;
        volume.limits = limits.remove(&volume.id).unwrap_or_default();
        let change = self.verb.limits.change()?;
        if change.apply(&volume.id, &volume.limits).ok() != Some(volume.limits) {
            let (volume, differs) = (volume.id.to_string(), vec!["limit (--iops, --bps)"]);
            return Err(Error::OtherOptions { volume, differs });
        }
        if volume.is_attached() {
            return Ok(());
        }
        self.check_path_in(inventory, index)?;
        let IntentRecord { container, path, .. } = &self.volumes[index].intent;
        let begun = state.attachments().iter().any(|known| known.is_at(container, path));
        self.volumes[index].leftover = begun;
        if begun && !self.verb.dry_run {
            self.roll_back_leftover(index, state, Extent::Attachment).await?;
        }
        Ok(())
    }

    /// Checks that no other volume has this volume's path, by what QEMU has now.
    pub(super) async fn check_path_in_qemu(&mut self, index: usize) -> Result<(), Error> {
        let inventory = Inventory::read(&mut self.qmp).await?;
        self.check_path_in(&inventory, index)
    }

    /// Checks that no other volume has this volume's path.
    fn check_path_in(&self, inventory: &Inventory, index: usize) -> Result<(), Error> {
        let IntentRecord { id, container, path, .. } = &self.volumes[index].intent;
        let is_here =
            |known: &Attachment| known.committed().is_some() && known.is_at(container, path);
        let mut all = inventory.attachments().into_iter();
        let holder = all.find(|known| {
            known.id.as_str() != id && known.attachment.as_ref().is_some_and(is_here)
        });
        match holder {
            Some(known) => {
                let (path, container) = (path.clone(), container.clone());
                Err(Error::PathHoldsVolume { path, container, volume: known.id.to_string() })
            }
            None => Ok(()),
        }
    }

    /// Asks the guest for the state of the container and of the paths.
    pub(super) async fn probe(&self) -> Result<ProbeResponse, Error> {
        let (paths, mounts) = (self.request.paths(false), self.request.paths(true));
        let deadline = self.session.deadline.capped(PROBE_TIMEOUT);
        self.agent.probe(&self.container, paths, mounts, deadline).await
    }

    async fn roll_back_leftover(
        &mut self,
        index: usize,
        state: &VolumeState,
        extent: Extent,
    ) -> Result<(), Error> {
        // What refuses the plug is known before anything is rolled back for it.
        self.probe().await?;
        let PlugVolume { id, intent, .. } = &self.volumes[index];
        let what = format!("what an interrupted run left of volume {id}");
        self.session.log.step(|| format!("rolling back {what}"));
        let deadline = self.session.deadline;
        let done =
            leftover::roll_back(&mut self.qmp, &self.agent, id, state, intent, extent, deadline);
        done.await.map_err(|cause| Error::Incomplete { left: vec![what], cause: Box::new(cause) })
    }
}
