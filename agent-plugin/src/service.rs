//! The ttrpc service: decodes a request, asks the agent, hands the work to a thread, encodes the answer. Knows no kernel.
//!
//! ttrpc drops a handler's future when its caller goes away. So the work runs on a thread that is started for the request and ends
//! with it: nothing can cut it, and nothing is there while the service is idle.

use std::{
    collections::HashMap,
    fmt, io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio_vsock::VsockListener;
use ttrpc::r#async::{Server, Service, TtrpcContext, transport::Listener};

use crate::{
    agent::{Agent, ContainerError},
    cgroup::Filter,
    contract::{block_volume as wire, block_volume_ttrpc as rpc},
    device_node::NodePath,
    error::{Error, Result},
    fault,
    namespace::Target,
    policy, reply, request,
    volume::{self, Arrival, Attachment, Departure, Failed, Slots, Stages, Ticket},
};

/// The service's entry for an agent's own ttrpc server (`Server::register_service`).
pub fn service(agent: Arc<impl Agent>) -> HashMap<String, Service> {
    fault::announce();
    rpc::create_block_volume(Arc::new(BlockVolume { agent, slots: Arc::default() }))
}

/// Serves on a listener of the plugin's own, for agents whose ttrpc differs from ours. Runs until it is dropped.
///
/// # Errors
/// The server does not start.
pub async fn serve(agent: Arc<impl Agent>, listener: VsockListener) -> io::Result<()> {
    let mut server = Server::new().add_listener(Listener::from(listener)).register_service(service(agent));
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
        let about = format!("{:?}", request.container_id);
        let result = self.probe(request).await.map_err(Failed::from);
        log("probe", &about, began, result.as_ref().err());
        Ok(reply::probe(result))
    }

    async fn attach(
        &self,
        _: &TtrpcContext,
        request: wire::AttachRequest,
    ) -> ttrpc::Result<wire::AttachResponse> {
        let began = Instant::now();
        let (arrivals, ticket, timeout) = match self.prepare_attach(&request).await {
            Ok(prepared) => prepared,
            Err(error) => {
                let failed = Failed::from(error);
                log("attach", &"", began, Some(&failed));
                return Ok(reply::attach(&Err(failed), &[]));
            }
        };
        let work = move || {
            let mut stages = Stages::new("attach");
            let result = volume::attach(&arrivals, &ticket, began + timeout, &mut stages);
            let about = Volumes(arrivals.iter().map(|arrival| &arrival.attachment).collect());
            log("attach", &about, began, result.as_ref().err());
            reply::attach(&result, &stages.taken)
        };
        Ok(on_thread(work).await.unwrap_or_else(|failed| reply::attach(&Err(failed), &[])))
    }

    async fn detach(
        &self,
        _: &TtrpcContext,
        request: wire::DetachRequest,
    ) -> ttrpc::Result<wire::DetachResponse> {
        let began = Instant::now();
        if request.force {
            return Err(unimplemented("a forced detach"));
        }
        let (departures, ticket, timeout) = match self.prepare_detach(&request).await {
            Ok(prepared) => prepared,
            Err(error) => {
                let failed = Failed::from(error);
                log("detach", &"", began, Some(&failed));
                return Ok(reply::detach(&Err(failed), &[]));
            }
        };
        let work = move || {
            let mut stages = Stages::new("detach");
            let result = volume::detach(&departures, &ticket, began + timeout, &mut stages);
            let about = Volumes(departures.iter().map(|departure| &departure.attachment).collect());
            log("detach", &about, began, result.as_ref().err());
            reply::detach(&result, &stages.taken)
        };
        Ok(on_thread(work).await.unwrap_or_else(|failed| reply::detach(&Err(failed), &[])))
    }

    async fn inspect(
        &self,
        _: &TtrpcContext,
        request: wire::InspectRequest,
    ) -> ttrpc::Result<wire::InspectResponse> {
        let began = Instant::now();
        let result = self.inspect(request).await.map_err(Failed::from);
        log("inspect", &"", began, result.as_ref().err());
        Ok(reply::inspect(result))
    }

    async fn resize(
        &self,
        _: &TtrpcContext,
        request: wire::ResizeRequest,
    ) -> ttrpc::Result<wire::ResizeResponse> {
        match self.allow_resize(&request).await {
            Ok(()) => Err(unimplemented("a resize")),
            Err(error) => Ok(reply::resize_failed(&Failed::from(error))),
        }
    }
}

impl<A: Agent> BlockVolume<A> {
    async fn probe(
        &self,
        request: wire::ProbeRequest,
    ) -> Result<(volume::Guest, Option<wire::ContainerState>)> {
        let paths = request::paths(&request.paths)?;
        self.agent.authorize(policy::PROBE, &policy::probe(&request.container_id, &paths)).await?;
        let target = match request.container_id.as_str() {
            "" => None,
            id => Some(self.target(&request::container_id("container_id", id)?).await?),
        };
        let work = move || Ok((volume::probe()?, target.map(|target| state(&target, &paths)).transpose()?));
        on_thread(work).await.map_err(|failed| *failed.error)?
    }

