//! What was decided about an attachment is done: writes to the API server, and nothing else.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::json;
use tracing::{info, warn};

use super::{
    Context,
    observed::Observed,
    plan::{self, Plan, PodAction},
};
use crate::{
    apply::{api_version, apply_status},
    attachment_pod,
    error::Error,
    node_report::NodeReport,
    resource::{
        BlockVolumeAttachment, Condition, ConditionType, ControllerStatus, FINALIZER, NODE_LABEL,
        POD_UID_ANNOTATION,
    },
};

/// The names under which the controller owns its fields. Those of the status have a name of their
/// own: before Kubernetes 1.22 one name has one set of fields, whatever it was applied to.
const MANAGER: &str = "block-volume-controller";
const STATUS_MANAGER: &str = "block-volume-controller-status";

/// A plan being carried out for one attachment.
pub(super) struct Work<'a> {
    pub(super) context: &'a Context,
    pub(super) namespace: String,
    pub(super) attachment: &'a BlockVolumeAttachment,
}

impl Work<'_> {
    /// Carries out `plan`; if a part of it has to wait, returns for how long. The finalizer and the
    /// label come first, then the status that gives the attachment to its node, then the pod:
    /// whatever is interrupted is continued, and nothing is made that is not known to be removed
    /// again.
    pub(super) async fn carry_out(
        &self,
        plan: &Plan,
        observed: &Observed,
    ) -> Result<Option<Duration>, Error> {
        let is_leaving = plan.status.is_none();
        if is_leaving {
            let later = self.pod(plan, observed).await?;
            self.metadata(plan).await?;
            return Ok(later);
        }
        self.metadata(plan).await?;
        if plan.speaks_for_node {
            NodeReport::gone(self.attachment).apply(&self.context.client, self.attachment).await?;
        }
        if let Some((status, conditions)) = &plan.status {
            self.status(status, conditions, observed.is_restored).await?;
        }
        self.pod(plan, observed).await
    }

    async fn metadata(&self, plan: &Plan) -> Result<(), Error> {
        let attachment = self.attachment;
        if plan.has_metadata(attachment) {
            return Ok(());
        }
        let labels = plan.node.iter().map(|node| (NODE_LABEL.to_owned(), node.clone()));
        let pod_uid = plan.pod_uid().into_iter();
        let annotations = pod_uid.map(|uid| (POD_UID_ANNOTATION.to_owned(), uid.clone()));
        let wanted = json!({
            "apiVersion": api_version(),
            "kind": "BlockVolumeAttachment",
            "metadata": ObjectMeta {
                // Without the UID, an attachment that is gone meanwhile would be made again.
                uid: attachment.metadata.uid.clone(),
                labels: Some(labels.collect()),
                annotations: Some(annotations.collect()),
                finalizers: plan.finalizer.then(|| vec![FINALIZER.to_owned()]),
                ..ObjectMeta::default()
            },
        });
        let all =
            Api::<BlockVolumeAttachment>::namespaced(self.context.client.clone(), &self.namespace);
        let (name, force) = (attachment.name_any(), PatchParams::apply(MANAGER).force());
        match all.patch(&name, &force, &Patch::Apply(&wanted)).await {
            Ok(_) => info!(namespace = self.namespace, name, node = plan.node, "labelled"),
            // It was let go a moment ago, which the watch has not brought yet.
            Err(kube::Error::Api(status)) if status.is_conflict() && self.is_gone(&all).await? => {}
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    async fn is_gone(&self, all: &Api<BlockVolumeAttachment>) -> Result<bool, Error> {
        let now = all.get_metadata_opt(&self.attachment.name_any()).await?;
        Ok(now.is_none_or(|now| now.metadata.uid != self.attachment.metadata.uid))
    }

    async fn status(
        &self,
        status: &ControllerStatus,
        conditions: &[Condition],
        is_restored: bool,
    ) -> Result<(), Error> {
        let attachment = self.attachment;
        if !is_restored && plan::is_status(attachment, status, conditions) {
            return Ok(());
        }
        let mut body = serde_json::to_value(status)?;
        body["conditions"] = serde_json::to_value(conditions)?;
        apply_status(&self.context.client, attachment, STATUS_MANAGER, &body).await?;
        for condition in conditions {
            let former = attachment.condition(condition.condition_type);
            if former.map(|one| (&one.status, &one.reason))
                != Some((&condition.status, &condition.reason))
                && condition.condition_type == ConditionType::Accepted
            {
                let (name, reason) = (attachment.name_any(), &condition.reason);
                info!(namespace = self.namespace, name, reason, "{}", condition.message);
                self.context.metrics.accepted(reason);
            }
        }
        Ok(())
    }

    async fn pod(&self, plan: &Plan, observed: &Observed) -> Result<Option<Duration>, Error> {
        let pods = Api::<Pod>::namespaced(self.context.client.clone(), &self.namespace);
        let (made, uid) = (&self.context.pods_made, observed.attachment.uid().unwrap_or_default());
        if observed.own_pod().is_some_and(|pod| pod.phase() == "Running") {
            made.forget(&uid);
        }
        match &plan.attachment_pod {
            PodAction::Keep => {}
            PodAction::Create { node, claim } => {
                // One that is refused, or fails as soon as it is there, is not made again at once.
                let left = made.left(&uid, Instant::now());
                if !left.is_zero() {
                    return Ok(Some(left));
                }
                let image = &self.context.settings.image;
                let pod = attachment_pod::new(self.attachment, claim, node, image)?;
                let created = pods.create(&PostParams::default(), &pod).await;
                let pause = made.note(&uid, Instant::now());
                match created {
                    Ok(_) => info!(namespace = self.namespace, pod = pod.name_any(), "created"),
                    // It is read with the next event.
                    Err(kube::Error::Api(status)) if status.is_already_exists() => {}
                    Err(kube::Error::Api(status)) => {
                        self.pod_is_refused(plan, &pod.name_any(), &status.message).await?;
                        return Ok(Some(pause));
                    }
                    Err(e) => return Err(e.into()),
                }
            }
            PodAction::Delete => {
                let Some(pod) = observed.own_pod() else { return Ok(None) };
                let only = Preconditions { uid: pod.uid(), resource_version: None };
                let only = DeleteParams { preconditions: Some(only), ..DeleteParams::default() };
                match pods.delete(&pod.name_any(), &only).await {
                    Ok(_) => info!(namespace = self.namespace, pod = pod.name_any(), "deleted"),
                    Err(kube::Error::Api(status)) if status.is_not_found() => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        Ok(None)
    }

    /// Says that the attachment pod cannot be made, and why.
    async fn pod_is_refused(&self, plan: &Plan, pod: &str, why: &str) -> Result<(), Error> {
        let (namespace, name) = (&self.namespace, self.attachment.name_any());
        warn!(namespace, name, pod, "the attachment pod is refused: {why}");
        self.context.metrics.api_error();
        let Some((status, conditions)) = &plan.status else { return Ok(()) };
        let refused = plan::pod_is_refused(self.attachment, pod, why);
        let others = conditions.iter().filter(|one| one.condition_type != refused.condition_type);
        let conditions: Vec<_> = others.cloned().chain([refused.clone()]).collect();
        self.status(status, &conditions, false).await
    }
}
