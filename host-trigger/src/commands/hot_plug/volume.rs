//! One volume of a hot-plug: what is requested, what exists of it, what the guest reported.

use block_volume_api::block_volume::{Attached, Attachment as ApiAttachment, Detachment};
use block_volume_qmp::PassedFd;

use crate::{
    Error,
    host::source::{Source, SourceKind},
    ops::{
        commit, guest_request,
        rollback::plug::{Added, AddedVolume},
    },
    qemu::{
        block_node::NewNode,
        controller::Controller,
        disk::{Backend, NewDisk, ScsiAddress},
        inventory::Inventory,
        record::{CommitRecord, FurtherAttachment, IntentRecord, Record},
        throttle::Limits,
        volume_state::{Attachment, VolumeState},
    },
    volume_id::{VolumeId, reservation_name},
};

/// One volume of the call.
#[derive(Debug)]
pub(super) struct PlugVolume {
    pub(super) id: VolumeId,
    pub(super) source: Source,
    pub(super) intent: IntentRecord,
    /// The disk, if it existed before this run.
    pub(super) existing: Option<ExistingDisk>,
    /// An interrupted run left something of it.
    pub(super) leftover: bool,
    pub(super) added: Added,
    /// The VM has the disk.
    pub(super) is_in_guest: bool,
    pub(super) set: u64,
    pub(super) controller: Controller,
    pub(super) address: ScsiAddress,
    pub(super) attached: Option<Attached>,
    /// What the guest reports is not recorded.
    pub(super) record_is_due: bool,
    /// The descriptor that carries the commit record of this run.
    pub(super) recorded: Option<PassedFd>,
    /// The limits in QEMU.
    pub(super) limits: Limits,
}

/// A disk that existed before this run.
#[derive(Debug)]
pub(super) struct ExistingDisk {
    /// The size in QEMU.
    size: u64,
    /// The commit record of this very attachment, and the descriptor that carries it.
    commit: Option<(PassedFd, CommitRecord)>,
    /// The commit record of another attachment.
    other: Option<CommitRecord>,
    /// Another attachment is in the same container.
    in_same_container: bool,
}

impl ExistingDisk {
    /// Whether this attachment was committed before this run.
    fn is_attached(&self) -> bool {
        self.commit.as_ref().is_some_and(|(_, commit)| commit.committed)
    }
}

impl PlugVolume {
    /// Whether this very attachment was committed before this run.
    pub(super) fn is_attached(&self) -> bool {
        self.existing.as_ref().is_some_and(ExistingDisk::is_attached)
    }

    /// The commit record of this attachment.
    pub(super) fn commit(&self) -> Option<&CommitRecord> {
        self.existing.as_ref()?.commit.as_ref().map(|(_, commit)| commit)
    }

    /// The descriptor that carries the commit record of this attachment.
    pub(super) fn carrier(&self) -> Option<PassedFd> {
        let before = || self.existing.as_ref()?.commit.as_ref().map(|(carrier, _)| *carrier);
        self.recorded.or_else(before)
    }

    /// Remembers what the guest reports, and whether that has to be recorded.
    pub(super) fn accept(&mut self, attached: Attached) {
        let is_known = self.attached.as_ref() == Some(&attached);
        self.record_is_due = !is_known && !self.is_recorded(&attached);
        self.attached = Some(attached);
    }

    /// Whether what the guest reports of this attachment is recorded already.
    fn is_recorded(&self, attached: &Attached) -> bool {
        let started = attached.outcome.as_ref().map(|outcome| outcome.container_started);
        attached.unchanged
            && self.is_attached()
            && self.commit().map(|commit| commit.started) == started
    }

    /// Whether the disk was another attachment's first.
    pub(super) fn is_further(&self) -> bool {
        self.existing.is_some() && self.commit().is_none_or(|commit| commit.further.is_some())
    }

    /// Whether the disk has other attachments.
    pub(super) fn is_shared(&self) -> bool {
        self.existing.as_ref().is_some_and(|existing| existing.other.is_some())
    }

    /// The size in bytes, as QEMU has it.
    pub(super) fn size(&self) -> u64 {
        self.existing.as_ref().map_or(self.source.size, |existing| existing.size)
    }

    /// What the block node is made over.
    fn backend(&self) -> Backend {
        match self.source.kind {
            SourceKind::Block(geometry) => Backend::HostDevice(geometry),
            SourceKind::File => Backend::File { rotational: self.source.is_rotational() },
        }
    }

