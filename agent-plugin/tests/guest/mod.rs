//! The service on a ttrpc server, over a Unix socket, with a minimal agent and one container. Needs
//! root and util-linux.

#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses a part of it")]

use std::{
    os::fd::AsRawFd as _,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use agent_plugin::{
    Agent, Container, ContainerError, Denied,
    api::{block_volume as wire, block_volume_ttrpc::BlockVolumeClient},
};
use async_trait::async_trait;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::Semaphore;
use ttrpc::r#async::{Client, Server};
use wire::Reason;

use crate::container::Fixture;

/// An agent with one running container, `c1`.
pub(crate) struct TestAgent {
    pub(crate) container: Mutex<Option<Fixture>>,
    denies: bool,
    pub(crate) asked: Mutex<Vec<(String, Value)>>,
    /// The policy decides on an attach when it gets a permit.
    pub(crate) attach: Semaphore,
}

#[async_trait]
impl Agent for TestAgent {
    async fn container(&self, id: &str) -> Result<Container, ContainerError> {
        match (id, &*self.container.lock().unwrap()) {
            ("c1", Some(fixture)) => Ok(fixture.handles()),
            ("no-cgroup", Some(fixture)) => {
                Ok(Container { cgroup: "/pod/../no-such-cgroup".into(), ..fixture.handles() })
            }
            ("created", _) => Err(ContainerError::Created),
            ("stopped", _) => Err(ContainerError::Stopped),
            ("paused", _) => Err(ContainerError::Paused),
            ("broken", _) => Err(ContainerError::Unreachable("pidfd_open: EMFILE".into())),
            _ => Err(ContainerError::Unknown),
        }
    }

    async fn remains(&self, id: &str) -> Option<Container> {
        match (id, &*self.container.lock().unwrap()) {
            ("stopped", Some(fixture)) => {
                let namespace = &fixture.target.container.mount_namespace;
                let path = format!("/proc/self/fd/{}", namespace.as_raw_fd());
                Container::remains(Path::new(&path), "/none".into(), Vec::new()).ok()
            }
            _ => None,
        }
    }

    async fn authorize(&self, method: &str, request: &Value) -> Result<(), Denied> {
        self.asked.lock().unwrap().push((method.to_owned(), request.clone()));
        if method == "AttachBlockVolumeRequest" {
            self.attach.acquire().await.expect("it is never closed").forget();
        }
        if self.denies { Err(Denied("no rule allows it".into())) } else { Ok(()) }
    }
}

/// A server with the service, and a client.
pub(crate) struct Guest {
    pub(crate) agent: Arc<TestAgent>,
    pub(crate) client: BlockVolumeClient,
    address: String,
    _server: Server,
    _directory: TempDir,
}

pub(crate) async fn guest(container: Option<Fixture>, denies: bool) -> Guest {
    let agent = Arc::new(TestAgent {
        container: Mutex::new(container),
        denies,
        asked: Mutex::default(),
        attach: Semaphore::new(100),
    });
    let directory = tempfile::tempdir().expect("a temporary directory");
    let address = format!("unix://{}/agent.sock", directory.path().display());
    let mut server = Server::new()
        .bind(&address)
        .expect("bind")
        .register_service(agent_plugin::service(agent.clone()));
    server.start().await.expect("the server starts");
    let client = BlockVolumeClient::new(Client::connect(&address).await.expect("connect"));
    Guest { agent, client, address, _server: server, _directory: directory }
}

impl Guest {
    /// A connection of its own.
    pub(crate) async fn connect(&self) -> BlockVolumeClient {
        BlockVolumeClient::new(Client::connect(&self.address).await.expect("connect"))
    }
}

pub(crate) fn context() -> ttrpc::context::Context {
    ttrpc::context::with_duration(Duration::from_secs(20))
}

pub(crate) fn attachment(container: &str) -> wire::Attachment {
    wire::Attachment {
        container_id: container.into(),
        address: Some(wire::ScsiAddress { target: 255, lun: 1, ..Default::default() }).into(),
        serial: "0123456789abcdef".into(),
        size: 1 << 20,
        path: "/dev/xvda".into(),
        access: wire::Access::ACCESS_READ_WRITE.into(),
        mode: 0o660,
        ..Default::default()
    }
}

pub(crate) fn attach(attachment: wire::Attachment) -> wire::AttachRequest {
    wire::AttachRequest { attachments: vec![attachment], timeout_ms: 10_000, ..Default::default() }
}

pub(crate) fn detach(attachment: wire::Attachment) -> wire::DetachRequest {
    let detachment = wire::Detachment { attachment: Some(attachment).into(), ..Default::default() };
    wire::DetachRequest { detachments: vec![detachment], timeout_ms: 10_000, ..Default::default() }
}

pub(crate) fn reason(failure: &protobuf::MessageField<wire::Failure>) -> Reason {
    failure
        .as_ref()
        .map_or(Reason::REASON_UNSPECIFIED, |failure| failure.reason.enum_value_or_default())
}
