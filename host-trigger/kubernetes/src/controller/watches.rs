//! What the controller watches, and which attachments a change of it concerns.

use futures_util::{StreamExt as _, stream};
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{Controller, WatchStreamExt as _, reflector::ObjectRef, watcher},
};

use super::{
    claim::Claim,
    claim_users::ClaimUsers,
    dependents::{Dependents, Key},
    known::{self, Known},
    pause::Pause,
    pod::Pod,
};
use crate::{resource::BlockVolumeAttachment, watched::watched};

type Reference = ObjectRef<BlockVolumeAttachment>;

/// What the watches have brought so far. It is filled while the controller runs.
pub(super) struct Watches {
    pub(super) known: Known,
    pub(super) dependents: Dependents,
    pub(super) claim_users: ClaimUsers,
}

impl Watches {
    /// The watches of a controller of all attachments, which is asked to decide about each that a
    /// change concerns.
    pub(super) fn new(client: &Client) -> (Self, Controller<BlockVolumeAttachment>) {
        let everything = watcher::Config::default;
        let events =
            watcher::watcher(Api::<BlockVolumeAttachment>::all(client.clone()), everything());
        let (store, attachments) =
            watched(events.modify(|one| one.metadata.managed_fields = None).backoff(Pause));
        let dependents = Dependents::new(store.clone());
        let beside = dependents.clone();
        let attachments = attachments.flat_map(move |one| stream::iter(beside.with_rivals(one)));

        let claim_users = ClaimUsers::default();
        let users = claim_users.clone();
        let events = watcher::watcher(Api::<Pod>::all(client.clone()), everything());
        let events = events.modify(known::reduce).backoff(Pause).inspect(move |event| {
            if let Ok(event) = event {
                users.see(event);
            }
        });
        let (pods, changed_pods) = watched(events);
        let of_pod = dependents.clone();

        let events = watcher::watcher(Api::<Claim>::all(client.clone()), everything());
        let (claims, changed_claims) = watched(events.modify(known::reduce).backoff(Pause));
        let of_claim = dependents.clone();

        let controller = Controller::for_stream(attachments.map(Ok), store)
            .watches_stream(changed_pods.map(Ok), move |pod| references(of_pod.of_pod(&pod)))
            .watches_stream(changed_claims.map(Ok), move |claim| {
                let namespace = claim.namespace().unwrap_or_default();
                references(of_claim.of(&Key::Claim(namespace, claim.name_any())))
            });
        (Self { known: Known::new(pods, claims), dependents, claim_users }, controller)
    }
}

fn references(attachments: Vec<std::sync::Arc<BlockVolumeAttachment>>) -> Vec<Reference> {
    attachments.iter().map(|one| ObjectRef::from_obj(&**one)).collect()
}
