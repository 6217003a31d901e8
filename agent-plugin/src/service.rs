//! The ttrpc service: decodes a request, asks the agent, hands the work to a thread, encodes the
//! answer. Knows no kernel.
//!
//! ttrpc drops a handler's future when its caller goes away. So the work runs on a thread that is
//! started for the request and ends with it: nothing can cut it, and nothing is there while the
//! service is idle.

use std::{
    collections::HashMap,
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio_vsock::VsockListener;
use ttrpc::r#async::{Server, Service, TtrpcContext};

use crate::{
    agent::{Agent, ContainerError},
    api::{block_volume as wire, block_volume_ttrpc as rpc},
    audit,
    cgroup::Filter,
    device_node::NodePath,
    error::{Error, Result},
    fault,
    listener::incoming_from_host,
    namespace::Target,
    policy, reply,
    request::{self, Kept},
    volume::{self, Arrival, Attachment, Departure, Failed, Slots, Stages, Terms, Ticket},
};

/// The service's entry for an agent's own ttrpc server (`Server::register_service`).
pub fn service(agent: Arc<impl Agent>) -> HashMap<String, Service> {
    fault::announce();
    rpc::create_block_volume(Arc::new(BlockVolume { agent, slots: Arc::default() }))
}

/// Serves on a listener of the plugin's own, for agents whose ttrpc differs from ours. Runs until
/// it is dropped. Only the host is served: whoever connects from inside the guest, as a container
/// might, is refused by its [context id](https://man7.org/linux/man-pages/man7/vsock.7.html).
///
/// # Errors
/// The server does not start.
pub async fn serve(agent: Arc<impl Agent>, listener: VsockListener) -> io::Result<()> {
    let mut server =
        Server::new().add_listener(incoming_from_host(listener)?).register_service(service(agent));
    server.start().await.map_err(io::Error::other)?;
    std::future::pending().await
}

struct BlockVolume<A> {
    agent: Arc<A>,
    slots: Arc<Slots>,
}

#[async_trait]
impl<A: Agent> rpc::BlockVolume for BlockVolume<A> {
    async fn probe(
        &self,
        _: &TtrpcContext,
        request: wire::ProbeRequest,
    ) -> ttrpc::Result<wire::ProbeResponse> {
        let began = Instant::now();
        let about = audit::escaped(&request.container_id);
        let prepared = self.prepare_probe(request).await.map(|(target, paths)| {
            move || {
                let result = look(target.as_ref(), &paths).map_err(Failed::from);
                let reply = reply::probe(result.as_ref());
                let about = target.map(|target| target.id).unwrap_or_default();
                (reply, move || audit::log("probe", &about, began, result.as_ref().err()))
            }
        });
        Ok(answer("probe", &about, began, prepared, |failed| reply::probe(Err(failed))).await)
    }

    async fn attach(
        &self,
        _: &TtrpcContext,
        request: wire::AttachRequest,
    ) -> ttrpc::Result<wire::AttachResponse> {
        let began = Instant::now();
        let prepared = self.prepare_attach(&request).await.map(|(arrivals, ticket, timeout)| {
            move || {
                let mut stages = Stages::new("attach");
                let result = volume::attach(&arrivals, &ticket, began + timeout, &mut stages);
                let reply = reply::attach(result.as_deref(), &stages.taken);
                let audit = move || {
                    let attached = result.as_deref().unwrap_or_default();
                    let about = audit::attached(&arrivals, attached);
                    audit::log("attach", &about, began, result.as_ref().err());
                };
                (reply, audit)
            }
        });
        let about = audit::asked(request.attachments.iter());
        Ok(answer("attach", &about, began, prepared, |failed| reply::attach(Err(failed), &[]))
            .await)
    }

    async fn detach(
        &self,
        _: &TtrpcContext,
        request: wire::DetachRequest,
    ) -> ttrpc::Result<wire::DetachResponse> {
        let began = Instant::now();
        let prepared = self.prepare_detach(&request).await;
        // A wait for others is of use to the caller alone. Work that has begun goes on without it.
        let _caller = prepared
            .as_ref()
            .ok()
            .map(|(_, ticket, _, terms)| (!terms.wait.is_zero()).then(|| ticket.caller()));
        let prepared = prepared.map(|(mut departures, ticket, timeout, terms)| {
            move || {
                let mut stages = Stages::new("detach");
                let result =
                    volume::detach(&mut departures, terms, &ticket, began + timeout, &mut stages);
                let reply = reply::detach(result.as_ref(), &stages.taken);
                let audit = move || {
                    let about =
                        audit::volumes(departures.iter().map(|departure| &departure.attachment));
                    audit::log("detach", &about, began, result.as_ref().err());
                };
                (reply, audit)
            }
        });
        let about = audit::asked(
            request.detachments.iter().filter_map(|detachment| detachment.attachment.as_ref()),
        );
        Ok(answer("detach", &about, began, prepared, |failed| reply::detach(Err(failed), &[]))
            .await)
    }

    async fn inspect(
        &self,
        _: &TtrpcContext,
        request: wire::InspectRequest,
    ) -> ttrpc::Result<wire::InspectResponse> {
        let began = Instant::now();
        let prepared = self.prepare_inspect(&request).await.map(|subjects| {
            move || {
                let result = volume::inspect(&subjects, request.holders).map_err(Failed::from);
                let reply = reply::inspect(&subjects, result.as_deref());
                let audit = move || {
                    let about = audit::volumes(subjects.iter().map(|subject| &subject.attachment));
                    audit::log("inspect", &about, began, result.as_ref().err());
                };
                (reply, audit)
            }
        });
        let about = audit::asked(
            request.attachments.iter().filter_map(|detachment| detachment.attachment.as_ref()),
        );
        Ok(answer("inspect", &about, began, prepared, |failed| reply::inspect(&[], Err(failed)))
            .await)
    }

    async fn resize(
        &self,
        _: &TtrpcContext,
        request: wire::ResizeRequest,
    ) -> ttrpc::Result<wire::ResizeResponse> {
        let began = Instant::now();
        let prepared = self.prepare_resize(&request).await.map(|(attachments, ticket, timeout)| {
            move || {
                let mut stages = Stages::new("resize");
                let result = volume::resize(&attachments, &ticket, began + timeout, &mut stages);
                let reply = reply::resize(result.as_deref(), &stages.taken);
                let audit = move || {
                    let about = audit::volumes(attachments.iter());
                    audit::log("resize", &about, began, result.as_ref().err());
                };
                (reply, audit)
            }
        });
        let about = audit::asked(request.attachments.iter());
        Ok(answer("resize", &about, began, prepared, |failed| reply::resize(Err(failed), &[]))
            .await)
    }
}

impl<A: Agent> BlockVolume<A> {
    async fn prepare_probe(
        &self,
        request: wire::ProbeRequest,
    ) -> Result<(Option<Target>, Vec<NodePath>)> {
        let paths = request::paths(&request.paths)?;
        let container = match request.container_id.as_str() {
            "" => None,
            id => Some(request::container_id("container_id", id)?),
        };
        self.agent.authorize(policy::PROBE, &policy::probe(&request.container_id, &paths)).await?;
        let target = match container {
            Some(id) => Some(self.target(&id).await?),
            None => None,
        };
        Ok((target, paths))
    }

    async fn prepare_attach(
        &self,
        request: &wire::AttachRequest,
    ) -> Result<(Vec<Arrival>, Ticket, Duration)> {
        let timeout = request::timeout(request.timeout_ms)?;
        let attachments = request::attachments(&request.attachments)?;
        // The place in the queue is taken before anything is awaited, so that a detach that comes
        // in from now on sees this attach.
        let ticket = self.slots.attach(serials(attachments.iter()))?;
        self.agent.authorize(policy::ATTACH, &policy::attachments(&attachments)).await?;
        let mut targets: HashMap<String, Target> = HashMap::new();
        let mut arrivals = Vec::with_capacity(attachments.len());
        for attachment in attachments {
            let target = match targets.get(&attachment.container_id) {
                Some(target) => target.clone(),
                None => self.target(&attachment.container_id).await?,
            };
            targets.insert(attachment.container_id.clone(), target.clone());
            arrivals.push(Arrival { attachment, target });
        }
        Ok((arrivals, ticket, timeout))
    }

    async fn prepare_detach(
        &self,
        request: &wire::DetachRequest,
    ) -> Result<(Vec<Departure>, Ticket, Duration, Terms)> {
        let timeout = request::timeout(request.timeout_ms)?;
        let terms = Terms { force: request.force, wait: request::wait(request.wait_ms, timeout)? };
        let kept = request::kept(&request.detachments)?;
        self.agent.authorize(policy::DETACH, &policy::detach(&kept, request.force)).await?;
        // Before the containers are looked up: an attach that is under way in one of them is
        // cancelled as early as can be.
        let patient = !terms.wait.is_zero();
        let ticket =
            self.slots.detach(serials(kept.iter().map(|kept| &kept.attachment)), patient)?;
        let mut departures = Vec::with_capacity(kept.len());
        for Kept { attachment, outcome, keep_disk, keep_right } in kept {
            let target = match self.target(&attachment.container_id).await {
                Ok(target) => Some(target),
                // Its file system and its rights went with it, or never were.
                Err(Error::Container {
                    source:
                        ContainerError::Unknown | ContainerError::Created | ContainerError::Stopped,
                    ..
                }) => None,
                Err(error) => return Err(error),
            };
            departures.push(Departure { attachment, outcome, keep_disk, keep_right, target });
        }
        Ok((departures, ticket, timeout, terms))
    }

    async fn prepare_inspect(&self, request: &wire::InspectRequest) -> Result<Vec<Departure>> {
        let kept = request::kept(&request.attachments)?;
        self.agent.authorize(policy::INSPECT, &policy::inspect(&kept)).await?;
        let mut subjects = Vec::with_capacity(kept.len());
        for Kept { attachment, outcome, keep_disk, keep_right } in kept {
            let target = self.target(&attachment.container_id).await.ok();
            subjects.push(Departure { attachment, outcome, keep_disk, keep_right, target });
        }
        Ok(subjects)
    }

    async fn prepare_resize(
        &self,
        request: &wire::ResizeRequest,
    ) -> Result<(Vec<Attachment>, Ticket, Duration)> {
        let timeout = request::timeout(request.timeout_ms)?;
        let attachments = request::attachments(&request.attachments)?;
        self.agent.authorize(policy::RESIZE, &policy::attachments(&attachments)).await?;
        // In the queue as an attach is: a detach of one of these volumes ends the wait.
        let ticket = self.slots.attach(serials(attachments.iter()))?;
        Ok((attachments, ticket, timeout))
    }

    async fn target(&self, id: &str) -> Result<Target> {
        match self.agent.container(id).await {
            Ok(container) => Ok(Target { id: id.into(), container: Arc::new(container) }),
            Err(source) => Err(Error::Container { id: id.to_owned(), source }),
        }
    }
}

/// What Probe answers.
fn look(
    target: Option<&Target>,
    paths: &[NodePath],
) -> Result<(volume::Guest, Option<wire::ContainerState>)> {
    let guest = volume::probe()?;
    let Some(target) = target else { return Ok((guest, None)) };
    let filter = Filter::of(target)?;
    let container = wire::ContainerState {
        user_namespace: target.container.user_namespace.is_some(),
        filter: Some(reply::filter_state(&filter)).into(),
        paths: volume::paths(target, paths)?.into_iter().map(reply::path_state).collect(),
        ..Default::default()
    };
    Ok((guest, Some(container)))
}

fn serials<'a>(attachments: impl Iterator<Item = &'a Attachment>) -> Vec<String> {
    attachments.map(|attachment| attachment.serial.clone()).collect()
}

