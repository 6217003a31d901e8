//! What QEMU has of one volume, put together from its records, its block node and its device.
//!
//! A volume is one disk with one use or, where it is shared, several: a container and a path each.
//! The intent that travels on the volume's own descriptor names the first; each further one is
//! named by its outcome. Where there are outcomes, they tell which uses there are: the first one's
//! may have gone while others went on.

use crate::{
    record::{Intent, Placement},
    volume::VolumeId,
};
use block_volume_qmp::PassedFd;

/// What QEMU has of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Presence {
    /// What was asked for, and the number of its set. More than one only after two runs that did
    /// not lock each other out.
    pub intents: Vec<(u64, Intent)>,
    /// What was done, and the descriptor that carries it; of one set the oldest first, as QEMU
    /// lists them.
    pub placements: Vec<(PassedFd, Placement)>,
    /// Its block node's size, if that exists.
    pub node: Option<u64>,
    /// Its device exists.
    pub device: bool,
}

/// One container's use of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    /// The number of the volume's set.
    pub set: u64,
    /// What was asked for, with this use's container, path, owner and mode.
    pub intent: Intent,
    /// What was done, the newest first; one that is not committed was begun.
    pub placements: Vec<(PassedFd, Placement)>,
}

/// A volume, and the one of its uses that is meant; none where its record is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The volume.
    pub id: VolumeId,
    /// What QEMU has of it.
    pub presence: Presence,
    /// Which of its uses.
    pub used: Option<Use>,
}

/// A descriptor of ours, or a whole set, that nothing uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unused {
    /// The volume that it tells of, where it does.
    pub id: Option<VolumeId>,
    /// The set's number.
    pub set: u64,
    /// The descriptor's number in QEMU; `None`: all of the set.
    pub fd: Option<i64>,
}

impl Known {
    /// It is a whole disk in QEMU, and this use of it is complete.
    pub fn is_plugged(&self) -> bool {
        self.presence.plugged().is_some()
            && self.used.as_ref().is_some_and(|used| used.committed().is_some())
    }

    /// The other uses of the volume.
    pub fn others(&self) -> Vec<Use> {
        let uses = self.presence.uses().into_iter();
        uses.filter(|other| self.used.as_ref().is_none_or(|used| used.intent != other.intent))
            .collect()
    }
}

impl Use {
    /// Is this its place?
    pub fn is_at(&self, container: &str, path: &str) -> bool {
        self.intent.container == container && self.intent.path == path
    }

    /// The disk was another use's first.
    pub fn is_further(&self) -> bool {
        self.placements.iter().any(|(_, placement)| placement.further.is_some())
    }

    /// What was done, if that was all of it.
    pub fn committed(&self) -> Option<&(PassedFd, Placement)> {
        self.placements.iter().find(|(_, placement)| placement.committed)
    }
}

impl Presence {
    /// Nothing of it is there.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// What may be left of it where its removal is cut short, for people.
    pub(crate) fn parts(&self, id: &VolumeId, in_guest: bool) -> String {
        let parts = [
            ("descriptors", !self.intents.is_empty()),
            ("block node", self.node.is_some()),
            ("device", self.device),
        ];
        let parts: Vec<_> =
            parts.into_iter().filter_map(|(part, there)| there.then_some(part)).collect();
        let guest = if in_guest { ", and what the guest has of it" } else { "" };
        format!("volume {id}: {} in QEMU{guest}", parts.join(", "))
    }

    /// Who has it, or was about to, in the order in which they came.
    pub fn uses(&self) -> Vec<Use> {
        let mut uses: Vec<Use> = Vec::new();
        for (carrier, placement) in &self.placements {
            let Some((set, intent)) = self.intents.iter().find(|(set, _)| *set == carrier.set)
            else {
                continue;
            };
            let intent =
                placement.further.as_ref().map_or(intent.clone(), |further| further.of(intent));
            let noted = (*carrier, placement.clone());
            match uses.iter_mut().find(|used| used.is_at(&intent.container, &intent.path)) {
                Some(used) => used.placements.insert(0, noted),
                None => uses.push(Use { set: *set, intent, placements: vec![noted] }),
            }
        }
        if uses.is_empty() {
            let begun = self.intents.first();
            uses.extend(begun.map(|(set, intent)| Use {
                set: *set,
                intent: intent.clone(),
                placements: Vec::new(),
            }));
        }
        uses
    }

