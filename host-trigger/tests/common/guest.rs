//! An agent that answers the contract from a book of its own: which serials are attached where. Its
//! misbehaviour is set by a test.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use block_volume_api::{
    block_volume::{
        Access, AttachRequest, AttachResponse, Attached, Attachment, BlockStats, ContainerState,
        DetachRequest, DetachResponse, Detached, Detachment, DeviceNumber, Failure, FilterMode,
        FilterState, Holder, InspectRequest, InspectResponse, Inspected, NodeWay, Outcome,
        PathState, PathUse, ProbeRequest, ProbeResponse, Reason, ResizeRequest, ResizeResponse,
        Resized, ScsiHost, Stage,
    },
    block_volume_ttrpc::{self, BlockVolume},
};
use tokio::sync::Notify;
use ttrpc::r#async::{Server, TtrpcContext};

/// What it does when it is asked to attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    Works,
    Fails {
        reason: Reason,
        undone: bool,
    },
    /// It attaches and then never answers.
    Hangs,
    TellsAnotherSerial,
    TellsFewer,
}

/// What it does when a disk is to have another size than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnResize {
    Follows,
    /// It keeps the size that it had, and says so.
    Stays,
    /// It takes the new size, and fails all the same.
    FollowsAndFails,
    /// It takes the new size and never answers.
    Hangs,
    TellsAnotherSize,
    /// Whatever the size.
    Refuses(Reason),
}

type Key = (String, String, String);

fn key(attachment: &Attachment) -> Key {
    (attachment.serial.clone(), attachment.container_id.clone(), attachment.path.clone())
}

pub struct Guest {
    pub behaviour: Mutex<Behaviour>,
    /// By serial, container and path.
    pub attached: Mutex<HashMap<Key, Attachment>>,
    /// When the containers were started.
    pub started: Mutex<u64>,
    pub detached: Mutex<Vec<String>>,
    /// The last request to detach.
    pub detachments: Mutex<Vec<Detachment>>,
    pub taken: Mutex<Vec<String>>,
    pub probe_failure: Mutex<Option<Reason>>,
    pub api_level: Mutex<u32>,
    /// Who is told with an answer to a request to detach.
    pub holders: Mutex<Vec<Holder>>,
    /// The last request to detach: by force, and how many milliseconds it may wait.
    pub terms: Mutex<(bool, u64)>,
    /// How a request to detach fails, and whether all is as it was then.
    pub detach_failure: Mutex<Option<(Reason, bool)>>,
    /// A request to detach does its work, and its connection ends without an answer.
    pub loses_detach: Mutex<bool>,
    /// A request to detach is never answered.
    pub hangs_at_detach: Mutex<bool>,
    /// How long it takes to detach.
    pub detach_delay: Mutex<std::time::Duration>,
    /// Containers that do not run any more.
    pub gone: Mutex<Vec<String>>,
    /// Processes that hold the disks.
    pub held: Mutex<Vec<String>>,
    /// Paths whose node the container lost, until they are attached again.
    pub nodes_lost: Mutex<Vec<String>>,
    pub inspect_failure: Mutex<Option<Reason>>,
    /// Sizes that it was asked to have, in order.
    pub sizes: Mutex<Vec<u64>>,
    pub on_resize: Mutex<OnResize>,
    pub stats: Mutex<Option<BlockStats>>,
    /// Told at each request to attach.
    pub asked: Notify,
    address: PathBuf,
    this: std::sync::Weak<Self>,
    server: tokio::sync::Mutex<Option<Server>>,
}

