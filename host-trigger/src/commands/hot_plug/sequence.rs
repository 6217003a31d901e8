//! The order of a hot-plug's steps. QEMU and the guest work at the same time:
//!
//! | QEMU | guest |
//! |---|---|
//! | `add-fd`, `blockdev-add` | looks up container, path and device filter; is ready |
//! | `device_add` | |
//! | | finds the disk, makes the device node |
//! | the commit record | publishes |
//! | | keeps it: the commit |
//!
//! The commit comes last, so that a run which is killed leaves nothing in the container: the guest
//! rolls back when the conversation ends without it.

use std::time::Duration;

use block_volume_api::block_volume::{Attached, ProbeResponse, Reason, Stage};

use super::{plug::Plug, preflight, volume::PlugVolume};
use crate::{
    Error, diagnostics, fault,
    ops::{
        commit::{self, NewCommit},
        guest_attach::GuestAttach,
    },
    qemu::{disk::Addresses, inventory::Inventory, known_bugs},
    sanitize::sanitize,
};

/// The maximum number of stages of the guest that are shown.
const MAX_STAGES: usize = 32;

impl Plug<'_> {
    pub(super) async fn run(&mut self, inventory: &mut Option<Inventory>) -> Result<(), Error> {
        let warnings = known_bugs::warnings(self.qmp.version());
        warnings.for_each(|warning| diagnostics::line(&warning));
        if let Some(inventory) = inventory {
            self.check_abandoned(inventory)?;
            self.reconcile(inventory).await?;
        }
        self.session.watch.lap("reconcile");
        if self.verb.dry_run {
            return self.dry_run().await;
        }
        let mut addresses = Addresses::shuffled();
        loop {
            self.choose_addresses(&mut addresses)?;
            let attachments = self.volumes.iter().map(PlugVolume::attachment).collect();
            let agent = self.agent.clone();
            let mut guest = GuestAttach::start(agent, attachments, self.session.deadline).await?;
            let plugged = self.plug(&mut guest).await;
            if let Ok(true) = plugged {
                return Ok(());
            }
            // Also before the disks exist: what the guest has prepared is gone with it.
            if guest.close().await {
                self.guest_asked = false;
            }
            plugged?;
        }
    }

    /// Chooses an address for each disk that the VM does not have.
    fn choose_addresses(&mut self, addresses: &mut Addresses) -> Result<(), Error> {
        for volume in &mut self.volumes {
            if volume.existing.is_none() && !volume.is_in_guest {
                volume.address = addresses.next().ok_or(Error::NoAddress)?;
            }
        }
        Ok(())
    }

    /// Plugs all volumes, in one conversation with the guest. Returns false if an address is taken.
    async fn plug(&mut self, guest: &mut GuestAttach) -> Result<bool, Error> {
        fault::point("after-start").await?;
        self.session.log.step(|| "the guest looks up the container".to_owned());
        let (found, added) = tokio::join!(guest.ready(), self.add_media());
        if let Err(Error::Guest { reason: Reason::REASON_PATH_TAKEN, .. }) = &found {
            self.check_paths_in_qemu().await?;
        }
        let (found, time) = found?;
        self.session.watch.record("ready", time);
        self.check_paths(&found).await?;
        added?;
        self.session.watch.lap("wait_ready");
        fault::point("after-ready").await?;
        if !self.add_disks().await? {
            return Ok(false);
        }
        self.session.log.step(|| "the guest attaches".to_owned());
        self.guest_asked = true;
        guest.go().await?;
        fault::point("after-go").await?;
        self.accept(guest.prepared().await?);
        fault::point("after-prepared").await?;
        self.session.watch.lap("prepared");
        let (attached, recorded) = tokio::join!(guest.attached(), self.write_commits());
        let (attached, stages) = attached?;
        self.show(&stages);
        recorded?;
        // A container may have made a directory itself that the guest was to make.
        self.accept(attached);
        self.write_commits().await?;
        self.session.watch.lap("attach");
        fault::point("after-attach").await?;
        guest.commit().await?;
        fault::point("after-commit").await?;
        self.session.watch.lap("commit");
        Ok(true)
    }

    /// Gives QEMU what the guest does not see: new volumes without their disks, and the records of
    /// further attachments.
    async fn add_media(&mut self) -> Result<(), Error> {
        if self.has_media {
            return Ok(());
        }
        self.claim_sources().await?;
        self.add_nodes().await?;
        for index in 0..self.volumes.len() {
            if self.volumes[index].existing.is_some() {
                self.begin_attachment(index).await?;
            }
        }
        self.has_media = true;
        Ok(())
    }

    /// Checks that no other volume has one of the paths, by what QEMU has now.
    async fn check_paths_in_qemu(&mut self) -> Result<(), Error> {
        for index in 0..self.volumes.len() {
            if !self.volumes[index].is_attached() {
                self.check_path_in_qemu(index).await?;
            }
        }
        Ok(())
    }

    /// Checks that the guest can attach each volume that is not attached.
    pub(super) async fn check_paths(&mut self, found: &ProbeResponse) -> Result<(), Error> {
        for index in 0..self.volumes.len() {
            let volume = &self.volumes[index];
            // In a dry run the leftovers still are at the path and over the source.
            if volume.is_attached() || self.verb.dry_run && volume.leftover {
                continue;
            }
            let free = preflight::check_path(found, &volume.intent);
            if matches!(free, Err(Error::PathTaken { .. })) {
                self.check_path_in_qemu(index).await?;
            }
            free?;
        }
        Ok(())
    }

    fn accept(&mut self, attached: Vec<Attached>) {
        for (volume, attached) in self.volumes.iter_mut().zip(attached) {
            volume.accept(attached);
        }
    }

    fn show(&mut self, stages: &[Stage]) {
        for stage in stages.iter().take(MAX_STAGES) {
            let name = format!("guest_{}", sanitize(&stage.name));
            self.session.watch.record(name, Duration::from_micros(stage.micros));
        }
    }

    /// Writes the commit records. With its record a volume is attached; without it a later run
    /// rolls the volume back.
    async fn write_commits(&mut self) -> Result<(), Error> {
        let is_due = |volume: &&PlugVolume| volume.record_is_due;
        let new = |volume: &PlugVolume| {
            let attached = volume.attached.as_ref()?;
            let (before, record) = (volume.carrier(), volume.new_commit(attached));
            Some(NewCommit { set: volume.set, before, record })
        };
        let commits: Vec<_> = self.volumes.iter().filter(is_due).filter_map(new).collect();
        if commits.is_empty() {
            return Ok(());
        }
        let carriers = commit::replace_all(&mut self.qmp, &commits).await?;
        let written = self.volumes.iter_mut().filter(|volume| volume.record_is_due);
        for (volume, carrier) in written.zip(carriers) {
            (volume.recorded, volume.record_is_due) = (Some(carrier), false);
        }
        fault::point("after-record").await
    }
}
