//! A fake agent of the guest. It serves the `BlockVolume` service from a table of attachments, by
//! serial number, container and path. A test sets how it misbehaves.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use block_volume_api::{
    block_volume::{
        Access, AttachRequest, AttachResponse, Attachment, BlockStats, ContainerStatus,
        DetachRequest, DetachResponse, Detached, Detachment, DeviceNumber, Failure, FilterMode,
        HoldRequest, HoldResponse, Holder, InspectRequest, InspectResponse, Inspected, LeftBehind,
        PlugRequest, PlugResponse, ProbeRequest, ProbeResponse, Reason, ResizeRequest,
        ResizeResponse, Resized, UnplugResponse,
    },
    block_volume_ttrpc::{self, BlockVolume},
};
use tokio::sync::Notify;
use ttrpc::r#async::{Server, ServerStream, ServerStreamSender, TtrpcContext};

use super::{
    fake_mount::Mounts,
    fake_plug::{Connections, OnPlug},
    fake_unplug::OnUnplug,
};

/// What the agent does with a request to attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnAttach {
    Succeeds,
    Fails {
        reason: Reason,
        undone: bool,
    },
    /// Attaches and then never replies.
    Hangs,
    ReportsAnotherSerial,
    ReportsFewerVolumes,
}

/// What the agent does with a request to give a disk another size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnResize {
    Follows,
    /// Keeps the old size and reports a timeout.
    KeepsSize,
    /// Takes the new size and fails anyway.
    FollowsAndFails,
    /// Takes the new size and never replies.
    Hangs,
    ReportsAnotherSize,
    /// Takes whole blocks of 4096 bytes only, as the kernel does for a disk that has them.
    TakesWholeBlocks,
    /// Fails with this reason, whatever the size.
    Refuses(Reason),
}

pub(super) type Key = (String, String, String);

pub(super) fn key(attachment: &Attachment) -> Key {
    (attachment.serial.clone(), attachment.container_id.clone(), attachment.path.clone())
}

