//! The controller: it gives each attachment to the node of its pod, brings its claim there, and
//! lets it go when the node agent has detached the volume. What it does is decided in `plan`; the
//! node agents do the rest. It keeps nothing: everything is read from the API server.

mod observed;
mod pause;
mod plan;
mod refusal;

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
    runtime::{
        Controller,
        controller::Action,
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard};
use tracing::{debug, info, warn};

use crate::{
    apply::{api_version, apply_status},
    attachment_pod,
    error::Error,
    metrics::Metrics,
    node_report::NodeReport,
    resource::{
        BlockVolumeAttachment, Condition, ConditionType, ControllerStatus, FINALIZER, NODE_LABEL,
        Source,
    },
};

use observed::Observed;
use pause::Pause;
use plan::{Plan, PodAction};

/// The names under which the controller owns its fields. Those of the status have a name of their
/// own: before Kubernetes 1.22 one name has one set of fields, whatever it was applied to.
const MANAGER: &str = "block-volume-controller";
const STATUS_MANAGER: &str = "block-volume-controller-status";
/// How often it is checked whether a node is gone that is to detach a volume.
const NODE_CHECK: Duration = Duration::from_secs(60);
/// How many attachments for different places are decided about at a time, at most.
const TURNS: usize = 64;
/// The time before an attachment is tried again after an error of the API server.
const AFTER_ERROR: Duration = Duration::from_secs(5);

/// What the controller works with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The image of attachment pods.
    pub image: String,
}

struct Context {
    client: Client,
    settings: Settings,
    metrics: Arc<Metrics>,
    all: Store<BlockVolumeAttachment>,
    /// Of attachments for one place, one is decided about at a time. Each place has one of these.
    turns: [Mutex<()>; TURNS],
}

/// Runs the controller until `shutdown` resolves. What is under way then is completed.
pub async fn run(
    client: Client,
    settings: Settings,
    metrics: Arc<Metrics>,
    shutdown: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let mut results = std::pin::pin!(reconciliations(client, settings, metrics, shutdown));
    while let Some(()) = results.next().await {}
}

fn reconciliations(
    client: Client,
    settings: Settings,
    metrics: Arc<Metrics>,
    shutdown: impl Future<Output = ()> + Send + Sync + 'static,
) -> impl Stream<Item = ()> {
    let everything = watcher::Config::default;
    let own_pods = format!("{}={}", attachment_pod::LABEL, attachment_pod::LABEL_VALUE);
    let controller =
        Controller::new(Api::<BlockVolumeAttachment>::all(client.clone()), everything());
    let all = controller.store();
    let (of_pod, of_claim, beside) = (all.clone(), all.clone(), all.clone());
    let turns = std::array::from_fn(|_| Mutex::default());
    let context = Arc::new(Context { client: client.clone(), settings, metrics, all, turns });
    controller
        .owns(Api::<Pod>::all(client.clone()), everything().labels(&own_pods))
        .watches(Api::<Pod>::all(client.clone()), everything(), move |pod: Pod| {
            let (namespace, name) = (pod.namespace(), pod.name_any());
            chosen(&of_pod, move |one| one.namespace() == namespace && one.spec.pod_name == name)
        })
        .watches(
            Api::<PersistentVolumeClaim>::all(client.clone()),
            everything(),
            move |claim: PersistentVolumeClaim| {
                let (namespace, name) = (claim.namespace(), claim.name_any());
                chosen(&of_claim, move |one| {
                    let is_it = match &one.spec.source {
                        Source::PersistentVolumeClaim(source) => source.claim_name == name,
                        Source::HostPath(_) => false,
                    };
                    is_it && one.namespace() == namespace
                })
            },
        )
        // One that goes may make room for another one at its path.
        .watches(
            Api::<BlockVolumeAttachment>::all(client),
            everything(),
            move |gone: BlockVolumeAttachment| {
                let namespace = gone.namespace();
                chosen(&beside, move |one| {
                    one.namespace() == namespace
                        && one.spec.path() == gone.spec.path()
                        && one.metadata.uid != gone.metadata.uid
                })
            },
        )
        .trigger_backoff(Pause)
        .graceful_shutdown_on(shutdown)
        .run(reconcile, after_error, context)
        .map(|done| match done {
            Ok((attachment, _)) => debug!(%attachment, "reconciled"),
            Err(e) => debug!("{e}"),
        })
}

