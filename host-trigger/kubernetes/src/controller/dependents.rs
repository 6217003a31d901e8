//! Which attachments depend on a pod or a claim. A cluster has thousands of each, and every event
//! of one of them asks: the answer must not need a look at all attachments.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kube::{
    ResourceExt as _,
    runtime::reflector::{ObjectRef, Store},
};

use super::{observed, pod::Pod};
use crate::{
    attachment_pod,
    resource::{BlockVolumeAttachment, Source},
};

type Reference = ObjectRef<BlockVolumeAttachment>;

/// How many attachments that are gone may be kept beside those that are there.
const SLACK: usize = 1000;

/// The number of attachments for one pod or claim above which it is checked which are there.
const MANY: usize = 64;

/// What an attachment depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// The namespace and the name of a pod.
    Pod(String, String),
    /// The namespace and the name of a claim.
    Claim(String, String),
}

impl Key {
    fn of(attachment: &BlockVolumeAttachment) -> impl Iterator<Item = Self> {
        let namespace = attachment.namespace().unwrap_or_default();
        let claim = match &attachment.spec.source {
            Source::PersistentVolumeClaim(claim) => {
                Some(Self::Claim(namespace.clone(), claim.claim_name.clone()))
            }
            Source::HostPath(_) => None,
        };
        [Self::Pod(namespace, attachment.spec.pod_name.clone())].into_iter().chain(claim)
    }
}

/// The attachments by what they depend on. An event does not say whether its attachment is gone:
/// those are left out when they are asked for, and removed when they are many.
#[derive(Debug, Clone)]
pub(super) struct Dependents {
    all: Store<BlockVolumeAttachment>,
    by_key: Arc<Mutex<HashMap<Key, HashSet<Reference>>>>,
}

impl Dependents {
    /// Of the attachments in `all`, those that are noted.
    pub(super) fn new(all: Store<BlockVolumeAttachment>) -> Self {
        Self { all, by_key: Arc::default() }
    }

    fn by_key(&self) -> MutexGuard<'_, HashMap<Key, HashSet<Reference>>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what `attachment` depends on.
    pub(super) fn note(&self, attachment: &BlockVolumeAttachment) {
        let mut by_key = self.by_key();
        for key in Key::of(attachment) {
            let references = by_key.entry(key).or_default();
            let is_new = references.insert(ObjectRef::from_obj(attachment));
            // At each doubling, so that it costs little: a pod that stays may have had many.
            if is_new && references.len() >= MANY && references.len().is_power_of_two() {
                let own = ObjectRef::from_obj(attachment);
                references.retain(|one| *one == own || self.all.get(one).is_some());
            }
        }
        if by_key.len() > 2 * self.all.len() + SLACK {
            by_key.retain(|_, references| {
                references.retain(|one| self.all.get(one).is_some());
                !references.is_empty()
            });
        }
    }

    /// The attachments that depend on `key`.
    pub(super) fn of(&self, key: &Key) -> Vec<Arc<BlockVolumeAttachment>> {
        let references = self.by_key().get(key).cloned().unwrap_or_default();
        let there = references.iter().filter_map(|one| self.all.get(one));
        there.filter(|one| Key::of(one).any(|own| own == *key)).collect()
    }

    /// This attachment, which has changed or has gone, and those for the same place: one that goes
    /// may make room for another one.
    pub(super) fn with_rivals(&self, one: BlockVolumeAttachment) -> Vec<BlockVolumeAttachment> {
        self.note(&one);
        let rivals: Vec<_> = self.rivals(&one).iter().map(|other| (**other).clone()).collect();
        [one].into_iter().chain(rivals).collect()
    }

    /// The other attachments for the place of this one.
    pub(super) fn rivals(&self, own: &BlockVolumeAttachment) -> Vec<Arc<BlockVolumeAttachment>> {
        let namespace = own.namespace().unwrap_or_default();
        let mut all = self.of(&Key::Pod(namespace, own.spec.pod_name.clone()));
        all.retain(|other| observed::is_rival(other, own));
        all
    }

