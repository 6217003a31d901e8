//! The node agent: it makes true what the attachments of its own node ask for, and says in their
//! status how it is. It watches the attachments that the controller has given to its node, and
//! reads and writes nothing else of the cluster but events.
//!
//! The attachments are listed from the API server's memory: after it was away all agents list at a
//! time, and before Kubernetes 1.31 each of them would have it read all attachments of the cluster
//! from etcd. Such a list may be older than what this agent did last, so that an attachment is read
//! once more before anything is done about it.

mod allowed_paths;
mod claim_device;
mod found_volume;
mod host;
mod memory;
mod remedy;
mod request;
mod sandbox_host;
mod sandbox_volumes;
mod statistics;
mod turns;
mod verb;
mod work;

pub use allowed_paths::AllowedPath;
pub use host::{AttachedVolume, Failure, Host};
pub use request::{Request, RequestSource};
pub use sandbox_host::SandboxHost;
pub use statistics::CountedVolume;

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    runtime::{
        Controller, WatchStreamExt as _,
        controller::Action,
        events::{Event, EventType, Recorder, Reporter},
        reflector::Store,
        watcher,
    },
};
use tracing::{info, warn};

use crate::{
    error::Error,
    metrics::Metrics,
    node_report::NodeReport,
    resource::{
        BlockVolumeAttachment, Condition, ConditionType, NODE_LABEL, NodeStatus, Truth, bounded,
    },
    retries::Retries,
    watched::watched,
};

use memory::{Cause, Ended, Memory};
use turns::Turns;

/// The longest note that the API server accepts in an event.
const MAX_NOTE: usize = 1000;
/// The longest time before an attachment is tried again after an error of the API server.
const AFTER_ERROR: Duration = Duration::from_secs(60);

struct Context<H> {
    client: Client,
    node: String,
    host: H,
    recorder: Recorder,
    metrics: Arc<Metrics>,
    memory: Memory,
    errors: Retries,
    turns: Turns,
    all: Store<BlockVolumeAttachment>,
}

/// Runs the node agent of `node` until `shutdown` resolves. What is under way then is completed.
pub async fn run<H: Host>(
    client: Client,
    node: &str,
    host: H,
    metrics: Arc<Metrics>,
    shutdown: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let attachments = Api::<BlockVolumeAttachment>::all(client.clone());
    let own = watcher::Config::default().labels(&format!("{NODE_LABEL}={node}")).any_semantic();
    // A list in pages is one from etcd: kube asks for no other then.
    let own = watcher::Config { page_size: None, ..own };
    let events = watcher::watcher(attachments, own).default_backoff();
    let (all, changes) = watched(events);
    let controller = Controller::for_stream(changes.map(Ok), all.clone());
    let reporter =
        Reporter { controller: "block-volume-node".to_owned(), instance: Some(node.to_owned()) };
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        client,
        node: node.to_owned(),
        host,
        metrics,
        memory: Memory::default(),
        errors: Retries::new(AFTER_ERROR),
        turns: Turns::default(),
        all,
    });
    let ending = context.clone();
    let results = controller
        .graceful_shutdown_on(async move {
            shutdown.await;
            ending.turns.close();
        })
        .run(reconcile, after_error, context.clone());
    let work = async {
        let mut results = std::pin::pin!(results);
        while results.next().await.is_some() {
            context.forget();
        }
    };
    tokio::select! {
        () = work => {}
        () = statistics::keep_reading(&context.host, &context.all, &context.metrics) => {}
    }
}

fn after_error<H: Host>(
    attachment: Arc<BlockVolumeAttachment>,
    error: &Error,
    context: Arc<Context<H>>,
) -> Action {
    let (namespace, name) = (attachment.namespace().unwrap_or_default(), attachment.name_any());
    warn!(namespace, name, error = %error.chain(), "the status is written again");
    context.metrics.api_error();
    let uid = attachment.uid().unwrap_or_default();
    Action::requeue(context.errors.note(&uid, Instant::now()))
}

async fn reconcile<H: Host>(
    attachment: Arc<BlockVolumeAttachment>,
    context: Arc<Context<H>>,
) -> Result<Action, Error> {
    if let Err(later) = context.due(&attachment) {
        return Ok(later);
    }
    let namespace = attachment.namespace().unwrap_or_default();
    let Some(_turn) = context.turns.take(&namespace).await else {
        return Ok(Action::await_change());
    };
    // It may have changed meanwhile, or have been old already.
    let Some(attachment) = context.read_again(&attachment).await? else {
        return Ok(Action::await_change());
    };
    let cause = match context.due(&attachment) {
        Ok(cause) => cause,
        Err(later) => return Ok(later),
    };
    let uid = attachment.uid().unwrap_or_default();
    let Some((report, ended)) = context.work(&attachment).await else {
        return Ok(Action::await_change());
    };
    report.apply(&context.client, &attachment).await?;
    context.errors.forget(&uid);
    if report.is_news(&attachment) {
        context.announce(&report, &attachment).await;
    }
    Ok(later(context.memory.note(&uid, cause, ended, Instant::now())))
}

fn later(wait: Option<Duration>) -> Action {
    match wait {
        Some(wait) => Action::requeue(wait),
        None => Action::await_change(),
    }
}

impl<H: Host> Context<H> {
    /// The attachment as the API server has it now; `None` if it is gone.
    async fn read_again(
        &self,
        attachment: &BlockVolumeAttachment,
    ) -> Result<Option<BlockVolumeAttachment>, Error> {
        let namespace = attachment.namespace().unwrap_or_default();
        let all = Api::<BlockVolumeAttachment>::namespaced(self.client.clone(), &namespace);
        let now = all.get_opt(&attachment.name_any()).await?;
        Ok(now.filter(|now| now.uid() == attachment.uid()))
    }