/// The agent, its table, and what a test sets or reads.
pub struct FakeAgent {
    pub on_attach: Mutex<OnAttach>,
    pub on_plug: Mutex<OnPlug>,
    /// The beginnings of all conversations.
    pub starts: Mutex<Vec<AttachRequest>>,
    /// The number of conversations that are under way.
    pub(super) conversations: tokio::sync::watch::Sender<usize>,
    pub(super) connections: Connections,
    /// The agent has no `Plug`: it is of a version before that.
    is_old: AtomicBool,
    /// The attachments, by serial number, container and path.
    pub attached: Mutex<HashMap<Key, Attachment>>,
    /// The start time of the containers.
    pub container_started: Mutex<u64>,
    /// The serial numbers of all detached volumes, in order.
    pub detached: Mutex<Vec<String>>,
    /// The detachments of the last request to detach.
    pub last_detachments: Mutex<Vec<Detachment>>,
    /// Paths at which a container has a file.
    pub taken_paths: Mutex<Vec<String>>,
    pub probe_failure: Mutex<Option<Reason>>,
    /// The capabilities that the guest's kernel lacks; `None`: not known.
    pub missing_capabilities: Mutex<Option<Vec<&'static str>>>,
    pub api_level: Mutex<u32>,
    /// The holders in the reply to a request to detach.
    pub detach_holders: Mutex<Vec<Holder>>,
    /// What a request that detaches something leaves behind.
    pub left_behind: Mutex<Vec<LeftBehind>>,
    /// `force` of the last request to detach, and the longest `wait_ms` with the same one.
    pub detach_terms: Mutex<(bool, u64)>,
    /// How a request to detach fails, and whether it is rolled back.
    pub detach_failure: Mutex<Option<(Reason, bool)>>,
    /// Whether the next request to detach does its work and loses its connection before the reply.
    pub loses_detach_reply: Mutex<bool>,
    /// Whether a request to detach never gets a reply.
    pub hangs_on_detach: Mutex<bool>,
    pub on_unplug: Mutex<OnUnplug>,
    pub may_detach: tokio::sync::Semaphore,
    /// Whether a holder has the disks. A request to detach that may wait does so until the holder
    /// releases them or another request for any volume arrives.
    pub is_held: tokio::sync::watch::Sender<bool>,
    /// How many times faster than the host's clock the guest's is. Zero: the guest never waits.
    pub clock: Mutex<u32>,
    /// Notified when a request to detach begins to wait.
    pub waits: Notify,
    /// The number of requests to detach.
    pub detach_requests: std::sync::atomic::AtomicU32,
    pub(super) another_request: Notify,
    /// How long it takes to detach.
    pub detach_delay: Mutex<std::time::Duration>,
    /// How it mounts file systems.
    pub mounts: Mounts,
    /// Containers that no longer run.
    pub gone_containers: Mutex<Vec<String>>,
    /// The commands of the processes that hold the disks.
    pub holder_commands: Mutex<Vec<String>>,
    /// What else holds the disks: kind and detail.
    pub other_holders: Mutex<Vec<(&'static str, &'static str)>>,
    /// Paths whose device node the container lost, until they are attached again.
    pub lost_nodes: Mutex<Vec<String>>,
    pub inspect_failure: Mutex<Option<Reason>>,
    /// What is reported of a container, as a plugin that has the field does.
    pub container_status: Mutex<Option<ContainerStatus>>,
    /// The path of which Inspect cannot tell, and why.
    pub untold: Mutex<Option<(String, String)>>,
    /// The path at which Inspect never replies.
    pub hangs_on_inspect: Mutex<Option<String>>,
    /// The number of all requests.
    pub requests: AtomicUsize,
    /// The sizes of the requests to resize, in order.
    pub requested_sizes: Mutex<Vec<u64>>,
    pub on_resize: Mutex<OnResize>,
    pub stats: Mutex<Option<BlockStats>>,
    /// The errors that the guest's kernel has counted of every disk. Each change of a size adds 2.
    /// If there are none, a disk has only the counters `stats`.
    pub disk_errors: Mutex<u64>,
    /// Notified at each request to attach, to detach, and to resize if it hangs.
    pub request_received: Notify,
    address: PathBuf,
    this: std::sync::Weak<Self>,
    server: tokio::sync::Mutex<Option<Server>>,
}