    /// The attachments that are for this pod, that it is the attachment pod of, or that may wait
    /// for one of its claims. Those that wait for nothing are none: many pods may share a claim.
    pub(super) fn of_pod(&self, pod: &Pod) -> Vec<Arc<BlockVolumeAttachment>> {
        let namespace = pod.namespace().unwrap_or_default();
        let of_claim = pod.claims().flat_map(|claim| {
            let all = self.of(&Key::Claim(namespace.clone(), claim.to_owned()));
            let waits = |one: &Arc<BlockVolumeAttachment>| !observed::is_given(one);
            all.into_iter().filter(move |one| waits(one) || attachment_pod::is_of(pod, one))
        });
        let for_it = self.of(&Key::Pod(namespace.clone(), pod.name_any()));
        of_claim.chain(for_it).collect()
    }
}

#[cfg(test)]
mod tests {
    use kube::{
        ResourceExt,
        runtime::{reflector, watcher::Event},
    };

    use super::*;
    use crate::sample;

    fn named(name: &str, pod: &str) -> BlockVolumeAttachment {
        let mut one = sample::attachment();
        one.metadata.name = Some(name.to_owned());
        one.spec.pod_name = pod.to_owned();
        one
    }

    #[test]
    fn an_attachment_is_found_by_its_pod_and_its_claim_until_it_is_gone() {
        let (all, mut writer) = reflector::store();
        let dependents = Dependents::new(all);
        for one in [named("a", "db-0"), named("b", "db-1")] {
            writer.apply_watcher_event(&Event::Apply(one.clone()));
            dependents.note(&one);
        }
        let a = named("a", "db-0");
        let namespace = a.namespace().unwrap();
        let pod = Key::Pod(namespace.clone(), "db-0".to_owned());
        let names: Vec<_> = dependents.of(&pod).iter().map(|one| one.name_any()).collect();
        assert_eq!(names, ["a"]);
        let claim = Key::of(&a).find(|key| matches!(key, Key::Claim(..))).unwrap();
        assert_eq!(dependents.of(&claim).len(), 2);
        writer.apply_watcher_event(&Event::Delete(a));
        assert!(dependents.of(&pod).is_empty());
        assert_eq!(dependents.of(&claim).len(), 1);
    }

    #[test]
    fn an_attachment_comes_with_those_for_the_same_place() {
        let (all, mut writer) = reflector::store();
        let dependents = Dependents::new(all);
        let [mut a, mut b, mut c] = ["a", "b", "c"].map(|name| named(name, "db-0"));
        for one in [&mut a, &mut b, &mut c] {
            one.metadata.uid = one.metadata.name.clone();
        }
        c.spec.device_path = Some("/dev/other".to_owned());
        for one in [&a, &b, &c] {
            writer.apply_watcher_event(&Event::Apply((*one).clone()));
            dependents.note(one);
        }
        let names = |one: &BlockVolumeAttachment| {
            let all = dependents.with_rivals(one.clone());
            all.iter().map(ResourceExt::name_any).collect::<Vec<_>>()
        };
        assert_eq!(names(&a), ["a", "b"]);
        assert_eq!(names(&c), ["c"]);
        writer.apply_watcher_event(&Event::Delete(b.clone()));
        assert_eq!(names(&a), ["a"]);
        assert_eq!(names(&b), ["b", "a"]);
    }

    #[test]
    fn what_is_gone_is_not_kept_for_ever() {
        let (all, _writer) = reflector::store();
        let dependents = Dependents::new(all);
        for number in 0..3 * SLACK {
            dependents.note(&named(&number.to_string(), &format!("db-{number}")));
        }
        assert!(dependents.by_key().len() <= SLACK + 1);
    }

    #[test]
    fn a_pod_that_stays_keeps_nothing_of_attachments_that_are_gone() {
        let (all, mut writer) = reflector::store();
        let dependents = Dependents::new(all);
        let stays = named("stays", "db-0");
        writer.apply_watcher_event(&Event::Apply(stays.clone()));
        dependents.note(&stays);
        for number in 0..3 * SLACK {
            dependents.note(&named(&number.to_string(), "db-0"));
        }
        for references in dependents.by_key().values() {
            assert!(references.len() <= MANY, "{}", references.len());
            assert!(references.contains(&ObjectRef::from_obj(&stays)));
        }
    }
}
