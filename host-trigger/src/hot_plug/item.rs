//! One volume of a call: what is asked for, what is there, what the guest told of it.

use block_volume_api::block_volume::{Attached, Attachment, Detachment};

use crate::{
    Error,
    controller::Controller,
    disk::Address,
    limits::Limits,
    outcome,
    presence::{Presence, Use},
    record::{FurtherUse, Intent, Placement},
    registry::Registry,
    source::Source,
    undo,
    volume::VolumeId,
};
use block_volume_qmp::PassedFd;

/// How much of a volume this run may have put into QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Touched {
    Nothing,
    Records,
    Disk,
    /// What is noted of a further use of a disk that others have.
    Use,
}

/// One volume of the call.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) id: VolumeId,
    pub(super) source: Source,
    pub(super) intent: Intent,
    /// The disk was there before this run.
    pub(super) there: Option<There>,
    /// A killed run left something of it.
    pub(super) leftover: bool,
    pub(super) touched: Touched,
    pub(super) set: u64,
    pub(super) controller: Controller,
    pub(super) address: Address,
    pub(super) attached: Option<Attached>,
    /// What QEMU limits it to.
    pub(super) limits: Limits,
}

/// A disk that was there before this run.
#[derive(Debug)]
pub(super) struct There {
    /// What QEMU takes for its size.
    size: u64,
    /// What was noted of this very use, and what carries it.
    noted: Option<(PassedFd, Placement)>,
    /// What is noted of another use.
    other: Option<Placement>,
    /// Another use is in the same container.
    in_same: bool,
}

impl There {
    /// This use of it was complete before this run.
    pub(super) fn is_plugged(&self) -> bool {
        self.noted.as_ref().is_some_and(|(_, placement)| placement.committed)
    }

    /// What carries the note of this use.
    pub(super) fn carrier(&self) -> Option<PassedFd> {
        self.noted.as_ref().map(|(carrier, _)| *carrier)
    }
}

impl Item {
    /// This very use was complete before this run.
    pub(super) fn is_plugged(&self) -> bool {
        self.there.as_ref().is_some_and(There::is_plugged)
    }

    /// What is noted of this use.
    pub(super) fn noted(&self) -> Option<&Placement> {
        self.there.as_ref()?.noted.as_ref().map(|(_, placement)| placement)
    }

    /// What the guest tells of this use is noted already.
    pub(super) fn is_noted(&self, attached: &Attached) -> bool {
        let started = attached.outcome.as_ref().map(|outcome| outcome.container_started);
        attached.unchanged
            && self.is_plugged()
            && self.noted().map(|placement| placement.started) == started
    }

    /// The disk was another use's first.
    pub(super) fn is_further(&self) -> bool {
        self.there.is_some() && self.noted().is_none_or(|noted| noted.further.is_some())
    }

    /// Others have the disk, too.
    pub(super) fn is_shared(&self) -> bool {
        self.there.as_ref().is_some_and(|there| there.other.is_some())
    }

    /// In bytes, as QEMU has it.
    pub(super) fn size(&self) -> u64 {
        self.there.as_ref().map_or(self.source.size, |there| there.size)
    }

    /// The volume as the guest is told of it.
    pub(super) fn attachment(&self) -> Attachment {
        let pci = self.controller.pci_address.as_deref().unwrap_or_default();
        undo::attachment(&self.intent, pci, self.address, self.size())
    }

    /// What the guest is to take away again if this run fails. The right stays where another use in
    /// the same container has it.
    pub(super) fn detachment(&self) -> Detachment {
        let told = self.attached.as_ref().and_then(|attached| attached.outcome.as_ref().cloned());
        Detachment {
            attachment: Some(self.attachment()).into(),
            outcome: told.into(),
            keep_disk: self.touched == Touched::Use,
            keep_right: self.there.as_ref().is_some_and(|there| there.in_same),
            ..Default::default()
        }
    }

    /// What is noted of it once the guest has answered.
    pub(super) fn placement(&self, attached: &Attached) -> Placement {
        let mut placement = outcome::placement(&self.controller.id, &self.attachment(), attached);
        if let Some(there) = &self.there {
            match &there.noted {
                Some((_, noted)) => placement.carry_over(noted),
                None => placement.further = Some(FurtherUse::new(&self.intent)),
            }
        }
        placement
    }

    /// What is noted of a further use before it is begun: where the disk is.
    pub(super) fn begun(&self) -> Option<Placement> {
        let other = self.there.as_ref()?.other.clone()?;
        let further = Some(FurtherUse::new(&self.intent));
        Some(Placement {
            further,
            committed: false,
            parents_made: Vec::new(),
            allowed_before: false,
            started: 0,
            ..other
        })
    }

    /// Notes that a further use was begun, and what carries that.
    pub(super) fn begin(&mut self, carrier: PassedFd, begun: Placement) {
        if let Some(there) = &mut self.there {
            there.noted = Some((carrier, begun));
        }
    }

    /// May this use be had of the disk that is there? A further one only where it is `shared`.
    pub(super) fn settle(
        &mut self,
        presence: &Presence,
        size: u64,
        shared: bool,
        controller: Option<&str>,
        registry: &Registry,
    ) -> Result<(), Error> {
        let uses = presence.uses();
        let is_here = |used: &&Use| used.is_at(&self.intent.container, &self.intent.path);
        let this = uses.iter().find(is_here).filter(|used| used.committed().is_some());
        let other =
            uses.iter().filter(|used| !is_here(used)).find(|used| used.committed().is_some());
        let volume = self.id.to_string();
        let known = match (this, other) {
            (Some(this), _) => this,
            (None, Some(other)) if shared => other,
            (None, Some(Use { intent, .. })) => {
                let (container, path) = (intent.container.clone(), intent.path.clone());
                return Err(Error::VolumeTaken { volume, container, path });
            }
            // A disk that is there is in use.
            (None, None) => return Err(Error::RecordLost { volume }),
        };
        check_same(&self.intent, &known.intent, this.is_none())?;
        let Some((_, placement)) = known.committed() else {
            return Err(Error::RecordLost { volume });
        };
        if controller.is_some_and(|named| named != placement.controller) {
            return Err(Error::OtherOptions { volume, differs: vec!["controller (--controller)"] });
        }
        // Not the one that a new volume would get.
        self.controller = registry.controller(Some(&placement.controller))?;
        self.address = Address { target: placement.target, lun: placement.lun };
        self.set = known.set;
        let in_same = uses
            .iter()
            .filter(|used| !is_here(used) && used.intent.container == self.intent.container);
        let noted = this.and_then(|used| used.committed().cloned());
        let other = other.and_then(|used| Some(used.committed()?.1.clone()));
        self.there = Some(There { size, noted, other, in_same: in_same.count() > 0 });
        Ok(())
    }
}

/// Is what is plugged what is asked for? A `further` use may have a node of another kind, and the
/// same disk.
fn check_same(asked: &Intent, plugged: &Intent, further: bool) -> Result<(), Error> {
    let volume = asked.id.clone();
    let differs: Vec<_> = [
        ("access (--read-only)", asked.access != plugged.access),
        ("owner (--uid)", asked.uid != plugged.uid && !further),
        ("group (--gid)", asked.gid != plugged.gid && !further),
        ("mode (--mode)", asked.mode != plugged.mode && !further),
    ]
    .into_iter()
    .filter_map(|(what, differs)| differs.then_some(what))
    .collect();
    if differs.is_empty() { Ok(()) } else { Err(Error::OtherOptions { volume, differs }) }
}
