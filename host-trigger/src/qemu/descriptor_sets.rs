//! The descriptor sets of QEMU and the records on their descriptors
//! ([`query-fdsets`](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html#command-QMP-misc.query-fdsets)).
//! Others have sets in the same table, and may add descriptors to ours.

use block_volume_qmp::{PassedFd, Qmp, QmpError};
use serde::Deserialize;
use serde_json::json;

use super::record::{CommitRecord, IntentRecord, Record};
use crate::{Error, volume_id::VolumeId};

/// The query for the descriptor sets.
pub(super) const QUERY: &str = "query-fdsets";

/// All descriptor sets at one time.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(crate) struct DescriptorSets(pub(super) Vec<DescriptorSet>);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct DescriptorSet {
    pub(super) fdset_id: u64,
    /// The oldest first.
    pub(super) fds: Vec<Descriptor>,
}

/// A descriptor with its text, and the record that the text is. It is parsed once, and read several
/// times.
#[derive(Debug, Deserialize)]
#[serde(from = "FoundDescriptor")]
pub(super) struct Descriptor {
    pub(super) fd: i64,
    opaque: String,
    /// On the heap: QEMU may claim to have a million descriptors without one.
    pub(super) record: Option<Box<Record>>,
}

#[derive(Deserialize)]
struct FoundDescriptor {
    fd: i64,
    #[serde(default)]
    opaque: String,
}

impl From<FoundDescriptor> for Descriptor {
    fn from(FoundDescriptor { fd, opaque }: FoundDescriptor) -> Self {
        let record = Record::from_opaque(&opaque).map(Box::new);
        Self { fd, opaque, record }
    }
}

/// An intent record with the descriptor that carries it, and the commit records beside it.
pub(crate) type Recorded<'a> = (PassedFd, &'a IntentRecord, Vec<(PassedFd, &'a CommitRecord)>);

/// A descriptor set, or one descriptor of it.
pub(super) type Carrier = (u64, Option<i64>);

/// Which volumes are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Those that QEMU has.
    Present,
    /// Those that are abandoned.
    Abandoned,
}

impl DescriptorSets {
    /// # Errors
    /// QEMU does not reply, or not in the documented form.
    pub(crate) async fn read(qmp: &mut Qmp) -> Result<Self, QmpError> {
        qmp.query(QUERY, json!({})).await
    }

