//! What QEMU has of one volume, assembled from its records, its block node and its device.
//!
//! A volume is one disk with one attachment or, if it is shared, several. The intent record on the
//! volume's own descriptor names the first attachment; each further one is named by its commit
//! record. If there are commit records, they decide which attachments there are: the first one may
//! have been detached while others remain.

use block_volume_qmp::PassedFd;

use super::{
    descriptor_sets::Recorded,
    record::{CommitRecord, IntentRecord},
};
use crate::{Error, volume_id::VolumeId};

/// What QEMU has of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VolumeState {
    /// The intent records, each with the descriptor that carries it. More than one exists only
    /// after two runs that did not lock each other out.
    pub intents: Vec<(PassedFd, IntentRecord)>,
    /// The commit records, each with the descriptor that carries it; of one set the oldest first,
    /// as QEMU lists them.
    pub commits: Vec<(PassedFd, CommitRecord)>,
    /// The size of its block node, if that exists.
    pub node: Option<u64>,
    /// Its device exists.
    pub device: bool,
    /// It is abandoned: the host freed it without the guest, and the records are all there is.
    pub is_abandoned: bool,
}

/// One attachment of a volume, as recorded in QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The number of the volume's descriptor set.
    pub set: u64,
    /// What was requested, with this attachment's container, device path, owner and mode.
    pub intent: IntentRecord,
    /// What was done, the newest first. A record that is not committed was begun.
    pub commits: Vec<(PassedFd, CommitRecord)>,
}

/// A volume in QEMU, and one of its attachments; none if its record is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownVolume {
    /// The volume.
    pub id: VolumeId,
    /// What QEMU has of it.
    pub state: VolumeState,
    /// The attachment.
    pub attachment: Option<Attachment>,
}

/// A descriptor or a whole descriptor set of ours that nothing uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unused {
    /// The volume that its record names, if it does.
    pub id: Option<VolumeId>,
    /// The set's number.
    pub set: u64,
    /// The descriptor's number in QEMU; `None` for the whole set.
    pub fd: Option<i64>,
    /// It is the record of an abandoned volume that is not abandoned any more.
    pub is_abandoned: bool,
}

impl KnownVolume {
    /// Whether QEMU has the whole disk, and this attachment is committed.
    pub fn is_attached(&self) -> bool {
        self.state.attached_size().is_some()
            && self.attachment.as_ref().is_some_and(|attachment| attachment.committed().is_some())
    }

    /// The error of a command that cannot work on an abandoned volume, or beside one.
    pub(crate) fn abandoned_error(&self) -> Error {
        let intent = self.attachment.as_ref().map(|known| known.intent.clone());
        let (container, path) =
            intent.map(|intent| (intent.container, intent.path)).unwrap_or_default();
        Error::AbandonedVolume { volume: self.id.to_string(), container, path }
    }

    /// The other attachments of the volume.
    pub fn others(&self) -> Vec<Attachment> {
        let is_this = |other: &Attachment| {
            self.attachment.as_ref().is_some_and(|this| this.intent == other.intent)
        };
        self.state.attachments().into_iter().filter(|other| !is_this(other)).collect()
    }
}

impl Attachment {
    /// Whether this is the attachment of `container` at `path`.
    pub fn is_at(&self, container: &str, path: &str) -> bool {
        self.intent.container == container && self.intent.path == path
    }

    /// Whether the disk was another attachment's first.
    pub fn is_further(&self) -> bool {
        self.commits.iter().any(|(_, commit)| commit.further.is_some())
    }

    /// The size in bytes, as it is recorded.
    pub(crate) fn size(&self) -> u64 {
        let recorded = self.committed().or(self.commits.first());
        let resized = recorded.map(|(_, commit)| commit.size).filter(|size| *size != 0);
        resized.unwrap_or(self.intent.size)
    }

    /// Whether it was made by the same run, with the same result. A resize may have changed the
    /// size and from where its errors are counted, and with that the descriptors.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let results = |known: &Self| -> Vec<CommitRecord> {
            let commits = known.commits.iter();
            commits
                .map(|(_, commit)| CommitRecord { errors: 0, size: 0, ..commit.clone() })
                .collect()
        };
        (self.set, &self.intent) == (other.set, &other.intent) && results(self) == results(other)
    }

    /// Whether the attachment is committed.
    pub(crate) fn is_committed(&self) -> bool {
        self.committed().is_some()
    }

    /// The commit record, if the attachment is committed.
    pub fn committed(&self) -> Option<&(PassedFd, CommitRecord)> {
        self.commits.iter().find(|(_, commit)| commit.committed)
    }
}