impl Guest {
    pub async fn serve(address: &Path) -> Arc<Self> {
        let guest = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            behaviour: Mutex::new(Behaviour::Works),
            attached: Mutex::default(),
            started: Mutex::new(1000),
            detached: Mutex::default(),
            detachments: Mutex::default(),
            taken: Mutex::default(),
            probe_failure: Mutex::default(),
            api_level: Mutex::new(1),
            holders: Mutex::default(),
            terms: Mutex::default(),
            detach_failure: Mutex::default(),
            loses_detach: Mutex::default(),
            hangs_at_detach: Mutex::default(),
            detach_delay: Mutex::default(),
            gone: Mutex::default(),
            nodes_lost: Mutex::default(),
            held: Mutex::default(),
            inspect_failure: Mutex::default(),
            sizes: Mutex::default(),
            on_resize: Mutex::new(OnResize::Follows),
            stats: Mutex::default(),
            asked: Notify::new(),
            address: address.to_owned(),
            server: tokio::sync::Mutex::default(),
        });
        guest.start().await;
        guest
    }

    /// Listens, again after a [`stop`](Self::stop).
    pub async fn start(self: &Arc<Self>) {
        self.listen(block_volume_ttrpc::create_block_volume(self.clone())).await;
    }

    /// Listens without the service.
    pub async fn start_without_plugin(&self) {
        self.listen(HashMap::new()).await;
    }

    async fn listen(&self, service: HashMap<String, ttrpc::r#async::Service>) {
        let _ = std::fs::remove_file(&self.address);
        let address = format!("unix://{}", self.address.display());
        let mut server = Server::new().bind(&address).unwrap().register_service(service);
        server.start().await.unwrap();
        *self.server.lock().await = Some(server);
    }

    /// As if the agent died: nobody listens, and connections end. In this order: a server that ends
    /// its connections goes on to accept new ones, and may answer a request that came with one.
    pub async fn stop(&self) {
        std::fs::remove_file(&self.address).unwrap();
        if let Some(mut server) = self.server.lock().await.take() {
            server.stop_listen().await;
            // It waits for handlers that hang.
            tokio::spawn(async move { server.disconnect().await });
        }
    }

    pub fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    fn holders(&self) -> Vec<Holder> {
        let holder = |command: &String| Holder {
            kind: "process".to_owned(),
            pid: 7,
            command: command.clone(),
            ..Default::default()
        };
        self.held.lock().unwrap().iter().map(holder).collect()
    }

    /// What is attached of the volume with this serial.
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

    fn path_state(&self, container: &str, path: &str) -> PathState {
        let is_here = |attachment: &Attachment| {
            attachment.container_id == container && attachment.path == path
        };
        let lost = self.nodes_lost.lock().unwrap().iter().any(|lost| lost == path);
        let attached = !lost && self.attached.lock().unwrap().values().any(is_here);
        let taken = attached || self.taken.lock().unwrap().iter().any(|taken| taken == path);
        let (usage, taken_by) =
            if taken { (PathUse::PATH_USE_TAKEN, "file") } else { (PathUse::PATH_USE_FREE, "") };
        PathState {
            path: path.to_owned(),
            use_: usage.into(),
            taken_by: taken_by.to_owned(),
            file_system: "tmpfs".to_owned(),
            way: NodeWay::NODE_WAY_MKNOD.into(),
            ..Default::default()
        }
    }
}

pub fn failure(reason: Reason, undone: bool) -> protobuf::MessageField<Failure> {
    let message = format!("scripted {reason:?} \u{1b}[31m");
    Some(Failure { reason: reason.into(), message, undone, ..Default::default() }).into()
}

#[async_trait]
impl BlockVolume for Guest {
    async fn probe(&self, _: &TtrpcContext, request: ProbeRequest) -> ttrpc::Result<ProbeResponse> {
        let filter =
            FilterState { mode: FilterMode::FILTER_MODE_NONE.into(), ..Default::default() };
        let paths =
            request.paths.iter().map(|path| self.path_state(&request.container_id, path)).collect();
        let container = ContainerState { filter: Some(filter).into(), paths, ..Default::default() };
        let refused = *self.probe_failure.lock().unwrap();
        let host = ScsiHost { controller: "0000:00:01.0".into(), ..Default::default() };
        Ok(ProbeResponse {
            api_level: *self.api_level.lock().unwrap(),
            scsi_hosts: vec![host],
            scan_mode: "none".into(),
            container: Some(container).into(),
            failure: refused.map(|reason| failure(reason, true)).unwrap_or_default(),
            ..Default::default()
        })
    }

    async fn attach(
        &self,
        _: &TtrpcContext,
        request: AttachRequest,
    ) -> ttrpc::Result<AttachResponse> {
        if !(1..=600_000).contains(&request.timeout_ms) {
            let failure = failure(Reason::REASON_INVALID_REQUEST, true);
            return Ok(AttachResponse { failure, ..Default::default() });
        }
        let behaviour = *self.behaviour.lock().unwrap();
        if let Behaviour::Fails { reason, undone } = behaviour {
            return Ok(AttachResponse { failure: failure(reason, undone), ..Default::default() });
        }
        let mut reply = AttachResponse::new();
        for (index, attachment) in (0..).zip(request.attachments) {
            let outcome = Outcome {
                device: Some(DeviceNumber { major: 8, minor: 16 * index, ..Default::default() })
                    .into(),
                node: NodeWay::NODE_WAY_MKNOD.into(),
                filter: FilterMode::FILTER_MODE_NONE.into(),
                container_started: *self.started.lock().unwrap(),
                ..Default::default()
            };
            let serial = attachment.serial.clone();
            reply.attached.push(Attached {
                serial: if behaviour == Behaviour::TellsAnotherSerial {
                    "other".into()
                } else {
                    serial.clone()
                },
                unchanged: self.attached.lock().unwrap().contains_key(&key(&attachment)),
                guest_device: format!("sd{index}\u{1b}"),
                outcome: Some(outcome).into(),
                size: attachment.size,
                read_only: attachment.access == Access::ACCESS_READ_ONLY.into(),
                ..Default::default()
            });
            self.nodes_lost.lock().unwrap().retain(|path| *path != attachment.path);
            self.attached.lock().unwrap().insert(key(&attachment), attachment);
        }
        reply.stages.push(Stage { name: "scan".into(), micros: 5, ..Default::default() });
        self.asked.notify_one();
        match behaviour {
            Behaviour::Hangs => std::future::pending::<()>().await,
            Behaviour::TellsFewer => drop(reply.attached.pop()),
            _ => {}
        }
        Ok(reply)
    }

