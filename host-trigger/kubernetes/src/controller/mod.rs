//! The controller: it gives each attachment to the node of its pod, brings its claim there, and
//! lets it go when the node agent has detached the volume. What it does is decided in `plan`; the
//! node agents do the rest. It stores nothing. What the watches have brought says where nothing is
//! to be done; everything else is read from the API server before it is decided about.

mod claim;
mod claim_users;
mod dependents;
mod known;
mod observed;
mod pause;
mod plan;
mod pod;
mod refusal;
mod watches;
mod work;

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, ResourceExt as _,
    runtime::controller::{Action, Config},
};
use tokio::sync::{Mutex, MutexGuard};
use tracing::{debug, warn};

use crate::{
    attachment_pod, error::Error, metrics::Metrics, resource::BlockVolumeAttachment,
    retries::Retries,
};

use claim::Claim;
use observed::Observed;
use plan::Plan;
use pod::Pod;
use watches::Watches;
use work::Work;

/// How often it is checked whether a node is gone that is to detach a volume.
const NODE_CHECK: Duration = Duration::from_secs(60);
/// How many attachments for different places are decided about at a time, at most. An API server
/// refuses requests when it has hundreds of them.
const TURNS: u16 = 64;
/// The longest time before an attachment is tried again after an error of the API server.
const AFTER_ERROR: Duration = Duration::from_secs(60);
/// The longest time before an attachment pod is made again.
const AFTER_POD: Duration = Duration::from_secs(300);

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
    watches: Watches,
    /// Of attachments for one place, one is decided about at a time. Each place has one of these.
    turns: [Mutex<()>; TURNS as usize],
    /// Errors of the API server.
    errors: Retries,
    /// Attachment pods that were made and did not run since.
    pods_made: Retries,
}

/// Runs the controller until `shutdown` resolves. What is under way then is completed.
pub async fn run(
    client: Client,
    settings: Settings,
    metrics: Arc<Metrics>,
    shutdown: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let (watches, controller) = Watches::new(&client);
    let context = Arc::new(Context {
        client,
        settings,
        metrics,
        watches,
        turns: std::array::from_fn(|_| Mutex::default()),
        errors: Retries::new(AFTER_ERROR),
        pods_made: Retries::new(AFTER_POD),
    });
    let results = controller
        .with_config(Config::default().concurrency(TURNS))
        .graceful_shutdown_on(shutdown)
        .run(reconcile, after_error, context);
    results
        .for_each(async |done| match done {
            Ok((attachment, _)) => debug!(%attachment, "reconciled"),
            Err(e) => debug!("{e}"),
        })
        .await;
}

fn after_error(
    attachment: Arc<BlockVolumeAttachment>,
    error: &Error,
    context: Arc<Context>,
) -> Action {
    let (namespace, name) = (attachment.namespace().unwrap_or_default(), attachment.name_any());
    warn!(namespace, name, error = %error.chain(), "the attachment is tried again");
    context.metrics.api_error();
    let uid = attachment.uid().unwrap_or_default();
    Action::requeue(context.errors.note(&uid, Instant::now()))
}

async fn reconcile(
    attachment: Arc<BlockVolumeAttachment>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let namespace = attachment.namespace().unwrap_or_default();
    context.watches.dependents.note(&attachment);
    if !context.watches.known.is_complete().await || context.is_settled(&attachment) {
        return Ok(Action::await_change());
    }
    let _turn = context.turn(&attachment).await;
    let observed = context.observe(&namespace, (*attachment).clone()).await?;
    let plan = Plan::new(&observed);
    let work = Work { context: &context, namespace, attachment: &observed.attachment };
    let later = work.carry_out(&plan, &observed).await?;
    let uid = observed.attachment.uid().unwrap_or_default();
    context.errors.forget(&uid);
    if plan.node.is_none() {
        context.pods_made.forget(&uid);
    }
    let waits_for_node = observed::is_given(&observed.attachment)
        && observed.assigned_pod().is_none()
        || observed.attachment.metadata.deletion_timestamp.is_some();
    let node_check = (waits_for_node && plan.finalizer).then_some(NODE_CHECK);
    Ok(match later.into_iter().chain(node_check).min() {
        Some(time) => Action::requeue(time),
        None => Action::await_change(),
    })
}

