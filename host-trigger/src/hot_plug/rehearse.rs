//! The dry run of a plug, after all that the real one checks before it changes anything: what is
//! plugged already is looked at in the guest, and that is all. It cannot know what only an attempt
//! tells: whether the guest's policy allows `Attach`, and whether QEMU and the guest's kernel take
//! the disk.

use block_volume_api::block_volume::{Attached, ProbeResponse};

use super::Plug;
use crate::{Error, prepare, survey};

impl Plug<'_> {
    pub(super) async fn rehearse(&mut self, probe: &ProbeResponse) -> Result<(), Error> {
        for item in self.items.iter_mut().filter(|item| item.is_plugged()) {
            let question = item.detachment();
            let seen = survey::inspect(&self.link.agent, &question, false, self.deadline).await?;
            if !seen.node_present {
                prepare::check_path(probe, &item.intent.path)?;
            }
            let outcome = item.noted().map(|placement| placement.outcome());
            let same = outcome
                .as_ref()
                .is_some_and(|noted| noted.container_started == seen.container_started);
            item.attached = Some(Attached {
                unchanged: seen.disk_present && seen.node_present && seen.allowed && same,
                guest_device: seen.guest_device,
                outcome: outcome.into(),
                ..Default::default()
            });
        }
        Ok(())
    }
}