/// The attachments that `is_meant`.
fn chosen(
    all: &Store<BlockVolumeAttachment>,
    is_meant: impl Fn(&BlockVolumeAttachment) -> bool,
) -> Vec<ObjectRef<BlockVolumeAttachment>> {
    let all = all.state();
    all.iter().filter(|one| is_meant(one)).map(|one| ObjectRef::from_obj(&**one)).collect()
}

fn after_error(
    attachment: Arc<BlockVolumeAttachment>,
    error: &Error,
    context: Arc<Context>,
) -> Action {
    let (namespace, name) = (attachment.namespace().unwrap_or_default(), attachment.name_any());
    warn!(namespace, name, error = %error.chain(), "the attachment is tried again");
    context.metrics.api_error();
    Action::requeue(AFTER_ERROR)
}

async fn reconcile(
    attachment: Arc<BlockVolumeAttachment>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let namespace = attachment.namespace().unwrap_or_default();
    let _turn = context.turn(&attachment).await;
    let observed = context.observe(&namespace, (*attachment).clone()).await?;
    let plan = Plan::new(&observed);
    let work = Work { context: &context, namespace, attachment: &observed.attachment };
    work.carry_out(&plan, &observed).await?;
    let waits_for_node = observed.attachment.assignment().pod_uid.is_some()
        && observed.assigned_pod().is_none()
        || observed.attachment.metadata.deletion_timestamp.is_some();
    Ok(match waits_for_node && plan.finalizer {
        true => Action::requeue(NODE_CHECK),
        false => Action::await_change(),
    })
}

impl Context {
    /// Waits until nothing else is decided about the place of this attachment.
    async fn turn(&self, attachment: &BlockVolumeAttachment) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        observed::place(attachment).hash(&mut hasher);
        let index = usize::try_from(hasher.finish() % TURNS as u64).unwrap_or_default();
        self.turns[index].lock().await
    }

    /// The other attachments for the place of this one, as the API server has them now: what the
    /// watches have brought so far may be older than what was decided last.
    async fn same_place(
        &self,
        namespace: &str,
        own: &BlockVolumeAttachment,
    ) -> Result<Vec<BlockVolumeAttachment>, Error> {
        let place = observed::place(own);
        let known = self.all.state();
        let is_other = |one: &BlockVolumeAttachment| {
            observed::place(one) == place && one.metadata.uid != own.metadata.uid
        };
        let all = Api::<BlockVolumeAttachment>::namespaced(self.client.clone(), namespace);
        let mut found = Vec::new();
        for other in known.iter().filter(|one| is_other(one)) {
            found.extend(all.get_opt(&other.name_any()).await?.filter(is_other));
        }
        Ok(found)
    }

    async fn observe(
        &self,
        namespace: &str,
        attachment: BlockVolumeAttachment,
    ) -> Result<Observed, Error> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let mut observed = Observed {
            pod: pods.get_opt(&attachment.spec.pod_name).await?,
            claim: None,
            attachment_pod: pods.get_opt(&attachment_pod::name(&attachment)).await?,
            node_exists: true,
            same_place: Vec::new(),
            claim_users: Vec::new(),
            attachment,
        };
        let assignment = observed.attachment.assignment();
        if assignment.pod_uid.is_none() {
            observed.same_place = self.same_place(namespace, &observed.attachment).await?;
        }
        if let Some(claim) = observed.claim_name() {
            let claims = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), namespace);
            observed.claim = claims.get_opt(claim).await?;
            if assignment.pod_uid.is_none() {
                observed.claim_users = claim_users(&pods, &observed).await?;
            }
        }
        let is_leaving = observed.attachment.metadata.deletion_timestamp.is_some();
        if let Some(node) = &assignment.node_name
            && (is_leaving || observed.assigned_pod().is_none())
        {
            let nodes = Api::<Node>::all(self.client.clone());
            observed.node_exists = nodes.get_metadata_opt(node).await?.is_some();
        }
        Ok(observed)
    }
}

