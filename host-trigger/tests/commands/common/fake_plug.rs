//! How the fake agent attaches, and its end of the conversation `Plug`. The end of the stream or of
//! the connection before the commit rolls back.

use std::{
    collections::HashSet,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex},
};

use block_volume_api::block_volume::{
    Access, AttachRequest, AttachResponse, Attached, Attachment, ContainerState, DeviceNumber,
    FilterMode, FilterState, KernelState, NodeWay, Outcome, PathState, PathUse, PlugRequest,
    PlugResponse, ProbeRequest, ProbeResponse, Reason, ScsiHost, Stage, plug_request,
    plug_response::Step,
};
use nix::sys::socket::Shutdown;
use tokio::{net::UnixListener, sync::watch};
use ttrpc::r#async::{ServerStream, transport::Listener};

use super::fake_agent::{FakeAgent, OnAttach, failure, key};

/// What the agent does in a conversation. `OnAttach` has what becomes of the attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnPlug {
    Follows,
    /// Ends the stream in place of this step, and rolls back.
    EndsBefore(Said),
    /// Leaves out this step.
    Skips(Said),
    /// Says this step, then nothing more, and keeps what it has.
    FallsSilentAfter(Said),
    /// Publishes something else than it has prepared.
    Lies,
    /// Rolls back in place of the end after the commit.
    RefusesCommit,
}

/// What the agent says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    Ready,
    Prepared,
    Attached,
}

type Stream = ServerStream<PlugResponse, PlugRequest>;

/// The agent ends the conversation, with its last message.
struct Ended(Option<AttachResponse>);

/// A conversation that is under way.
struct UnderWay<'a>(&'a watch::Sender<usize>);