    /// All intent records. Two are in one set after two runs that did not lock each other out; then
    /// the commit records are those of the first one.
    pub(super) fn records(&self, kind: Kind) -> impl Iterator<Item = Recorded<'_>> {
        self.0.iter().flat_map(move |set| {
            let (mut intents, mut commits) = (Vec::new(), Vec::new());
            for Descriptor { fd, record, .. } in &set.fds {
                let carrier = PassedFd { set: set.fdset_id, fd: *fd };
                match record.as_deref() {
                    Some(Record::Intent(found)) if kind == Kind::Present => {
                        intents.push((carrier, found));
                    }
                    Some(Record::Abandoned(found)) if kind == Kind::Abandoned => {
                        intents.push((carrier, &found.abandoned));
                    }
                    Some(Record::Commit(found)) => commits.push((carrier, found)),
                    Some(Record::Intent(_) | Record::Abandoned(_)) | None => {}
                }
            }
            let with_commits =
                move |(carrier, intent)| (carrier, intent, std::mem::take(&mut commits));
            intents.into_iter().map(with_commits).collect::<Vec<_>>()
        })
    }

    /// The error if the set of the volume `id` has a descriptor besides the one with the text
    /// `intent`: QEMU would read and write that one if ours is removed, or another run works on the
    /// same volume.
    pub(super) fn conflict(&self, id: &VolumeId, intent: &str) -> Option<Error> {
        let set = self.0.iter().find(|set| set.fdset_id == id.set())?;
        let other = set.fds.iter().find(|descriptor| descriptor.opaque != intent)?;
        let is_same_volume = match other.record.as_deref() {
            Some(Record::Intent(record)) => record.id == id.as_str(),
            _ => false,
        };
        let volume = id.to_string();
        Some(match is_same_volume {
            true => Error::ConcurrentRun { volume },
            false => Error::SetTaken { volume, set: id.set() },
        })
    }

    /// Whether one of `carriers` has a descriptor.
    pub(super) fn have_any(&self, carriers: &[Carrier]) -> bool {
        let is_there = |(number, fd): &Carrier| {
            let mut sets = self.0.iter().filter(|set| set.fdset_id == *number);
            sets.any(|set| set.fds.iter().any(|it| fd.is_none_or(|fd| fd == it.fd)))
        };
        carriers.iter().any(is_there)
    }

    /// The descriptors of `carrier`'s set that have to be removed one by one with the intent record
    /// on `carrier`; none if the set has no other descriptors.
    pub(super) fn beside_others(&self, carrier: PassedFd) -> Vec<PassedFd> {
        let Some(set) = self.0.iter().find(|set| set.fdset_id == carrier.set) else {
            return Vec::new();
        };
        let first =
            set.fds.iter().find(|it| matches!(it.record.as_deref(), Some(Record::Intent(_))));
        let is_first = first.is_some_and(|first| first.fd == carrier.fd);
        let goes = |descriptor: &&Descriptor| {
            descriptor.fd == carrier.fd
                || is_first && matches!(descriptor.record.as_deref(), Some(Record::Commit(_)))
        };
        let going: Vec<_> = set.fds.iter().filter(goes).collect();
        if going.len() == set.fds.len() {
            return Vec::new();
        }
        // The one with the intent record is removed last.
        let (intent, commits): (Vec<_>, Vec<_>) =
            going.into_iter().partition(|descriptor| descriptor.fd == carrier.fd);
        let all = commits.into_iter().chain(intent);
        all.map(|descriptor| PassedFd { fd: descriptor.fd, ..carrier }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::record::samples::{COMMIT, INTENT};

    fn id() -> VolumeId {
        VolumeId::parse("0123456789abcdef").unwrap()
    }

    /// One set with descriptors that have these texts, numbered from 10 on.
    fn set(texts: &[&str]) -> DescriptorSets {
        let fds = (10..).zip(texts).map(|(fd, text)| json!({"fd": fd, "opaque": text}));
        let set = json!([{"fdset-id": id().set(), "fds": fds.collect::<Vec<_>>()}]);
        serde_json::from_value(set).unwrap()
    }

    fn other_run() -> String {
        INTENT.replace("\"run\":\"r\"", "\"run\":\"s\"")
    }

    #[test]
    fn a_set_with_anything_else_is_in_conflict() {
        let conflict = |texts: &[&str]| set(texts).conflict(&id(), INTENT);
        assert!(conflict(&[INTENT]).is_none());
        assert!(conflict(&[]).is_none());
        let other_volume = INTENT.replace("0123456789abcdef", "1123456789abcdef");
        for taken in ["", "libvirt", COMMIT, &other_volume] {
            let error = conflict(&[taken, INTENT]);
            assert!(matches!(error, Some(Error::SetTaken { .. })), "{taken}: {error:?}");
        }
        let error = conflict(&[INTENT, &other_run()]);
        assert!(matches!(error, Some(Error::ConcurrentRun { .. })), "{error:?}");
    }

    #[test]
    fn a_set_is_removed_as_a_whole_unless_others_have_a_part_of_it() {
        let other = other_run();
        let beside = |texts: &[&str], fd| {
            let carrier = PassedFd { set: id().set(), fd };
            let all = set(texts).beside_others(carrier).into_iter();
            all.map(|carrier| carrier.fd).collect::<Vec<_>>()
        };
        assert!(beside(&[INTENT, COMMIT], 10).is_empty());
        assert_eq!(beside(&["", INTENT, COMMIT], 11), [12, 11]);
        assert_eq!(beside(&[INTENT, COMMIT, &other], 10), [11, 10]);
        assert_eq!(beside(&[INTENT, COMMIT, &other], 12), [12]);
    }

    #[test]
    fn the_first_intent_of_a_set_has_the_commits() {
        let (other, both) = (other_run(), set(&[INTENT, &other_run(), COMMIT]));
        let found: Vec<_> = both.records(Kind::Present).collect();
        let of = |index: usize| (found[index].1.run.as_str(), found[index].2.len());
        assert_eq!((found.len(), of(0), of(1)), (2, ("r", 1), ("s", 0)), "{other}");
    }
}