impl FakeAgent {
    pub async fn serve(address: &Path) -> Arc<Self> {
        let agent = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            on_attach: Mutex::new(OnAttach::Succeeds),
            on_plug: Mutex::new(OnPlug::Follows),
            starts: Mutex::default(),
            conversations: tokio::sync::watch::Sender::new(0),
            connections: Connections::default(),
            is_old: AtomicBool::new(false),
            attached: Mutex::default(),
            container_started: Mutex::new(1000),
            detached: Mutex::default(),
            last_detachments: Mutex::default(),
            taken_paths: Mutex::default(),
            probe_failure: Mutex::default(),
            missing_capabilities: Mutex::new(Some(Vec::new())),
            api_level: Mutex::new(1),
            detach_holders: Mutex::default(),
            left_behind: Mutex::default(),
            detach_terms: Mutex::default(),
            detach_failure: Mutex::default(),
            loses_detach_reply: Mutex::default(),
            hangs_on_detach: Mutex::default(),
            on_unplug: Mutex::new(OnUnplug::Detaches),
            may_detach: tokio::sync::Semaphore::new(0),
            is_held: tokio::sync::watch::Sender::new(false),
            clock: Mutex::new(1),
            waits: Notify::new(),
            detach_requests: std::sync::atomic::AtomicU32::default(),
            another_request: Notify::new(),
            detach_delay: Mutex::default(),
            mounts: Mounts::default(),
            gone_containers: Mutex::default(),
            lost_nodes: Mutex::default(),
            holder_commands: Mutex::default(),
            other_holders: Mutex::default(),
            inspect_failure: Mutex::default(),
            container_status: Mutex::default(),
            untold: Mutex::default(),
            hangs_on_inspect: Mutex::default(),
            requests: AtomicUsize::default(),
            requested_sizes: Mutex::default(),
            on_resize: Mutex::new(OnResize::Follows),
            stats: Mutex::default(),
            disk_errors: Mutex::default(),
            request_received: Notify::new(),
            address: address.to_owned(),
            server: tokio::sync::Mutex::default(),
        });
        agent.start().await;
        agent
    }

    /// Listens, also again after [`stop`](Self::stop).
    pub async fn start(self: &Arc<Self>) {
        let mut services = block_volume_ttrpc::create_block_volume(self.clone());
        if self.is_old.load(Ordering::Relaxed) {
            for service in services.values_mut() {
                service.streams.clear();
                service.methods.remove("Hold");
            }
        }
        self.listen(services).await;
    }

    /// Becomes an agent of a version before `Plug`.
    pub async fn become_old(self: &Arc<Self>) {
        self.stop().await;
        self.is_old.store(true, Ordering::Relaxed);
        self.start().await;
    }

    /// Listens without the service.
    pub async fn start_without_plugin(&self) {
        self.listen(HashMap::new()).await;
    }

    async fn listen(&self, service: HashMap<String, ttrpc::r#async::Service>) {
        let _ = std::fs::remove_file(&self.address);
        let listener = Connections::listen(self.this.upgrade().unwrap(), &self.address);
        let mut server = Server::new().add_listener(listener).register_service(service);
        server.start().await.unwrap();
        *self.server.lock().await = Some(server);
    }

    /// Behaves as an agent that died: no process listens, and connections end. The order matters: a
    /// server that ends its connections still accepts new ones, and may reply to a request that
    /// came with one.
    pub async fn stop(&self) {
        std::fs::remove_file(&self.address).unwrap();
        if let Some(mut server) = self.server.lock().await.take() {
            server.stop_listen().await;
            // `disconnect` waits for handlers that hang.
            tokio::spawn(async move { server.disconnect().await });
        }
        self.connections.end_all();
    }

    pub fn set_on_attach(&self, on_attach: OnAttach) {
        *self.on_attach.lock().unwrap() = on_attach;
    }

    fn holders(&self) -> Vec<Holder> {
        let holder = |command: &String| Holder {
            kind: "process".to_owned(),
            pid: 7,
            command: command.clone(),
            ..Default::default()
        };
        let other = |&(kind, detail): &(&str, &str)| Holder {
            kind: kind.to_owned(),
            detail: detail.to_owned(),
            ..Default::default()
        };
        let processes = self.holder_commands.lock().unwrap();
        let others = self.other_holders.lock().unwrap();
        processes.iter().map(holder).chain(others.iter().map(other)).collect()
    }

    /// Returns an attachment of the volume with this serial number.
    pub fn attachment(&self, serial: &str) -> Option<Attachment> {
        let attached = self.attached.lock().unwrap();
        attached.values().find(|attachment| attachment.serial == serial).cloned()
    }

    pub fn attached_paths(&self) -> Vec<String> {
        let attached = self.attached.lock().unwrap();
        let mut paths: Vec<_> =
            attached.values().map(|attachment| attachment.path.clone()).collect();
        paths.sort();
        paths
    }

    /// Returns why the disk is not detached.
    async fn wait_for_holder(&self, request: &DetachRequest) -> Option<Reason> {
        let mut is_held = self.is_held.subscribe();
        if request.force || !*is_held.borrow() {
            return None;
        }
        let clock = *self.clock.lock().unwrap();
        let wait = std::time::Duration::from_millis(request.wait_ms);
        let Some(wait) = wait.checked_div(clock).filter(|wait| !wait.is_zero()) else {
            return Some(Reason::REASON_BUSY);
        };
        let another = self.another_request.notified();
        self.waits.notify_one();
        tokio::select! {
            _ = is_held.wait_for(|is_held| !is_held) => None,
            () = another => Some(Reason::REASON_CANCELLED),
            () = tokio::time::sleep(wait) => Some(Reason::REASON_BUSY),
        }
    }
}

impl FakeAgent {
    fn count_probes(&self) {
        let mut errors = self.disk_errors.lock().unwrap();
        *errors += if *errors > 0 { 2 } else { 0 };
    }

