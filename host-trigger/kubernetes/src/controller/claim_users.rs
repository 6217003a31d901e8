//! Which pods have a claim, from the watch of all pods: a list of a namespace's pods for each claim
//! would cost the API server most of what the controller costs it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kube::{ResourceExt as _, runtime::watcher::Event};

use super::pod::Pod;

/// The names of pods by the namespace and the name of a claim.
type Users = HashMap<(String, String), BTreeSet<String>>;

/// The users of all claims; none until the first list of pods is complete.
#[derive(Debug, Clone, Default)]
pub(super) struct ClaimUsers(Arc<Mutex<Lists>>);

#[derive(Debug, Default)]
struct Lists {
    /// Those of the last list, and of the events after it.
    users: Users,
    /// What the list that is under way has brought.
    listed: Users,
}

impl ClaimUsers {
    fn lists(&self) -> MutexGuard<'_, Lists> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an event of the watch of all pods.
    pub(super) fn see(&self, event: &Event<Pod>) {
        let Lists { users, listed } = &mut *self.lists();
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(pod) => add(listed, pod),
            Event::InitDone => *users = std::mem::take(listed),
            Event::Apply(pod) => add(users, pod),
            Event::Delete(pod) => remove(users, pod),
        }
    }

    /// The names of the pods that have this claim.
    pub(super) fn of(&self, namespace: &str, claim: &str) -> Vec<String> {
        let key = (namespace.to_owned(), claim.to_owned());
        self.lists().users.get(&key).into_iter().flatten().cloned().collect()
    }
}

fn add(users: &mut Users, pod: &Pod) {
    for claim in pod.claims() {
        let key = (pod.namespace().unwrap_or_default(), claim.to_owned());
        users.entry(key).or_default().insert(pod.name_any());
    }
}

fn remove(users: &mut Users, pod: &Pod) {
    for claim in pod.claims() {
        let key = (pod.namespace().unwrap_or_default(), claim.to_owned());
        if let Some(names) = users.get_mut(&key) {
            names.remove(&pod.name_any());
            if names.is_empty() {
                users.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::serde_json::json;

    use super::*;
    use crate::sample;

    fn pod(name: &str, claim: &str) -> Pod {
        sample::object(json!({
            "metadata": { "name": name, "namespace": "db" },
            "spec": { "containers": [], "volumes": [
                { "name": "v", "persistentVolumeClaim": { "claimName": claim } },
                { "name": "other", "emptyDir": {} },
            ]},
        }))
    }

    #[test]
    fn users_are_those_of_the_last_list_and_of_the_events_after_it() {
        let users = ClaimUsers::default();
        let see = |event| users.see(&event);
        see(Event::Init);
        see(Event::InitApply(pod("a", "one")));
        see(Event::InitDone);
        see(Event::Apply(pod("b", "one")));
        assert_eq!(users.of("db", "one"), ["a", "b"]);
        see(Event::Delete(pod("a", "one")));
        assert_eq!(users.of("db", "one"), ["b"]);
        assert!(users.of("shop", "one").is_empty());
        // The watch was broken, and b has gone meanwhile.
        see(Event::Init);
        see(Event::InitApply(pod("c", "two")));
        assert_eq!(users.of("db", "one"), ["b"]);
        see(Event::InitDone);
        assert!(users.of("db", "one").is_empty());
        assert_eq!(users.of("db", "two"), ["c"]);
    }
}