impl<'a> UnderWay<'a> {
    fn new(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl FakeAgent {
    /// Serves one conversation.
    pub(super) async fn converse(&self, mut stream: Stream) -> ttrpc::Result<()> {
        let Some(PlugRequest { step: Some(plug_request::Step::Start(request)), .. }) =
            stream.recv().await?
        else {
            return Ok(());
        };
        self.connections.until(request.conversation, true).await;
        let _under_way = UnderWay::new(&self.conversations);
        let mut added = Vec::new();
        if let Err(Ended(last)) = self.try_plug(&mut stream, &request, &mut added).await {
            for key in added {
                self.attached.lock().unwrap().remove(&key);
            }
            if let Some(last) = last {
                send(&stream, Step::Attached(last)).await;
            }
        }
        self.connections.ended.send_modify(|ended| {
            ended.insert(request.conversation);
        });
        Ok(())
    }

    /// What the host says next; `None`: it has ended the stream, or is gone.
    async fn heard(&self, stream: &mut Stream, conversation: u64) -> Option<plug_request::Step> {
        tokio::select! {
            heard = stream.recv() => heard.ok()??.step,
            () = self.connections.until(conversation, false) => None,
        }
    }

    /// Waits until no conversation is under way: what was not committed is rolled back.
    #[cfg(feature = "fault")]
    pub async fn conversation_is_over(&self) {
        let mut under_way = self.conversations.subscribe();
        let over = under_way.wait_for(|count| *count == 0);
        let over = tokio::time::timeout(std::time::Duration::from_secs(20), over).await;
        over.expect("the conversation ends").expect("the agent has the sender");
    }

    async fn try_plug(
        &self,
        stream: &mut Stream,
        request: &AttachRequest,
        added: &mut Vec<super::fake_agent::Key>,
    ) -> Result<(), Ended> {
        let found = self.found(&ProbeRequest {
            container_id: request.attachments[0].container_id.clone(),
            paths: paths(request, false),
            mount_paths: paths(request, true),
            ..Default::default()
        });
        if found.failure.is_some() {
            let refused = AttachResponse { failure: found.failure, ..Default::default() };
            return Err(Ended(Some(refused)));
        }
        let is_new =
            |volume: &&Attachment| !self.attached.lock().unwrap().contains_key(&key(volume));
        for volume in request.attachments.iter().filter(is_new) {
            let state = self.path_state(&volume.container_id, &volume.path);
            if state.use_ == PathUse::PATH_USE_TAKEN.into() {
                let failure = failure(Reason::REASON_PATH_TAKEN, true);
                return Err(Ended(Some(AttachResponse { failure, ..Default::default() })));
            }
        }
        self.starts.lock().unwrap().push(request.clone());
        self.say(stream, Said::Ready, Step::Ready(found)).await?;
        let go = self.heard(stream, request.conversation).await;
        if !matches!(go, Some(plug_request::Step::Go(_))) {
            return Err(Ended(Some(cancelled())));
        }
        let before: Vec<_> = self.attached.lock().unwrap().keys().cloned().collect();
        let reply = self.attach_all(request.clone()).await;
        added.extend(self.attached.lock().unwrap().keys().cloned());
        added.retain(|key| !before.contains(key));
        if reply.failure.is_some() {
            return Err(Ended(Some(reply)));
        }
        self.say(stream, Said::Prepared, Step::Prepared(reply.clone())).await?;
        let mut attached = reply;
        let on_plug = *self.on_plug.lock().unwrap();
        if on_plug == OnPlug::Lies {
            attached.attached[0].guest_device = "sdzz".into();
        }
        self.say(stream, Said::Attached, Step::Attached(attached)).await?;
        let commit = self.heard(stream, request.conversation).await;
        if !matches!(commit, Some(plug_request::Step::Commit(_)))
            || on_plug == OnPlug::RefusesCommit
        {
            return Err(Ended(Some(cancelled())));
        }
        Ok(())
    }

    async fn say(&self, stream: &mut Stream, said: Said, step: Step) -> Result<(), Ended> {
        let on_plug = *self.on_plug.lock().unwrap();
        if on_plug == OnPlug::EndsBefore(said) {
            return Err(Ended(None));
        }
        if on_plug != OnPlug::Skips(said) {
            send(stream, step).await;
        }
        if on_plug == OnPlug::FallsSilentAfter(said) {
            self.request_received.notify_one();
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

impl FakeAgent {
    pub(super) fn found(&self, request: &ProbeRequest) -> ProbeResponse {
        let filter =
            FilterState { mode: FilterMode::FILTER_MODE_NONE.into(), ..Default::default() };
        let state = |path: &String| self.path_state(&request.container_id, path);
        let of_mounts = request.mount_paths.iter().map(|path| PathState {
            way: NodeWay::NODE_WAY_MOUNT.into(),
            ..self.path_state(&request.container_id, path)
        });
        let paths = request.paths.iter().map(state).chain(of_mounts).collect();
        let container = ContainerState { filter: Some(filter).into(), paths, ..Default::default() };
        let refusal = *self.probe_failure.lock().unwrap();
        let missing = self.missing_capabilities.lock().unwrap().clone();
        let kernel = missing.map(|missing| KernelState {
            release: "6.1.0-test".into(),
            missing: missing.into_iter().map(str::to_owned).collect(),
            ..Default::default()
        });
        let host = ScsiHost { controller: "0000:00:01.0".into(), ..Default::default() };
        ProbeResponse {
            api_level: *self.api_level.lock().unwrap(),
            scsi_hosts: vec![host],
            scan_mode: "none".into(),
            capabilities: self.mounts.capabilities(),
            container: Some(container).into(),
            kernel: kernel.into(),
            failure: refusal.map(|reason| failure(reason, true)).unwrap_or_default(),
            ..Default::default()
        }
    }

    pub(super) async fn attach_all(&self, request: AttachRequest) -> AttachResponse {
        self.another_request.notify_waiters();
        if !(1..=600_000).contains(&request.timeout_ms) {
            let failure = failure(Reason::REASON_INVALID_REQUEST, true);
            return AttachResponse { failure, ..Default::default() };
        }
        let on_attach = *self.on_attach.lock().unwrap();
        if let OnAttach::Fails { reason, undone } = on_attach {
            let mut failure = failure(reason, undone);
            failure.mut_or_insert_default().serial.clone_from(&request.attachments[0].serial);
            return AttachResponse { failure, ..Default::default() };
        }
        let mut reply = AttachResponse::new();
        for (index, attachment) in (0..).zip(request.attachments) {
            let outcome = Outcome {
                device: Some(DeviceNumber { major: 8, minor: 16 * index, ..Default::default() })
                    .into(),
                node: NodeWay::NODE_WAY_MKNOD.into(),
                filter: FilterMode::FILTER_MODE_NONE.into(),
                container_started: *self.container_started.lock().unwrap(),
                errors_before: *self.disk_errors.lock().unwrap(),
                ..Default::default()
            };
            let outcome = self.mounts.outcome(&attachment, outcome);
            let serial = attachment.serial.clone();
            reply.attached.push(Attached {
                serial: if on_attach == OnAttach::ReportsAnotherSerial {
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
            self.lost_nodes.lock().unwrap().retain(|path| *path != attachment.path);
            self.attached.lock().unwrap().insert(key(&attachment), attachment);
        }
        reply.stages.push(Stage { name: "scan".into(), micros: 5, ..Default::default() });
        self.request_received.notify_one();
        match on_attach {
            OnAttach::Hangs => std::future::pending::<()>().await,
            OnAttach::ReportsFewerVolumes => drop(reply.attached.pop()),
            _ => {}
        }
        reply
    }

    fn path_state(&self, container: &str, path: &str) -> PathState {
        let is_here = |attachment: &Attachment| {
            attachment.container_id == container && attachment.path == path
        };
        let lost = self.lost_nodes.lock().unwrap().iter().any(|lost| lost == path);
        let attached = !lost && self.attached.lock().unwrap().values().any(is_here);
        let taken = attached || self.taken_paths.lock().unwrap().iter().any(|taken| taken == path);
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

/// The paths of the devices, or of the mounts.
fn paths(request: &AttachRequest, of_mounts: bool) -> Vec<String> {
    let volumes = request.attachments.iter();
    let volumes = volumes.filter(|volume| volume.mount.is_some() == of_mounts);
    volumes.map(|volume| volume.path.clone()).collect()
}

async fn send(stream: &Stream, step: Step) {
    let _ = stream.send(&PlugResponse { step: Some(step), ..Default::default() }).await;
}

fn cancelled() -> AttachResponse {
    AttachResponse { failure: failure(Reason::REASON_CANCELLED, true), ..Default::default() }
}

/// The calls `Hold` that are waiting, the conversations that have ended, and the connections.
pub struct Connections {
    held: watch::Sender<HashSet<u64>>,
    ended: watch::Sender<HashSet<u64>>,
    open: Mutex<Vec<OwnedFd>>,
}

impl Default for Connections {
    fn default() -> Self {
        let (held, ended) = (watch::Sender::default(), watch::Sender::default());
        Self { held, ended, open: Mutex::default() }
    }
}

impl Connections {
    /// Serves one `Hold`. The future is dropped with its connection.
    pub(super) async fn hold(&self, conversation: u64) {
        self.held.send_modify(|held| {
            held.insert(conversation);
        });
        let _held = Held { connections: self, conversation };
        let mut ended = self.ended.subscribe();
        let _ = ended.wait_for(|ended| ended.contains(&conversation)).await;
    }

    async fn until(&self, conversation: u64, is_held: bool) {
        let mut held = self.held.subscribe();
        let _ = held.wait_for(|held| held.contains(&conversation) == is_held).await;
    }

    /// Ends all, as the kernel does when a process has died. A server that is disconnected leaves
    /// those open whose streams are at work.
    pub(super) fn end_all(&self) {
        for socket in self.open.lock().unwrap().drain(..) {
            let _ = nix::sys::socket::shutdown(socket.as_raw_fd(), Shutdown::Both);
        }
    }

    /// Listens at a Unix socket.
    pub(super) fn listen(agent: Arc<FakeAgent>, address: &Path) -> Listener {
        let listener = UnixListener::bind(address).unwrap();
        Listener::new(futures_util::stream::unfold(listener, move |listener| {
            let agent = agent.clone();
            async move {
                let accepted = listener.accept().await.map(|(stream, _)| {
                    let socket = stream.as_fd().try_clone_to_owned().unwrap();
                    agent.connections.open.lock().unwrap().push(socket);
                    stream
                });
                Some((accepted, listener))
            }
        }))
    }
}

/// A `Hold` that waits.
struct Held<'a> {
    connections: &'a Connections,
    conversation: u64,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.connections.held.send_modify(|held| {
            held.remove(&self.conversation);
        });
    }
}