impl Context {
    /// Whether nothing is to be done about this attachment, by what the watches have brought. They
    /// bring many changes that ask for nothing; and after the API server was away, or another
    /// controller has ended, everything.
    fn is_settled(&self, attachment: &BlockVolumeAttachment) -> bool {
        let observed = self.watches.known.observe(attachment);
        let is_settled = observed.is_some_and(|observed| Plan::new(&observed).is_done(&observed));
        if is_settled {
            self.errors.forget(&attachment.uid().unwrap_or_default());
        }
        is_settled
    }

    /// Waits until nothing else is decided about the place of this attachment.
    async fn turn(&self, attachment: &BlockVolumeAttachment) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        observed::place(attachment).hash(&mut hasher);
        let index = usize::try_from(hasher.finish() % u64::from(TURNS)).unwrap_or_default();
        self.turns[index].lock().await
    }

    /// The other attachments for the place of this one, as the API server has them now: what the
    /// watches have brought so far may be older than what was decided last.
    async fn same_place(
        &self,
        namespace: &str,
        own: &BlockVolumeAttachment,
    ) -> Result<Vec<BlockVolumeAttachment>, Error> {
        let all = Api::<BlockVolumeAttachment>::namespaced(self.client.clone(), namespace);
        let mut found = Vec::new();
        for other in self.watches.dependents.rivals(own) {
            let now = all.get_opt(&other.name_any()).await?;
            found.extend(now.filter(|now| observed::is_rival(now, own)));
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
            is_restored: false,
            pod: pods.get_opt(&attachment.spec.pod_name).await?,
            claim: None,
            attachment_pod: pods.get_opt(&attachment_pod::name(&attachment)).await?,
            node_exists: true,
            same_place: Vec::new(),
            claim_users: Vec::new(),
            attachment,
        };
        // The attachment is what its watch has brought. If its pod or its record is there and it is
        // not given, it is older than what was done last, or a client has emptied its status. Taken
        // for true, the pod would be removed, whatever is attached.
        let was_given =
            observed.own_pod().is_some() || observed::record(&observed.attachment).is_some();
        if !observed::is_given(&observed.attachment) && was_given {
            let all = Api::<BlockVolumeAttachment>::namespaced(self.client.clone(), namespace);
            let now = all.get_opt(&observed.attachment.name_any()).await?;
            let uid = observed.attachment.uid();
            if let Some(now) = now.filter(|now| now.uid() == uid) {
                observed.attachment = now;
            }
            observed.restore();
        }
        let assignment = observed.attachment.assignment();
        if assignment.pod_uid.is_none() {
            observed.same_place = self.same_place(namespace, &observed.attachment).await?;
        }
        if let Some(claim) = observed.claim_name() {
            let claims = Api::<Claim>::namespaced(self.client.clone(), namespace);
            observed.claim = claims.get_opt(claim).await?;
            if assignment.pod_uid.is_none() {
                observed.claim_users = self.claim_users(&pods, namespace, &observed).await?;
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

    /// The pods that have the claim, the attachment pod excluded, as the API server has them now.
    /// One that was made a moment ago may be missing. Kubernetes does not give its node the volume
    /// of a claim that another node has, and the attachment pod says so.
    async fn claim_users(
        &self,
        pods: &Api<Pod>,
        namespace: &str,
        observed: &Observed,
    ) -> Result<Vec<Pod>, Error> {
        let own = attachment_pod::name(&observed.attachment);
        let Some(claim) = observed.claim_name() else { return Ok(Vec::new()) };
        let names = self.watches.claim_users.of(namespace, claim);
        let mut found = Vec::new();
        for name in names.iter().filter(|name| **name != own) {
            found.extend(pods.get_opt(name).await?);
        }
        Ok(found)
    }
}
