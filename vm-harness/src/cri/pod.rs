//! Pods and their containers, as kubelet makes and ends them.

use protobuf::{EnumOrUnknown, MessageField};

use super::{
    client::Client,
    proto::{
        cri::{
            ContainerMetadata, ContainerState, ImageSpec, ListContainersRequest,
            ListContainersResponse, PodSandboxMetadata,
        },
        pods::{
            ContainerConfig, CreateContainerRequest, CreateContainerResponse, Empty,
            ExecSyncRequest, ExecSyncResponse, LinuxContainerConfig, LinuxContainerSecurityContext,
            LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
            PodSandboxConfig, RemoveContainerRequest, RemovePodSandboxRequest,
            RunPodSandboxRequest, RunPodSandboxResponse, StartContainerRequest,
            StopContainerRequest, StopPodSandboxRequest,
        },
    },
};
use crate::Error;

/// What a pod is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodOptions {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The number of its sandbox: kubelet counts up when it makes another sandbox for a pod.
    pub attempt: u32,
    /// Its runtime class; empty for the default one.
    pub runtime: String,
}

impl PodOptions {
    /// The first sandbox of this pod.
    pub fn named(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: format!("uid-{namespace}-{name}"),
            attempt: 0,
            runtime: String::new(),
        }
    }

    fn config(&self) -> PodSandboxConfig {
        let Self { namespace, name, uid, attempt, .. } = self;
        // kubelet's labels.
        let labels = [
            ("io.kubernetes.pod.name", name.clone()),
            ("io.kubernetes.pod.namespace", namespace.clone()),
            ("io.kubernetes.pod.uid", uid.clone()),
        ];
        PodSandboxConfig {
            metadata: MessageField::some(PodSandboxMetadata {
                name: name.clone(),
                uid: uid.clone(),
                namespace: namespace.clone(),
                attempt: *attempt,
                ..Default::default()
            }),
            labels: labels.map(|(key, value)| (key.to_owned(), value)).into(),
            linux: MessageField::some(LinuxPodSandboxConfig {
                security_context: MessageField::some(LinuxSandboxSecurityContext {
                    namespace_options: MessageField::some(on_the_hosts_network()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

/// The host's network: a pod without it needs CNI plugins.
fn on_the_hosts_network() -> NamespaceOption {
    NamespaceOption {
        network: EnumOrUnknown::new(NamespaceMode::NODE),
        pid: EnumOrUnknown::new(NamespaceMode::CONTAINER),
        ..Default::default()
    }
}

/// A sandbox of a pod. Dropping the value leaves it running; it ends with its engine.
#[derive(Debug, Clone)]
pub struct Pod {
    client: Client,
    id: String,
    config: PodSandboxConfig,
    image: String,
}

impl Pod {
    pub(super) async fn run(
        client: Client,
        options: &PodOptions,
        image: &str,
    ) -> Result<Self, Error> {
        let config = options.config();
        let request = RunPodSandboxRequest {
            config: MessageField::some(config.clone()),
            runtime_handler: options.runtime.clone(),
            ..Default::default()
        };
        let made: RunPodSandboxResponse = client.runtime("RunPodSandbox", &request).await?;
        Ok(Self { client, id: made.pod_sandbox_id, config, image: image.to_owned() })
    }

    /// Returns the same pod, asked for by another connection.
    pub(super) fn by(&self, client: Client) -> Self {
        Self { client, ..self.clone() }
    }

    /// Returns the ID of its sandbox.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Creates and starts the container `name`.
    ///
    /// # Errors
    /// The engine refuses, or does not reply.
    pub async fn start_container(&self, name: &str) -> Result<PodContainer, Error> {
        let container = self.create_container(name, 0).await?;
        container.start().await?;
        Ok(container)
    }

    /// Creates the container `name`, and does not start it. kubelet gives each restart of a
    /// container a higher `attempt`, and the engine gives it another ID.
    ///
    /// # Errors
    /// The engine refuses, or does not reply.
    pub async fn create_container(&self, name: &str, attempt: u32) -> Result<PodContainer, Error> {
        let config = ContainerConfig {
            metadata: MessageField::some(ContainerMetadata {
                name: name.to_owned(),
                attempt,
                ..Default::default()
            }),
            image: MessageField::some(ImageSpec {
                image: self.image.clone(),
                ..Default::default()
            }),
            labels: [("io.kubernetes.container.name".to_owned(), name.to_owned())].into(),
            linux: MessageField::some(LinuxContainerConfig {
                security_context: MessageField::some(LinuxContainerSecurityContext {
                    namespace_options: MessageField::some(on_the_hosts_network()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: MessageField::some(config),
            sandbox_config: MessageField::some(self.config.clone()),
            ..Default::default()
        };
        let made: CreateContainerResponse =
            self.client.runtime("CreateContainer", &request).await?;
        Ok(PodContainer { client: self.client.clone(), id: made.container_id })
    }

    /// Kills its containers and its sandbox. The engine still lists it, as not ready.
    ///
    /// # Errors
    /// The engine refuses, or does not reply.
    pub async fn stop(&self) -> Result<(), Error> {
        let request =
            StopPodSandboxRequest { pod_sandbox_id: self.id.clone(), ..Default::default() };
        self.client.runtime::<Empty>("StopPodSandbox", &request).await.map(drop)
    }

    /// Stops and removes it.
    ///
    /// # Errors
    /// The engine refuses, or does not reply.
    pub async fn remove(&self) -> Result<(), Error> {
        self.stop().await?;
        let request =
            RemovePodSandboxRequest { pod_sandbox_id: self.id.clone(), ..Default::default() };
        self.client.runtime::<Empty>("RemovePodSandbox", &request).await.map(drop)
    }
}

/// A container of a pod. Dropping the value leaves it running.
#[derive(Debug, Clone)]
pub struct PodContainer {
    client: Client,
    id: String,
}

impl PodContainer {
    /// Returns the same container, asked for by another connection.
    pub(super) fn by(&self, client: Client) -> Self {
        Self { client, ..self.clone() }
    }

    /// Runs a command in it, and returns its exit status and what it printed to standard output and
    /// standard error.
    ///
    /// # Errors
    /// The engine refuses, or does not reply.
    pub async fn exec(&self, command: &[&str]) -> Result<(i32, String, String), Error> {
        let request = ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            ..Default::default()
        };
        let ran: ExecSyncResponse = self.client.runtime("ExecSync", &request).await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((ran.exit_code, text(&ran.stdout), text(&ran.stderr)))
    }

    /// Returns its ID.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns whether the engine lists it as running. An event tells the engine of an end that it
    /// did not ask for; until then it lists the container as running.
    ///
    /// # Errors
    /// The engine refuses, or does not reply.
    pub async fn is_running(&self) -> Result<bool, Error> {
        let request = ListContainersRequest::default();
        let listed: ListContainersResponse =
            self.client.runtime("ListContainers", &request).await?;
        let running = EnumOrUnknown::new(ContainerState::CONTAINER_RUNNING);
        Ok(listed.containers.iter().any(|other| other.id == self.id && other.state == running))
    }

    /// Starts it.
    ///
    /// # Errors
    /// The engine refuses, or does not reply.
    pub async fn start(&self) -> Result<(), Error> {
        let request = StartContainerRequest { container_id: self.id.clone(), ..Default::default() };
        self.client.runtime::<Empty>("StartContainer", &request).await.map(drop)
    }

    /// Kills it. The engine still lists it, as exited.
    ///
    /// # Errors
    /// The engine refuses, or does not reply.
    pub async fn stop(&self) -> Result<(), Error> {
        let request = StopContainerRequest {
            container_id: self.id.clone(),
            timeout: 0,
            ..Default::default()
        };
        self.client.runtime::<Empty>("StopContainer", &request).await.map(drop)
    }

    /// Kills and removes it.
    ///
    /// # Errors
    /// The engine refuses, or does not reply.
    pub async fn remove(&self) -> Result<(), Error> {
        self.stop().await?;
        let request =
            RemoveContainerRequest { container_id: self.id.clone(), ..Default::default() };
        self.client.runtime::<Empty>("RemoveContainer", &request).await.map(drop)
    }
}
