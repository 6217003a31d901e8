//! What is there of the volumes already: plugged, shared by others, or left by a killed run. The
//! latter is taken back first, so that the plug begins from nothing; a dry run only notes it.

use super::{Item, Link, Plug};
use crate::{
    Error,
    limits::Limits,
    presence::{Presence, Use},
    record::Intent,
    registry::Registry,
    source::Source,
    undo::{self, Whose},
};

impl Plug<'_> {
    /// Finds what is plugged already, and takes back what killed runs left. Was there any of that?
    pub(super) async fn settle(&mut self, registry: &mut Registry) -> Result<bool, Error> {
        let mut took_back = false;
        for index in 0..self.items.len() {
            if !registry.presence(&self.items[index].id).is_nothing() {
                registry.read_nodes(&mut self.link.qmp).await?;
            }
            let presence = registry.presence(&self.items[index].id);
            if let Some(size) = presence.plugged() {
                took_back |= self.settle_there(index, registry, &presence, size).await?;
            } else if presence.is_nothing() {
                self.check_path_of_records(registry, index)?;
            } else {
                took_back = true;
                self.items[index].leftover = true;
                if self.verb.dry_run {
                    continue;
                }
                self.take_back_earlier(index, &presence).await?;
                let source = &mut self.items[index].source;
                if !source.is_claimed() {
                    *source = Source::open(&source.given, self.verb.read_only)?;
                }
            }
        }
        Ok(took_back)
    }

    /// The same of a disk that is there. Was there anything of this use that a killed run left?
    async fn settle_there(
        &mut self,
        index: usize,
        registry: &Registry,
        presence: &Presence,
        size: u64,
    ) -> Result<bool, Error> {
        let (shared, controller) = (self.verb.shared, self.verb.controller.as_deref());
        let item = &mut self.items[index];
        item.settle(presence, size, shared, controller, registry)?;
        // They are the disk's, whoever uses it.
        let mut limits = Limits::read(&mut self.link.qmp).await?;
        item.limits = limits.remove(&item.id).unwrap_or_default();
        if self.verb.limits.change()?.of(&item.id, &item.limits).ok() != Some(item.limits) {
            let (volume, differs) = (item.id.to_string(), vec!["limit (--iops, --bps)"]);
            return Err(Error::OtherOptions { volume, differs });
        }
        if item.is_plugged() {
            return Ok(false);
        }
        self.check_path_of_records(registry, index)?;
        let Intent { container, path, .. } = &self.items[index].intent;
        let begun = presence.uses().iter().any(|used| used.is_at(container, path));
        self.items[index].leftover = begun;
        if begun && !self.verb.dry_run {
            self.take_back_earlier(index, presence).await?;
        }
        Ok(begun)
    }

    /// Is another volume of ours at this item's path, by what QEMU has now?
    pub(super) async fn check_records_of_path(&mut self, index: usize) -> Result<(), Error> {
        let registry = Registry::read(&mut self.link.qmp).await?;
        self.check_path_of_records(&registry, index)
    }

    /// Is another volume of ours at this item's path?
    fn check_path_of_records(&self, registry: &Registry, index: usize) -> Result<(), Error> {
        let Intent { id, container, path, .. } = &self.items[index].intent;
        let is_here = |used: &Use| used.committed().is_some() && used.is_at(container, path);
        let mut uses = registry.uses().into_iter();
        let holder =
            uses.find(|known| known.id.as_str() != id && known.used.as_ref().is_some_and(is_here));
        match holder {
            Some(known) => {
                let (path, container) = (path.clone(), container.clone());
                Err(Error::PathHoldsVolume { path, container, volume: known.id.to_string() })
            }
            None => Ok(()),
        }
    }

    async fn take_back_earlier(&mut self, index: usize, presence: &Presence) -> Result<(), Error> {
        let what = format!("what an earlier run left of volume {}", self.items[index].id);
        self.note(|| format!("taking back {what}"));
        self.recover(index, presence)
            .await
            .map_err(|cause| Error::Incomplete { left: vec![what], cause: Box::new(cause) })
    }

    /// All of a volume that is no whole disk; of one that is, this use alone.
    async fn recover(&mut self, index: usize, presence: &Presence) -> Result<(), Error> {
        let Item { id, intent, there, .. } = &self.items[index];
        let Link { agent, qmp, .. } = &mut self.link;
        let mut uses = presence.uses();
        match there {
            Some(_) => uses.retain(|used| used.is_at(&intent.container, &intent.path)),
            // Its record is lost: the one that is asked for names the same volume.
            None if uses.is_empty() => {
                uses.push(Use { set: 0, intent: intent.clone(), placements: Vec::new() });
            }
            None => {}
        }
        if presence.device || !presence.placements.is_empty() {
            for (number, used) in uses.iter().enumerate() {
                // The earlier run may have used another controller: the guest looks at all of them,
                // and the serial decides.
                let mut detachment = undo::detachment(qmp, presence, used, "").await?;
                if there.is_none() {
                    // All of them go, one after the other.
                    let rest = &uses[number + 1..];
                    detachment.keep_disk = !rest.is_empty();
                    let container = &used.intent.container;
                    detachment.keep_right =
                        rest.iter().any(|other| other.intent.container == *container);
                }
                undo::detach(agent, vec![detachment], self.deadline).await?;
            }
        }
        match there {
            Some(_) => undo::remove_use(qmp, id, &intent.container, &intent.path).await,
            None => undo::remove(qmp, id, Whose::Any, self.deadline).await,
        }
    }
}