    /// Its size in QEMU, if it is a whole disk that somebody uses.
    pub fn plugged(&self) -> Option<u64> {
        let in_use = self.uses().iter().any(|used| used.committed().is_some());
        self.node.filter(|_| self.device && in_use)
    }

    /// Descriptors that it does not need: a second set for a volume that is wholly plugged, an
    /// outcome that another one replaced.
    pub(crate) fn unused(&self, id: &VolumeId) -> Vec<Unused> {
        if self.plugged().is_none() {
            return Vec::new();
        }
        let uses = self.uses();
        let unused = |set: u64, fd: Option<i64>| Unused { id: Some(id.clone()), set, fd };
        let is_used = |set: u64| uses.iter().any(|used| used.set == set);
        let sets = self
            .intents
            .iter()
            .filter(|(set, _)| !is_used(*set))
            .map(|(set, _)| unused(*set, None));
        let replaced = uses.iter().flat_map(|used| {
            let counts = used.committed().map(|(carrier, _)| carrier.fd);
            let others = used
                .placements
                .iter()
                .filter(move |(carrier, _)| counts.is_some_and(|fd| carrier.fd != fd));
            others.map(|(carrier, _)| unused(carrier.set, Some(carrier.fd)))
        });
        sets.chain(replaced).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Access, FurtherUse, Record};

    fn intent() -> Intent {
        Intent {
            v: 1,
            id: "0123456789abcdef".into(),
            container: "c1".into(),
            path: "/dev/a".into(),
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

    /// Carried by descriptor `fd` of set 7; of another container where one is named.
    fn noted(fd: i64, further: Option<&str>, committed: bool) -> (PassedFd, Placement) {
        let further = further.map(|container| FurtherUse {
            container: container.into(),
            path: "/dev/b".into(),
            uid: 1,
            gid: 2,
            mode: 0o600,
        });
        let text = concat!(
            r#"ecrblk1:{"v":1,"committed":true,"controller":"scsi0","target":255,"lun":3,"guest_device":"sda","#,
            r#""major":8,"minor":0,"node":"mknod","filter":"none"}"#
        );
        let Some(Record::Placement(placement)) = Record::from_opaque(text) else {
            panic!("{text}")
        };
        let placement = Placement { further, committed, ..placement };
        (PassedFd { set: 7, fd }, placement)
    }

    fn presence(placements: Vec<(PassedFd, Placement)>) -> Presence {
        Presence { intents: vec![(7, intent())], placements, node: Some(512), device: true }
    }

    fn places(presence: &Presence) -> Vec<(String, String, bool)> {
        let uses = presence.uses().into_iter();
        uses.map(|used| (used.committed().is_some(), used.intent))
            .map(|(committed, intent)| (intent.container, intent.path, committed))
            .collect()
    }

    #[test]
    fn a_record_without_outcome_is_a_use_that_was_begun() {
        let begun = presence(Vec::new());
        assert_eq!(places(&begun), [("c1".into(), "/dev/a".into(), false)]);
        assert_eq!(begun.plugged(), None);
    }

    #[test]
    fn each_outcome_is_a_use_and_the_first_may_be_gone() {
        let both = presence(vec![noted(2, None, true), noted(3, Some("c2"), false)]);
        let expected =
            [("c1".into(), "/dev/a".into(), true), ("c2".into(), "/dev/b".into(), false)];
        assert_eq!(places(&both), expected);
        assert_eq!(both.plugged(), Some(512));
        let second = presence(vec![noted(3, Some("c2"), true)]);
        assert_eq!(places(&second), [("c2".into(), "/dev/b".into(), true)]);
        let intent = &second.uses()[0].intent;
        assert_eq!((intent.uid, intent.gid, intent.mode, intent.size), (1, 2, 0o600, 512));
    }

    #[test]
    fn what_was_replaced_is_unused_and_what_was_begun_is_not() {
        let id = VolumeId::parse("0123456789abcdef").unwrap();
        let replaced =
            presence(vec![noted(2, None, true), noted(3, Some("c2"), false), noted(4, None, true)]);
        assert_eq!(replaced.unused(&id), [Unused { id: Some(id.clone()), set: 7, fd: Some(2) }]);
        let mut twice = presence(vec![noted(2, None, true)]);
        twice.intents.push((8, intent()));
        assert_eq!(twice.unused(&id), [Unused { id: Some(id.clone()), set: 8, fd: None }]);
        assert_eq!(Presence { device: false, ..twice }.unused(&id), []);
    }
}