/// The pods that have the claim, the attachment pod excluded.
async fn claim_users(pods: &Api<Pod>, observed: &Observed) -> Result<Vec<Pod>, Error> {
    let own = attachment_pod::name(&observed.attachment);
    let claim = observed.claim_name();
    let has_claim = |pod: &Pod| {
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let mut claims = volumes.filter_map(|volume| volume.persistent_volume_claim.as_ref());
        claims.any(|one| Some(one.claim_name.as_str()) == claim) && pod.name_any() != own
    };
    let all = pods.list(&ListParams::default()).await?;
    Ok(all.items.into_iter().filter(has_claim).collect())
}

/// A plan being carried out for one attachment.
struct Work<'a> {
    context: &'a Context,
    namespace: String,
    attachment: &'a BlockVolumeAttachment,
}

impl Work<'_> {
    /// Carries out `plan`. The finalizer and the label come first, then the status that gives the
    /// attachment to its node, then the pod: whatever is interrupted is continued, and nothing is
    /// made that is not known to be removed again.
    async fn carry_out(&self, plan: &Plan, observed: &Observed) -> Result<(), Error> {
        let is_leaving = plan.status.is_none();
        if is_leaving {
            self.pod(plan, observed).await?;
            return self.metadata(plan).await;
        }
        self.metadata(plan).await?;
        if plan.speaks_for_node {
            NodeReport::gone(self.attachment).apply(&self.context.client, self.attachment).await?;
        }
        if let Some((status, conditions)) = &plan.status {
            self.status(status, conditions).await?;
        }
        self.pod(plan, observed).await
    }

    async fn metadata(&self, plan: &Plan) -> Result<(), Error> {
        let attachment = self.attachment;
        let has_finalizer = attachment.finalizers().iter().any(|one| one == FINALIZER);
        let label = attachment.labels().get(NODE_LABEL);
        if has_finalizer == plan.finalizer && label == plan.node.as_ref() {
            return Ok(());
        }
        let labels = plan.node.iter().map(|node| (NODE_LABEL.to_owned(), node.clone()));
        let wanted = json!({
            "apiVersion": api_version(),
            "kind": "BlockVolumeAttachment",
            "metadata": ObjectMeta {
                // Without the UID, an attachment that is gone meanwhile would be made again.
                uid: attachment.metadata.uid.clone(),
                labels: Some(labels.collect()),
                finalizers: plan.finalizer.then(|| vec![FINALIZER.to_owned()]),
                ..ObjectMeta::default()
            },
        });
        let all =
            Api::<BlockVolumeAttachment>::namespaced(self.context.client.clone(), &self.namespace);
        let (name, force) = (attachment.name_any(), PatchParams::apply(MANAGER).force());
        all.patch(&name, &force, &Patch::Apply(&wanted)).await?;
        info!(namespace = self.namespace, name, node = plan.node, "labelled");
        Ok(())
    }

    async fn status(
        &self,
        status: &ControllerStatus,
        conditions: &[Condition],
    ) -> Result<(), Error> {
        let attachment = self.attachment;
        let known = |one: &Condition| attachment.condition(one.condition_type) == Some(one);
        if attachment.assignment() == *status && conditions.iter().all(known) {
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

    async fn pod(&self, plan: &Plan, observed: &Observed) -> Result<(), Error> {
        let pods = Api::<Pod>::namespaced(self.context.client.clone(), &self.namespace);
        match &plan.attachment_pod {
            PodAction::Keep => {}
            PodAction::Create { node, claim } => {
                let image = &self.context.settings.image;
                let pod = attachment_pod::new(self.attachment, claim, node, image)?;
                match pods.create(&PostParams::default(), &pod).await {
                    Ok(_) => info!(namespace = self.namespace, pod = pod.name_any(), "created"),
                    // It is read with the next event.
                    Err(kube::Error::Api(status)) if status.is_already_exists() => {}
                    Err(e) => return Err(e.into()),
                }
            }
            PodAction::Delete => {
                let Some(pod) = observed.own_pod() else { return Ok(()) };
                let only = Preconditions { uid: pod.uid(), resource_version: None };
                let only = DeleteParams { preconditions: Some(only), ..DeleteParams::default() };
                match pods.delete(&pod.name_any(), &only).await {
                    Ok(_) => info!(namespace = self.namespace, pod = pod.name_any(), "deleted"),
                    Err(kube::Error::Api(status)) if status.is_not_found() => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        Ok(())
    }
}