    /// The cause of the work that is due now, or when there may be some.
    fn due(&self, attachment: &BlockVolumeAttachment) -> Result<Cause, Action> {
        let uid = attachment.uid().unwrap_or_default();
        // Anybody who creates an attachment can set the label; the status is the controller's. With
        // the name of the node it has written its decision: if that is missing, a client has
        // overwritten the status. The controller writes it again, and then this agent does.
        let is_own = attachment.assignment().node_name.as_deref() == Some(&self.node);
        if !is_own || attachment.condition(ConditionType::Accepted).is_none() {
            self.memory.forget(&uid);
            return Err(Action::await_change());
        }
        let cause = Cause::of(attachment);
        match self.memory.wait(&uid, &cause, Instant::now()) {
            Some(Duration::ZERO) => Ok(cause),
            wait => Err(later(wait)),
        }
    }

    /// Does what is asked for; `None` if its time has not come.
    async fn work(&self, attachment: &BlockVolumeAttachment) -> Option<(NodeReport, Ended)> {
        let is_wanted = attachment.metadata.deletion_timestamp.is_none()
            && attachment.is(ConditionType::Accepted);
        if !is_wanted {
            return Some(self.detach(attachment).await);
        }
        // What is attached already does not need what brought it here.
        let may_attach =
            attachment.is(ConditionType::SourceReady) || attachment.is(ConditionType::Attached);
        if may_attach { Some(self.attach(attachment).await) } else { None }
    }

    async fn attach(&self, attachment: &BlockVolumeAttachment) -> (NodeReport, Ended) {
        let began = Instant::now();
        let attached = match Request::new(attachment) {
            Ok(request) => self.host.attach(request).await,
            Err(failure) => Err(failure),
        };
        let volume = match attached {
            Ok(volume) => volume,
            Err(failure) => {
                self.metrics.failed("attach", &failure.reason);
                // One that was attached may still be.
                let was_attached = attachment.is(ConditionType::Attached);
                let status = if was_attached { Truth::Unknown } else { Truth::False };
                return failed(attachment, failure, status);
            }
        };
        let AttachedVolume { id, guest_device, size, file_system, note } = volume;
        let (container, path) = (&attachment.spec.container_name, attachment.spec.path());
        let message = match &attachment.spec.mount {
            None => format!("{container} has the volume at {path}"),
            Some(_) => format!("{container} has the file system of the volume at {path}"),
        };
        let message = note.into_iter().fold(message, |message, note| format!("{message}; {note}"));
        let status = NodeStatus {
            volume_id: Some(id),
            guest_device: Some(guest_device),
            size: i64::try_from(size).ok(),
            file_system,
            ..NodeStatus::default()
        };
        let condition = Condition::new(ConditionType::Attached, Truth::True, "Attached", message);
        let report = NodeReport::new(attachment, status, condition);
        if report.is_news(attachment) {
            self.metrics.attached(began.elapsed());
        }
        (report, Ended::Attached)
    }

    async fn detach(&self, attachment: &BlockVolumeAttachment) -> (NodeReport, Ended) {
        let detached = match Request::new(attachment) {
            Ok(request) => self.host.detach(request).await,
            Err(failure) => Err(failure),
        };
        match detached {
            Ok(message) => {
                self.metrics.detached();
                (NodeReport::detached(attachment, &message), Ended::Detached)
            }
            Err(failure) => {
                self.metrics.failed("detach", &failure.reason);
                let was = attachment.condition(ConditionType::Attached).map(|one| one.status);
                failed(attachment, failure, was.unwrap_or(Truth::Unknown))
            }
        }
    }

    /// Tells people: in the log, and by an event.
    async fn announce(&self, report: &NodeReport, attachment: &BlockVolumeAttachment) {
        let condition = report.condition();
        let (namespace, name) = (attachment.namespace(), attachment.name_any());
        info!(namespace, name, reason = condition.reason, "{}", condition.message);
        let is_fine = matches!(condition.reason.as_str(), "Attached" | "Detached");
        let event = Event {
            type_: if is_fine { EventType::Normal } else { EventType::Warning },
            reason: condition.reason.clone(),
            note: Some(bounded(condition.message.clone(), MAX_NOTE)),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if let Err(e) = self.recorder.publish(&event, &attachment.object_ref(&())).await {
            warn!(namespace, name, error = %Error::from(e).chain(), "an event was lost");
        }
    }

    /// Forgets attachments that are gone, and counts the others.
    fn forget(&self) {
        let all = self.all.state();
        let uids: HashSet<_> = all.iter().filter_map(|one| one.metadata.uid.as_deref()).collect();
        self.memory.retain(|uid| uids.contains(uid));
        let attached = all.iter().filter(|one| one.is(ConditionType::Attached)).count();
        self.metrics.states(attached, all.len() - attached);
    }
}

/// A report of a failure: what was known of the volume stays known.
fn failed(
    attachment: &BlockVolumeAttachment,
    failure: Failure,
    status: Truth,
) -> (NodeReport, Ended) {
    let condition =
        Condition::new(ConditionType::Attached, status, failure.reason, failure.message);
    let ended = if failure.passes { Ended::Passes } else { Ended::Stays };
    (NodeReport::new(attachment, attachment.observed(), condition), ended)
}