    /// The block node that QEMU is to get.
    ///
    /// # Errors
    /// The source is in use.
    pub(super) fn new_node(&self, read_only: bool) -> Result<NewNode<'_>, Error> {
        let IntentRecord { container, path, .. } = &self.intent;
        Ok(NewNode {
            id: &self.id,
            file: self.source.claimed()?,
            intent: Record::Intent(self.intent.clone()).to_opaque(),
            backend: self.backend(),
            read_only,
            reservation: reservation_name(container, path),
        })
    }

    /// The disk that QEMU is to get over the block node.
    pub(super) fn new_disk(&self) -> NewDisk<'_> {
        let (id, controller) = (&self.id, &self.controller.id);
        let (backend, address) = (self.backend(), self.address);
        NewDisk { id, backend, controller, address, limits: self.limits }
    }

    /// The volume as it is described to the guest.
    pub(super) fn attachment(&self) -> ApiAttachment {
        let pci = self.controller.pci_address.as_deref().unwrap_or_default();
        guest_request::attachment(&self.intent, pci, self.address, self.size())
    }

    /// What the guest is to detach if this run fails. The right stays if another attachment in the
    /// same container has it.
    pub(super) fn detachment(&self) -> Detachment {
        let outcome =
            self.attached.as_ref().and_then(|attached| attached.outcome.as_ref().cloned());
        let in_same_container =
            self.existing.as_ref().is_some_and(|existing| existing.in_same_container);
        Detachment {
            attachment: Some(self.attachment()).into(),
            outcome: outcome.into(),
            keep_disk: self.added == Added::Attachment,
            keep_right: in_same_container,
            ..Default::default()
        }
    }

    /// What is rolled back if this run fails.
    pub(super) fn added_volume(&self) -> AddedVolume {
        let IntentRecord { run, container, path, .. } = self.intent.clone();
        AddedVolume {
            id: self.id.clone(),
            added: self.added,
            run,
            container,
            path,
            detachment: self.detachment(),
        }
    }

    /// The commit record once the guest has replied.
    pub(super) fn new_commit(&self, attached: &Attached) -> CommitRecord {
        let mut record = commit::record(&self.controller.id, &self.attachment(), attached);
        if let Some(existing) = &self.existing {
            match &existing.commit {
                Some((_, before)) => record.carry_over(before),
                None => record.further = Some(FurtherAttachment::new(&self.intent)),
            }
        }
        record
    }

    /// The record of a further attachment before it is begun: it says where the disk is.
    pub(super) fn begun(&self) -> Option<CommitRecord> {
        let other = self.existing.as_ref()?.other.clone()?;
        let further = Some(FurtherAttachment::new(&self.intent));
        Some(CommitRecord {
            further,
            committed: false,
            parents_made: Vec::new(),
            allowed_before: false,
            started: 0,
            ..other
        })
    }

    /// Remembers that a further attachment was begun, and which descriptor carries that record.
    pub(super) fn begin(&mut self, carrier: PassedFd, begun: CommitRecord) {
        if let Some(existing) = &mut self.existing {
            existing.commit = Some((carrier, begun));
        }
    }

    /// Checks whether this attachment can use the disk that exists, and remembers the disk. A
    /// further attachment can only if it is `shared`.
    ///
    /// # Errors
    /// The disk is attached elsewhere or with other options, or its record is lost.
    pub(super) fn use_existing(
        &mut self,
        state: &VolumeState,
        size: u64,
        shared: bool,
        controller: Option<&str>,
        inventory: &Inventory,
    ) -> Result<(), Error> {
        let all = state.attachments();
        let is_this = |known: &&Attachment| known.is_at(&self.intent.container, &self.intent.path);
        let this = all.iter().find(is_this).filter(|known| known.committed().is_some());
        let other =
            all.iter().filter(|known| !is_this(known)).find(|known| known.committed().is_some());
        let volume = self.id.to_string();
        let known = match (this, other) {
            (Some(this), _) => this,
            (None, Some(other)) if shared => other,
            (None, Some(Attachment { intent, .. })) => {
                let (container, path) = (intent.container.clone(), intent.path.clone());
                return Err(Error::VolumeTaken { volume, container, path });
            }
            // A whole disk has a committed attachment.
            (None, None) => return Err(Error::RecordLost { volume }),
        };
        let Some((_, commit)) = known.committed() else {
            return Err(Error::RecordLost { volume });
        };
        check_options(&self.intent, &known.intent, commit, this.is_none())?;
        if controller.is_some_and(|named| named != commit.controller) {
            return Err(Error::OtherOptions { volume, differs: vec!["controller (--controller)"] });
        }
        // Not the controller that a new volume would get.
        self.controller = inventory.controller(Some(&commit.controller))?;
        self.address = ScsiAddress { target: commit.target, lun: commit.lun };
        self.set = known.set;
        let in_same_container = all
            .iter()
            .any(|known| !is_this(&known) && known.intent.container == self.intent.container);
        let commit = this.and_then(|known| known.committed().cloned());
        let other = other.and_then(|known| Some(known.committed()?.1.clone()));
        self.existing = Some(ExistingDisk { size, commit, other, in_same_container });
        Ok(())
    }
}

/// Checks that what is attached is what is requested. A `further` attachment has the same disk, and
/// may have a device node of its own owner and mode. No file system is mounted beside a device of
/// the same disk: nothing would coordinate the writes of the two.
fn check_options(
    requested: &IntentRecord,
    attached: &IntentRecord,
    commit: &CommitRecord,
    further: bool,
) -> Result<(), Error> {
    let volume = requested.id.clone();
    let found = commit.mounted.as_ref().map(|mounted| mounted.fs_type.as_str());
    let mut differs: Vec<_> = match (&requested.mount, &attached.mount) {
        (Some(requested), Some(attached)) => requested.differs(attached, found),
        (None, None) => Vec::new(),
        _ => {
            let differs = vec!["kind (--mount-path or --device-path)"];
            return Err(Error::OtherOptions { volume, differs });
        }
    };
    let others = [
        ("access (--read-only)", requested.access != attached.access),
        ("owner (--uid)", requested.uid != attached.uid && !further),
        ("group (--gid)", requested.gid != attached.gid && !further),
        ("mode (--mode)", requested.mode != attached.mode && !further),
    ]
    .into_iter()
    .filter_map(|(what, differs)| differs.then_some(what));
    differs.extend(others);
    if differs.is_empty() { Ok(()) } else { Err(Error::OtherOptions { volume, differs }) }
}