    async fn detach(
        &self,
        _: &TtrpcContext,
        request: DetachRequest,
    ) -> ttrpc::Result<DetachResponse> {
        self.asked.notify_one();
        let delay = *self.detach_delay.lock().unwrap();
        tokio::time::sleep(delay).await;
        if *self.hangs_at_detach.lock().unwrap() {
            std::future::pending::<()>().await;
        }
        *self.terms.lock().unwrap() = (request.force, request.wait_ms);
        let holders = self.holders.lock().unwrap().clone();
        if let Some((reason, undone)) = *self.detach_failure.lock().unwrap() {
            return Ok(DetachResponse {
                failure: failure(reason, undone),
                holders,
                ..Default::default()
            });
        }
        (*self.detachments.lock().unwrap()).clone_from(&request.detachments);
        let mut reply = DetachResponse { holders, ..Default::default() };
        for detachment in request.detachments {
            let serial = detachment.attachment.serial.clone();
            let key = key(&detachment.attachment);
            let unchanged = self.attached.lock().unwrap().remove(&key).is_none();
            self.detached.lock().unwrap().push(serial.clone());
            reply.detached.push(Detached { serial, unchanged, ..Default::default() });
        }
        if std::mem::take(&mut *self.loses_detach.lock().unwrap()) {
            let mut server = self.server.lock().await.take().unwrap();
            let service = block_volume_ttrpc::create_block_volume(self.this.upgrade().unwrap());
            self.listen(service).await;
            // It waits for this very handler.
            tokio::spawn(async move { server.disconnect().await });
            std::future::pending::<()>().await;
        }
        Ok(reply)
    }

    async fn inspect(
        &self,
        _: &TtrpcContext,
        request: InspectRequest,
    ) -> ttrpc::Result<InspectResponse> {
        if let Some(reason) = *self.inspect_failure.lock().unwrap() {
            return Ok(InspectResponse { failure: failure(reason, true), ..Default::default() });
        }
        let mut reply = InspectResponse::new();
        for subject in request.attachments {
            let attachment = subject.attachment.unwrap();
            let running = !self.gone.lock().unwrap().contains(&attachment.container_id);
            let size = self.attachment(&attachment.serial).map(|known| known.size);
            let disk = size.is_some();
            let attached = self.attached.lock().unwrap().contains_key(&key(&attachment));
            let lost = self.nodes_lost.lock().unwrap().contains(&attachment.path);
            reply.inspected.push(Inspected {
                serial: attachment.serial,
                disk_present: disk,
                guest_device: "sdz".to_owned(),
                device: Some(DeviceNumber { major: 8, minor: 400, ..Default::default() }).into(),
                size: size.unwrap_or(attachment.size),
                stats: self.stats.lock().unwrap().clone().into(),
                read_only: attachment.access == Access::ACCESS_READ_ONLY.into(),
                container_running: running,
                node_present: attached && running && !lost,
                allowed: attached && running,
                filter: FilterMode::FILTER_MODE_V1.into(),
                holders: if request.holders { self.holders() } else { Vec::new() },
                container_started: if running { *self.started.lock().unwrap() } else { 0 },
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
        let behaviour = *self.on_resize.lock().unwrap();
        if let OnResize::Refuses(reason) = behaviour {
            return Ok(ResizeResponse { failure: failure(reason, true), ..Default::default() });
        }
        let mut reply = ResizeResponse::new();
        for Attachment { serial, size, .. } in request.attachments {
            self.sizes.lock().unwrap().push(size);
            let before = self.attachment(&serial).unwrap().size;
            if before != size && behaviour == OnResize::Stays {
                let failure = failure(Reason::REASON_TIMED_OUT, true);
                return Ok(ResizeResponse { failure, ..Default::default() });
            }
            for known in
                self.attached.lock().unwrap().values_mut().filter(|known| known.serial == serial)
            {
                known.size = size;
            }
            let told = match behaviour {
                _ if before == size => size,
                OnResize::Hangs => {
                    self.asked.notify_one();
                    std::future::pending().await
                }
                OnResize::FollowsAndFails => {
                    let failure = failure(Reason::REASON_SYSTEM, false);
                    return Ok(ResizeResponse { failure, ..Default::default() });
                }
                OnResize::TellsAnotherSize => size + 512,
                _ => size,
            };
            reply.resized.push(Resized {
                serial,
                unchanged: before == size,
                size: told,
                ..Default::default()
            });
        }
        Ok(reply)
    }
}
