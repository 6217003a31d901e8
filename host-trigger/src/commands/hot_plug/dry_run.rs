//! The dry run of a hot-plug: all checks that the real one makes before it adds a disk. The guest
//! is asked by `Probe`. Volumes that are attached already are inspected there, and that is all.
//! Only an attempt shows whether the guest's policy allows it, and whether QEMU and the guest's
//! kernel accept the disk.

use block_volume_api::block_volume::Attached;

use super::{plug::Plug, preflight};
use crate::{
    Error,
    ops::inspect::{self, Details},
};

impl Plug<'_> {
    pub(super) async fn dry_run(&mut self) -> Result<(), Error> {
        let deadline = self.session.deadline;
        let probe = self.probe().await?;
        self.check_paths(&probe).await?;
        self.claim_sources().await?;
        for volume in self.volumes.iter_mut().filter(|volume| volume.is_attached()) {
            let request = volume.detachment();
            let seen = inspect::inspect(&self.agent, &request, Details::None, deadline).await?;
            if let Some((_, error)) = inspect::untold(&seen) {
                return Err(error);
            }
            if !seen.node_present {
                preflight::check_path(&probe, &volume.intent)?;
            }
            let outcome = volume.commit().map(|commit| commit.outcome());
            let same_container = outcome
                .as_ref()
                .is_some_and(|outcome| outcome.container_started == seen.container_started);
            volume.attached = Some(Attached {
                unchanged: seen.disk_present && seen.node_present && seen.allowed && same_container,
                guest_device: seen.guest_device,
                outcome: outcome.into(),
                ..Default::default()
            });
        }
        Ok(())
    }
}
