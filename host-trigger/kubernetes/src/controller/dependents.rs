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

use crate::resource::{BlockVolumeAttachment, Source};

type Reference = ObjectRef<BlockVolumeAttachment>;

/// How many attachments that are gone may be kept beside those that are there.
const SLACK: usize = 1000;

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
            by_key.entry(key).or_default().insert(ObjectRef::from_obj(attachment));
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
}

#[cfg(test)]
mod tests {
    use kube::runtime::{reflector, watcher::Event};

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
    fn what_is_gone_is_not_kept_for_ever() {
        let (all, _writer) = reflector::store();
        let dependents = Dependents::new(all);
        for number in 0..3 * SLACK {
            dependents.note(&named(&number.to_string(), &format!("db-{number}")));
        }
        assert!(dependents.by_key().len() <= SLACK + 1);
    }
}