    fn stats_since(&self, errors_before: u64) -> Option<BlockStats> {
        let errors = *self.disk_errors.lock().unwrap();
        match errors {
            0 => self.stats.lock().unwrap().clone(),
            _ => Some(BlockStats { errors: errors - errors_before, ..Default::default() }),
        }
    }
}

pub fn failure(reason: Reason, undone: bool) -> protobuf::MessageField<Failure> {
    let message = format!("scripted {reason:?} \u{1b}[31m");
    Some(Failure { reason: reason.into(), message, undone, ..Default::default() }).into()
}

#[async_trait]
impl BlockVolume for FakeAgent {
    async fn probe(&self, _: &TtrpcContext, request: ProbeRequest) -> ttrpc::Result<ProbeResponse> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        Ok(self.found(&request))
    }

    async fn attach(
        &self,
        _: &TtrpcContext,
        request: AttachRequest,
    ) -> ttrpc::Result<AttachResponse> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        Ok(self.attach_all(request).await)
    }

    async fn hold(&self, _: &TtrpcContext, request: HoldRequest) -> ttrpc::Result<HoldResponse> {
        self.connections.hold(request.conversation).await;
        Ok(HoldResponse::new())
    }

    async fn plug(
        &self,
        _: &TtrpcContext,
        stream: ServerStream<PlugResponse, PlugRequest>,
    ) -> ttrpc::Result<()> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.converse(stream).await
    }

    async fn detach(
        &self,
        _: &TtrpcContext,
        request: DetachRequest,
    ) -> ttrpc::Result<DetachResponse> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.request_received.notify_one();
        self.detach_requests.fetch_add(1, Ordering::Relaxed);
        self.another_request.notify_waiters();
        if let Some(reason) = self.wait_for_holder(&request).await {
            let failure = failure(reason, true);
            return Ok(DetachResponse { failure, ..Default::default() });
        }
        let delay = *self.detach_delay.lock().unwrap();
        tokio::time::sleep(delay).await;
        if *self.hangs_on_detach.lock().unwrap() {
            std::future::pending::<()>().await;
        }
        {
            let mut terms = self.detach_terms.lock().unwrap();
            let longest = if terms.0 == request.force { terms.1 } else { 0 };
            *terms = (request.force, request.wait_ms.max(longest));
        }
        let holders = self.detach_holders.lock().unwrap().clone();
        if let Some((reason, undone)) = *self.detach_failure.lock().unwrap() {
            return Ok(DetachResponse {
                failure: failure(reason, undone),
                holders,
                ..Default::default()
            });
        }
        (*self.last_detachments.lock().unwrap()).clone_from(&request.detachments);
        let mut reply = DetachResponse { holders, ..Default::default() };
        for detachment in request.detachments {
            let serial = detachment.attachment.serial.clone();
            let key = key(&detachment.attachment);
            let unchanged = self.attached.lock().unwrap().remove(&key).is_none();
            if !unchanged {
                (*self.left_behind.lock().unwrap()).clone_into(&mut reply.left_behind);
            }
            self.detached.lock().unwrap().push(serial.clone());
            reply.detached.push(Detached { serial, unchanged, ..Default::default() });
        }
        if std::mem::take(&mut *self.loses_detach_reply.lock().unwrap()) {
            let mut server = self.server.lock().await.take().unwrap();
            self.this.upgrade().unwrap().start().await;
            // `disconnect` waits for this handler, and keeps connections whose streams are at work.
            tokio::spawn(async move { server.disconnect().await });
            self.connections.end_all();
            std::future::pending::<()>().await;
        }
        Ok(reply)
    }

    async fn unplug(
        &self,
        context: &TtrpcContext,
        request: DetachRequest,
        stream: ServerStreamSender<UnplugResponse>,
    ) -> ttrpc::Result<()> {
        self.release_and_detach(context, request, stream).await
    }

    async fn inspect(
        &self,
        _: &TtrpcContext,
        request: InspectRequest,
    ) -> ttrpc::Result<InspectResponse> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if let Some(reason) = *self.inspect_failure.lock().unwrap() {
            return Ok(InspectResponse { failure: failure(reason, true), ..Default::default() });
        }
        let mut reply = InspectResponse::new();
        for subject in request.attachments {
            let attachment = subject.attachment.unwrap();
            if self.hangs_on_inspect.lock().unwrap().as_ref() == Some(&attachment.path) {
                self.request_received.notify_one();
                std::future::pending::<()>().await;
            }
            let untold = self.untold.lock().unwrap().clone();
            let untold = untold.filter(|(path, _)| *path == attachment.path);
            let status = *self.container_status.lock().unwrap();
            let is_running =
                status.is_none_or(|status| status == ContainerStatus::CONTAINER_STATUS_RUNNING);
            let running = is_running
                && !self.gone_containers.lock().unwrap().contains(&attachment.container_id);
            let size = self.attachment(&attachment.serial).map(|known| known.size);
            let disk = size.is_some();
            let attached = self.attached.lock().unwrap().contains_key(&key(&attachment));
            let lost = self.lost_nodes.lock().unwrap().contains(&attachment.path);
            let is_there = attached && running && !lost;
            let file_system = self.mounts.state(&attachment).filter(|_| is_there);
            let filter = match attachment.mount.as_ref() {
                Some(_) => FilterMode::FILTER_MODE_UNSPECIFIED,
                None => FilterMode::FILTER_MODE_V1,
            };
            reply.inspected.push(Inspected {
                serial: attachment.serial,
                disk_present: disk,
                guest_device: "sdz".to_owned(),
                device: Some(DeviceNumber { major: 8, minor: 400, ..Default::default() }).into(),
                size: size.unwrap_or(attachment.size),
                stats: self.stats_since(subject.outcome.errors_before).into(),
                read_only: attachment.access == Access::ACCESS_READ_ONLY.into(),
                container_running: running,
                container_status: status.unwrap_or_default().into(),
                unknown: untold.map(|(_, why)| why).unwrap_or_default(),
                node_present: is_there,
                file_system: file_system.into(),
                allowed: attached && running,
                filter: filter.into(),
                holders: if request.holders { self.holders() } else { Vec::new() },
                container_started: if running {
                    *self.container_started.lock().unwrap()
                } else {
                    0
                },
                ..Default::default()
            });
        }
        Ok(reply)
    }

    async fn resize(
        &self,
        _: &TtrpcContext,
        request: ResizeRequest,
    ) -> ttrpc::Result<ResizeResponse> {
        let on_resize = *self.on_resize.lock().unwrap();
        if let OnResize::Refuses(reason) = on_resize {
            return Ok(ResizeResponse { failure: failure(reason, true), ..Default::default() });
        }
        let mut reply = ResizeResponse::new();
        for Attachment { serial, size, mount, .. } in request.attachments {
            self.requested_sizes.lock().unwrap().push(size);
            let before = self.attachment(&serial).unwrap().size;
            let cannot = on_resize == OnResize::TakesWholeBlocks && !size.is_multiple_of(4096);
            if before != size && (cannot || on_resize == OnResize::KeepsSize) {
                let failure = failure(Reason::REASON_TIMED_OUT, true);
                return Ok(ResizeResponse { failure, ..Default::default() });
            }
            if before != size {
                self.count_probes();
            }
            for known in
                self.attached.lock().unwrap().values_mut().filter(|known| known.serial == serial)
            {
                known.size = size;
            }
            let reported = match on_resize {
                _ if before == size => size,
                OnResize::Hangs => {
                    self.request_received.notify_one();
                    std::future::pending().await
                }
                OnResize::FollowsAndFails => {
                    let failure = failure(Reason::REASON_SYSTEM, false);
                    return Ok(ResizeResponse { failure, ..Default::default() });
                }
                OnResize::ReportsAnotherSize => size + 512,
                _ => size,
            };
            let resized =
                Resized { serial, unchanged: before == size, size: reported, ..Default::default() };
            reply.resized.push(match mount.as_ref() {
                Some(_) => self.mounts.grown(before, resized),
                None => resized,
            });
        }
        Ok(reply)
    }
}
