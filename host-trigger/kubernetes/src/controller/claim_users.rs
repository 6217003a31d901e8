//! Which pods have a claim, from a watch of all pods: a list of a namespace's pods for each claim
//! would cost the API server most of what the controller costs it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use tokio::sync::watch;
use tracing::debug;

use super::pause::Pause;

/// The names of pods by the namespace and the name of a claim.
type Users = HashMap<(String, String), BTreeSet<String>>;

/// The users of all claims; `None` until the first list of pods is complete.
#[derive(Debug, Clone)]
pub(super) struct ClaimUsers(Arc<watch::Sender<Option<Users>>>);

impl ClaimUsers {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }

    /// Follows the pods of the cluster, without an end.
    pub(super) async fn follow(&self, client: Client) {
        let pods = watcher::watcher(Api::<Pod>::all(client), watcher::Config::default());
        let mut events = std::pin::pin!(pods.backoff(Pause));
        let mut listed = Users::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => self.see(event, &mut listed),
                Err(e) => debug!("the watch of pods begins again: {e}"),
            }
        }
    }

    /// Notes an event; `listed` has what the list that is under way has brought.
    fn see(&self, event: Event<Pod>, listed: &mut Users) {
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(pod) => add(listed, &pod),
            Event::InitDone => {
                self.0.send_replace(Some(std::mem::take(listed)));
            }
            Event::Apply(pod) => {
                self.0.send_modify(|users| add(users.get_or_insert_default(), &pod))
            }
            Event::Delete(pod) => {
                self.0.send_modify(|users| remove(users.get_or_insert_default(), &pod));
            }
        }
    }

    /// The names of the pods that have this claim.
    pub(super) async fn of(&self, namespace: &str, claim: &str) -> Vec<String> {
        let mut known = self.0.subscribe();
        // The sender is here.
        let Ok(users) = known.wait_for(Option::is_some).await else { return Vec::new() };
        let key = (namespace.to_owned(), claim.to_owned());
        users.iter().filter_map(|users| users.get(&key)).flatten().cloned().collect()
    }
}

/// The names of the claims that a pod has.
pub(super) fn claims(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let claims = volumes.filter_map(|volume| volume.persistent_volume_claim.as_ref());
    claims.map(|one| one.claim_name.as_str())
}

fn add(users: &mut Users, pod: &Pod) {
    for claim in claims(pod) {
        let key = (pod.namespace().unwrap_or_default(), claim.to_owned());
        users.entry(key).or_default().insert(pod.name_any());
    }
}

fn remove(users: &mut Users, pod: &Pod) {
    for claim in claims(pod) {
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

    #[tokio::test]
    async fn users_are_those_of_the_last_list_and_of_the_events_after_it() {
        let (users, mut listed) = (ClaimUsers::new(), Users::new());
        let mut see = |event| users.see(event, &mut listed);
        see(Event::Init);
        see(Event::InitApply(pod("a", "one")));
        see(Event::InitDone);
        see(Event::Apply(pod("b", "one")));
        assert_eq!(users.of("db", "one").await, ["a", "b"]);
        see(Event::Delete(pod("a", "one")));
        assert_eq!(users.of("db", "one").await, ["b"]);
        assert!(users.of("shop", "one").await.is_empty());
        // The watch was broken, and b has gone meanwhile.
        see(Event::Init);
        see(Event::InitApply(pod("c", "two")));
        assert_eq!(users.of("db", "one").await, ["b"]);
        see(Event::InitDone);
        assert!(users.of("db", "one").await.is_empty());
        assert_eq!(users.of("db", "two").await, ["c"]);
    }
}