impl VolumeState {
    /// Adds what is recorded.
    pub(super) fn extend<'a>(&mut self, records: impl IntoIterator<Item = Recorded<'a>>) {
        for (carrier, intent, commits) in records {
            self.intents.push((carrier, intent.clone()));
            self.commits.extend(commits.into_iter().map(|(fd, commit)| (fd, commit.clone())));
        }
    }

    /// Whether QEMU has nothing of the volume.
    pub fn is_absent(&self) -> bool {
        self.intents.is_empty() && self.commits.is_empty() && self.node.is_none() && !self.device
    }

    /// Describes what may be left if the removal of the volume is interrupted.
    pub(crate) fn describe_parts(&self, id: &VolumeId, in_guest: bool) -> String {
        let parts = [
            ("descriptors", !self.intents.is_empty()),
            // A device has one, also if the block nodes were not read.
            ("block node", self.node.is_some() || self.device),
            ("device", self.device),
        ];
        let parts: Vec<_> =
            parts.into_iter().filter_map(|(part, exists)| exists.then_some(part)).collect();
        let attachments = self.attachments();
        let part = match attachments.first().is_some_and(|known| known.intent.mount.is_some()) {
            true => "mount",
            false => "device node",
        };
        let guest = match in_guest {
            true => format!(", and its disk and {part} in the guest"),
            false => String::new(),
        };
        format!("volume {id}: {} in QEMU{guest}", parts.join(", "))
    }

    /// The attachments, committed or begun, in the order in which they were added.
    pub fn attachments(&self) -> Vec<Attachment> {
        let mut attachments: Vec<Attachment> = Vec::new();
        for (carrier, commit) in &self.commits {
            let Some((PassedFd { set, .. }, intent)) =
                self.intents.iter().find(|(of, _)| of.set == carrier.set)
            else {
                continue;
            };
            let intent = match &commit.further {
                Some(further) => further.intent(intent),
                None => intent.clone(),
            };
            let carried = (*carrier, commit.clone());
            match attachments.iter_mut().find(|known| known.is_at(&intent.container, &intent.path))
            {
                Some(known) => known.commits.insert(0, carried),
                None => attachments.push(Attachment { set: *set, intent, commits: vec![carried] }),
            }
        }
        if attachments.is_empty() {
            let begun = self.intents.first();
            attachments.extend(begun.map(|(carrier, intent)| Attachment {
                set: carrier.set,
                intent: intent.clone(),
                commits: Vec::new(),
            }));
        }
        attachments
    }

    /// Its size in QEMU, if it is a whole disk with a committed attachment.
    pub fn attached_size(&self) -> Option<u64> {
        let in_use = self.attachments().iter().any(|known| known.committed().is_some());
        self.node.filter(|_| self.device && in_use)
    }

    /// Descriptors that the volume does not need: a second set for a volume that is attached, and
    /// commit records that were replaced.
    pub(crate) fn unused(&self, id: &VolumeId) -> Vec<Unused> {
        if self.attached_size().is_none() {
            return Vec::new();
        }
        let attachments = self.attachments();
        let unused = |set: u64, fd: Option<i64>| Unused {
            id: Some(id.clone()),
            set,
            fd,
            is_abandoned: false,
        };
        let is_used = |set: u64| attachments.iter().any(|known| known.set == set);
        let first = |set: u64| self.intents.iter().find(|(carrier, _)| carrier.set == set);
        let is_first = |carrier: PassedFd| first(carrier.set).is_some_and(|it| it.0 == carrier);
        let carriers = self.intents.iter().map(|(carrier, _)| *carrier);
        let sets = carriers.filter_map(|carrier| match (is_used(carrier.set), is_first(carrier)) {
            (false, true) => Some(unused(carrier.set, None)),
            (true, false) => Some(unused(carrier.set, Some(carrier.fd))),
            (false, false) | (true, true) => None,
        });
        let replaced = attachments.iter().flat_map(|known| {
            let current = known.committed().map(|(carrier, _)| carrier.fd);
            let others = known
                .commits
                .iter()
                .filter(move |(carrier, _)| current.is_some_and(|fd| carrier.fd != fd));
            others.map(|(carrier, _)| unused(carrier.set, Some(carrier.fd)))
        });
        sets.chain(replaced).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Access, FurtherAttachment, Record};
    use super::*;

    fn intent() -> IntentRecord {
        IntentRecord {
            v: 1,
            id: "0123456789abcdef".into(),
            container: "c1".into(),
            path: "/dev/a".into(),
            mount: None,
            source: "/dev/sdb".into(),
            size: 512,
            access: Access::ReadWrite,
            uid: 0,
            gid: 0,
            mode: 0o660,
            tool: "0".into(),
            run: "r".into(),
        }
    }

    /// A commit record on descriptor `fd` of set 7, of a further attachment if a container is
    /// named.
    fn carried(fd: i64, further: Option<&str>, committed: bool) -> (PassedFd, CommitRecord) {
        let further = further.map(|container| FurtherAttachment {
            container: container.into(),
            path: "/dev/b".into(),
            mount: None,
            uid: 1,
            gid: 2,
            mode: 0o600,
        });
        let text = concat!(
            r#"ecrblk1:{"v":1,"committed":true,"controller":"scsi0","target":255,"lun":3,"guest_device":"sda","#,
            r#""major":8,"minor":0,"node":"mknod","filter":"none"}"#
        );
        let Some(Record::Commit(commit)) = Record::from_opaque(text) else { panic!("{text}") };
        let commit = CommitRecord { further, committed, ..commit };
        (PassedFd { set: 7, fd }, commit)
    }

    fn state(commits: Vec<(PassedFd, CommitRecord)>) -> VolumeState {
        let intents = vec![(PassedFd { set: 7, fd: 1 }, intent())];
        VolumeState { intents, commits, node: Some(512), device: true, is_abandoned: false }
    }

    #[test]
    fn a_resize_changes_the_place_of_a_record_its_errors_and_its_size_alone() {
        let known = |fd, committed, more| {
            let (carrier, commit) = carried(fd, None, committed);
            let commit = CommitRecord { errors: more, size: more, ..commit };
            state(vec![(carrier, commit)]).attachments().remove(0)
        };
        assert!(known(1, true, 0).is_same(&known(2, true, 3)));
        assert_eq!((known(1, true, 0).size(), known(1, true, 3).size()), (512, 3));
        assert!(!known(1, true, 0).is_same(&known(1, false, 0)));
        let mut again = known(1, true, 0);
        again.intent.run = "another".into();
        assert!(!known(1, true, 0).is_same(&again));
    }

    fn attachments(state: &VolumeState) -> Vec<(String, String, bool)> {
        let all = state.attachments().into_iter();
        all.map(|known| (known.committed().is_some(), known.intent))
            .map(|(committed, intent)| (intent.container, intent.path, committed))
            .collect()
    }

    #[test]
    fn an_intent_without_commit_is_an_attachment_that_was_begun() {
        let begun = state(Vec::new());
        assert_eq!(attachments(&begun), [("c1".into(), "/dev/a".into(), false)]);
        assert_eq!(begun.attached_size(), None);
    }

    #[test]
    fn each_commit_is_an_attachment_and_the_first_may_be_detached() {
        let both = state(vec![carried(2, None, true), carried(3, Some("c2"), false)]);
        let expected =
            [("c1".into(), "/dev/a".into(), true), ("c2".into(), "/dev/b".into(), false)];
        assert_eq!(attachments(&both), expected);
        assert_eq!(both.attached_size(), Some(512));
        let second = state(vec![carried(3, Some("c2"), true)]);
        assert_eq!(attachments(&second), [("c2".into(), "/dev/b".into(), true)]);
        let intent = &second.attachments()[0].intent;
        assert_eq!((intent.uid, intent.gid, intent.mode, intent.size), (1, 2, 0o600, 512));
    }

    #[test]
    fn a_replaced_commit_is_unused_and_one_that_was_begun_is_not() {
        let id = VolumeId::parse("0123456789abcdef").unwrap();
        let replaced = state(vec![
            carried(2, None, true),
            carried(3, Some("c2"), false),
            carried(4, None, true),
        ]);
        let unused = |set, fd| Unused { id: Some(id.clone()), set, fd, is_abandoned: false };
        assert_eq!(replaced.unused(&id), [unused(7, Some(2))]);
        let mut twice = state(vec![carried(2, None, true)]);
        twice.intents.push((PassedFd { set: 8, fd: 5 }, intent()));
        twice.intents.push((PassedFd { set: 7, fd: 6 }, intent()));
        assert_eq!(twice.unused(&id), [unused(8, None), unused(7, Some(6))]);
        assert_eq!(VolumeState { device: false, ..twice }.unused(&id), []);
    }
}