/// Runs what was prepared on a thread of its own, which goes on if nobody waits for it any more.
/// The thread sends its answer first and does its `audit` then: a console is slow. `refused` makes
/// the answer where it does not come to that; the line then is about what was asked for.
async fn answer<T: Send + 'static, A: FnOnce(), W: FnOnce() -> (T, A) + Send + 'static>(
    operation: &str,
    about: &str,
    began: Instant,
    prepared: Result<W>,
    refused: impl FnOnce(&Failed) -> T,
) -> T {
    let start = |work: W| {
        let (sender, result) = oneshot::channel();
        let thread = move || {
            let (reply, audit) = work();
            let gone = sender.send(reply).is_err();
            audit();
            fault::at("thread");
            if gone {
                tracing::info!("the caller went away before its answer");
            }
        };
        let spawned = thread::Builder::new().name("block-volume".to_owned()).spawn(thread);
        spawned.map(|_| result).map_err(Error::system("clone", "a thread"))
    };
    let failed = match prepared.and_then(start) {
        Err(error) => Failed::from(error),
        Ok(result) => match result.await {
            Ok(reply) => return reply,
            // Only a panic drops the sender without a word, and then nobody knows how far the work
            // came.
            Err(_) => Failed { partial: true, ..Failed::from(Error::Panicked) },
        },
    };
    audit::log(operation, about, began, Some(&failed));
    refused(&failed)
}
