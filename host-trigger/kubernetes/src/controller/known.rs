//! What the watches have brought: the pods and claims of the cluster, of each what decides about
//! attachments. It may be older than what the API server has, so that nothing is written by it; but
//! where it asks for nothing, the API server is not asked. A change that comes later is looked at
//! when it comes.

use kube::{
    ResourceExt as _,
    runtime::reflector::{ObjectRef, Store},
};
use tokio::sync::OnceCell;

use super::{claim::Claim, observed::Observed, pod::Pod};
use crate::{attachment_pod, resource::BlockVolumeAttachment};

/// The pods and claims that are known.
pub(super) struct Known {
    pods: Store<Pod>,
    claims: Store<Claim>,
    is_complete: OnceCell<bool>,
}

impl Known {
    /// What these stores have.
    pub(super) fn new(pods: Store<Pod>, claims: Store<Claim>) -> Self {
        Self { pods, claims, is_complete: OnceCell::new() }
    }

    /// Waits until the first lists are complete; false if the watches have ended before.
    pub(super) async fn is_complete(&self) -> bool {
        // Of several tasks that wait for a store, kube 5.0 wakes the last one alone.
        let complete = async || {
            self.pods.wait_until_ready().await.is_ok()
                && self.claims.wait_until_ready().await.is_ok()
        };
        *self.is_complete.get_or_init(complete).await
    }

    /// What is known of an attachment that was given to a pod which is still there, and stays so;
    /// `None` if more has to be known to decide about it.
    pub(super) fn observe(&self, attachment: &BlockVolumeAttachment) -> Option<Observed> {
        let namespace = attachment.namespace().unwrap_or_default();
        let pod = |name: &str| {
            let pod = self.pods.get(&ObjectRef::new(name).within(&namespace));
            pod.map(|pod| (*pod).clone())
        };
        let mut observed = Observed {
            is_restored: false,
            pod: pod(&attachment.spec.pod_name),
            claim: None,
            attachment_pod: pod(&attachment_pod::name(attachment)),
            node_exists: true,
            same_place: Vec::new(),
            claim_users: Vec::new(),
            attachment: attachment.clone(),
        };
        if let Some(claim) = observed.claim_name() {
            let claim = self.claims.get(&ObjectRef::new(claim).within(&namespace));
            observed.claim = claim.map(|claim| (*claim).clone());
        }
        let is_leaving = attachment.metadata.deletion_timestamp.is_some();
        (!is_leaving && observed.assigned_pod().is_some()).then_some(observed)
    }
}

/// Leaves of the metadata of a pod or a claim what is asked for.
pub(super) fn reduce(object: &mut impl kube::Resource) {
    let metadata = object.meta_mut();
    (metadata.annotations, metadata.labels) = (None, None);
    (metadata.managed_fields, metadata.finalizers) = (None, None);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kube::runtime::{reflector, watcher::Event};
    use serde_json::json;

    use super::*;
    use crate::{resource::ControllerStatus, sample};

    /// What is known if there is the pod of the sample.
    fn known() -> Known {
        let ((pods, mut writer), (claims, mut claim_writer)) =
            (reflector::store(), reflector::store());
        writer.apply_watcher_event(&Event::Apply(sample::pod()));
        claim_writer.apply_watcher_event(&Event::Apply(sample::claim()));
        Known::new(pods, claims)
    }

    /// An attachment that was given to the pod of this UID.
    fn given_to(pod_uid: &str) -> BlockVolumeAttachment {
        let mut attachment = sample::attachment();
        let controller =
            ControllerStatus { pod_uid: Some(pod_uid.to_owned()), ..ControllerStatus::default() };
        attachment.status.get_or_insert_default().controller = controller;
        attachment
    }

    #[test]
    fn enough_is_known_only_of_what_was_given_to_a_pod_that_is_there() {
        let (known, given) = (known(), given_to("pod-1"));
        let observed = known.observe(&given).unwrap();
        assert_eq!(observed.pod, Some(sample::pod()));
        assert_eq!(observed.claim, Some(sample::claim()));
        assert_eq!(observed.attachment_pod, None);
        assert!(known.observe(&sample::attachment()).is_none());
        assert!(known.observe(&given_to("pod-2")).is_none());
        let mut leaving = given;
        leaving.metadata.deletion_timestamp = sample::object(json!("2026-01-01T00:00:00Z"));
        assert!(known.observe(&leaving).is_none());
    }

    #[tokio::test]
    async fn all_wait_until_the_first_lists_are_complete() {
        let ((pods, mut writer), (claims, mut claim_writer)) =
            (reflector::store(), reflector::store());
        let known = Arc::new(Known::new(pods, claims));
        let waits = |_| {
            let known = known.clone();
            tokio::spawn(async move { known.is_complete().await })
        };
        let waiting: Vec<_> = (0..3).map(waits).collect();
        tokio::task::yield_now().await;
        writer.apply_watcher_event(&Event::InitDone);
        tokio::task::yield_now().await;
        assert!(waiting.iter().all(|one| !one.is_finished()));
        claim_writer.apply_watcher_event(&Event::InitDone);
        for one in waiting {
            assert!(one.await.unwrap());
        }
    }

    #[tokio::test]
    async fn a_controller_that_ends_waits_for_no_list() {
        let ((pods, _), (claims, _)) = (reflector::store(), reflector::store());
        assert!(!Known::new(pods, claims).is_complete().await);
    }
}