    async fn prepare_attach(
        &self,
        request: &wire::AttachRequest,
    ) -> Result<(Vec<Arrival>, Ticket, Duration)> {
        let timeout = request::timeout(request.timeout_ms)?;
        let attachments = request::attachments(&request.attachments)?;
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
        // The place in the queue is taken here, so that a detach that comes in from now on sees this attach.
        let ticket = self.slots.attach(serials(arrivals.iter().map(|arrival| &arrival.attachment)))?;
        Ok((arrivals, ticket, timeout))
    }

    async fn prepare_detach(
        &self,
        request: &wire::DetachRequest,
    ) -> Result<(Vec<Departure>, Ticket, Duration)> {
        let timeout = request::timeout(request.timeout_ms)?;
        let kept = request::kept(&request.detachments)?;
        self.agent.authorize(policy::DETACH, &policy::detach(&kept, request.force)).await?;
        let mut departures = Vec::with_capacity(kept.len());
        for (attachment, outcome) in kept {
            let target = match self.target(&attachment.container_id).await {
                Ok(target) => Some(target),
                // Its file system and its rights went with it, or never were.
                Err(Error::Container {
                    source: ContainerError::Unknown | ContainerError::Created | ContainerError::Stopped,
                    ..
                }) => None,
                Err(error) => return Err(error),
            };
            departures.push(Departure { attachment, outcome, target });
        }
        let ticket = self.slots.detach(serials(departures.iter().map(|departure| &departure.attachment)))?;
        Ok((departures, ticket, timeout))
    }

    async fn inspect(&self, request: wire::InspectRequest) -> Result<Vec<(Attachment, volume::Inspected)>> {
        let kept = request::kept(&request.attachments)?;
        self.agent.authorize(policy::INSPECT, &policy::inspect(&kept)).await?;
        let mut subjects = Vec::with_capacity(kept.len());
        for (attachment, outcome) in kept {
            let target = self.target(&attachment.container_id).await.ok();
            subjects.push((attachment, outcome, target));
        }
        let work = move || {
            let hosts = volume::probe()?.hosts;
            let inspect = |(attachment, outcome, target): (Attachment, _, Option<Target>)| {
                let inspected = volume::inspect(&attachment, outcome, target.as_ref(), &hosts)?;
                Ok((attachment, inspected))
            };
            subjects.into_iter().map(inspect).collect()
        };
        on_thread(work).await.map_err(|failed| *failed.error)?
    }

    async fn allow_resize(&self, request: &wire::ResizeRequest) -> Result<()> {
        request::timeout(request.timeout_ms)?;
        let attachments = request::attachments(&request.attachments)?;
        Ok(self.agent.authorize(policy::RESIZE, &policy::attachments(&attachments)).await?)
    }

    async fn target(&self, id: &str) -> Result<Target> {
        match self.agent.container(id).await {
            Ok(container) => Ok(Target { id: id.into(), container: Arc::new(container) }),
            Err(source) => Err(Error::Container { id: id.to_owned(), source }),
        }
    }
}

fn state(target: &Target, paths: &[NodePath]) -> Result<wire::ContainerState> {
    let filter = Filter::of(target)?;
    Ok(wire::ContainerState {
        user_namespace: target.container.user_namespace.is_some(),
        filter: Some(reply::filter_state(&filter)).into(),
        paths: volume::paths(target, paths)?.into_iter().map(reply::path_state).collect(),
        ..Default::default()
    })
}

fn serials<'a>(attachments: impl Iterator<Item = &'a Attachment>) -> Vec<String> {
    attachments.map(|attachment| attachment.serial.clone()).collect()
}

/// A method without code would be answered NOT_FOUND by ttrpc.
fn unimplemented(what: &str) -> ttrpc::Error {
    let message = format!("this version of the plugin cannot do {what}");
    ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::UNIMPLEMENTED, message))
}

/// Runs `work` on a thread of its own, which goes on if nobody waits for it any more.
async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failed> {
    let (sender, result) = oneshot::channel();
    thread::Builder::new()
        .name("block-volume".to_owned())
        .spawn(move || {
            if sender.send(work()).is_err() {
                tracing::info!("the caller went away before its answer");
            }
        })
        .map_err(Error::system("clone", "a thread"))?;
    // The sender is dropped without a word only by a panic, and then nobody knows how far the work came.
    result.await.map_err(|_| Failed { partial: true, ..Failed::from(Error::Panicked) })
}

/// For an auditor: one line for each operation, whatever came of it.
fn log(operation: &str, about: &dyn fmt::Display, began: Instant, failed: Option<&Failed>) {
    let millis = began.elapsed().as_millis();
    match failed {
        None => tracing::info!(operation, %about, millis, "done"),
        Some(failed) => {
            let failure = reply::failure(failed);
            let reason = failure.reason.enum_value_or_default();
            let (serial, undone) = (failure.serial, failure.undone);
            tracing::info!(operation, %about, millis, ?reason, serial, undone, message = failure.message);
        }
    }
}

/// Volumes for the log; paths are escaped.
struct Volumes<'a>(Vec<&'a Attachment>);

impl fmt::Display for Volumes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, volume) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(
                f,
                "{comma}{} {}:{:?} {}",
                volume.serial,
                volume.container_id,
                volume.path.as_str(),
                volume.access
            )?;
        }
        Ok(())
    }
}
