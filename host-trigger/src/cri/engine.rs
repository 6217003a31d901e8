//! What a container engine knows of pods. IDs become parts of paths, and names are printed: what
//! does not look like one is left out.

use protobuf::EnumOrUnknown;

use super::{
    client::Client,
    endpoint::Endpoint,
    proto::cri::{
        self, ContainerFilter, ListContainersRequest, ListContainersResponse,
        ListPodSandboxRequest, ListPodSandboxResponse, PodSandboxState,
    },
};
use crate::{
    Deadline, Error,
    kata::layout::check_id,
    pod::{PodName, is_name},
};

/// A sandbox of a pod. A pod has several over time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSandbox {
    /// Its ID.
    pub id: String,
    /// The names of the pod.
    pub pod: PodName,
    /// The pod's UID: another pod of the same names has another one.
    pub uid: String,
    /// How many sandboxes the pod has had before.
    pub attempt: u32,
    /// Whether it is ready for containers.
    pub is_ready: bool,
    /// The runtime class; empty for the default one, and of CRI-O always.
    pub handler: String,
}

/// A container of a pod. One that is restarted is another container of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodContainer {
    pub(crate) id: String,
    /// The ID of the sandbox that it is in.
    pub(crate) sandbox: String,
    pub(crate) name: String,
    pub(crate) attempt: u32,
    pub(crate) state: ContainerState,
}

/// The state of a container, as the engine reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContainerState {
    Created,
    Running,
    Exited,
    Unknown,
}

impl ContainerState {
    /// The state for people.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Exited => "exited",
            Self::Unknown => "in an unknown state",
        }
    }
}

impl From<EnumOrUnknown<cri::ContainerState>> for ContainerState {
    fn from(state: EnumOrUnknown<cri::ContainerState>) -> Self {
        match state.enum_value() {
            Ok(cri::ContainerState::CONTAINER_CREATED) => Self::Created,
            Ok(cri::ContainerState::CONTAINER_RUNNING) => Self::Running,
            Ok(cri::ContainerState::CONTAINER_EXITED) => Self::Exited,
            Ok(cri::ContainerState::CONTAINER_UNKNOWN) | Err(_) => Self::Unknown,
        }
    }
}

/// A container engine that is connected.
#[derive(Debug)]
pub(crate) struct Engine {
    client: Client,
}

impl Engine {
    /// Connects.
    ///
    /// # Errors
    /// Nothing listens, or it is not trusted.
    pub(crate) async fn connect(endpoint: &Endpoint, deadline: Deadline) -> Result<Self, Error> {
        Ok(Self { client: Client::connect(endpoint, deadline).await? })
    }

    /// All sandboxes of the node.
    ///
    /// # Errors
    /// The engine does not tell.
    pub(crate) async fn sandboxes(&mut self, deadline: Deadline) -> Result<Vec<PodSandbox>, Error> {
        let request = ListPodSandboxRequest::default();
        let reply: ListPodSandboxResponse =
            self.client.call("ListPodSandbox", &request, deadline).await?;
        Ok(reply.items.into_iter().filter_map(pod_sandbox).collect())
    }

    /// The containers in a sandbox, those that ended included.
    ///
    /// # Errors
    /// The engine does not tell.
    pub(crate) async fn containers(
        &mut self,
        sandbox: &str,
        deadline: Deadline,
    ) -> Result<Vec<PodContainer>, Error> {
        let filter = ContainerFilter { pod_sandbox_id: sandbox.to_owned(), ..Default::default() };
        let request = ListContainersRequest { filter: Some(filter).into(), ..Default::default() };
        let mut found = self.list_containers(&request, deadline).await?;
        found.retain(|one| one.sandbox == sandbox);
        Ok(found)
    }

    /// The containers of all pods.
    ///
    /// # Errors
    /// The engine does not tell.
    pub(crate) async fn all_containers(
        &mut self,
        deadline: Deadline,
    ) -> Result<Vec<PodContainer>, Error> {
        self.list_containers(&ListContainersRequest::default(), deadline).await
    }

    async fn list_containers(
        &mut self,
        request: &ListContainersRequest,
        deadline: Deadline,
    ) -> Result<Vec<PodContainer>, Error> {
        let reply: ListContainersResponse =
            self.client.call("ListContainers", request, deadline).await?;
        Ok(reply.containers.into_iter().filter_map(pod_container).collect())
    }
}

fn pod_sandbox(sandbox: cri::PodSandbox) -> Option<PodSandbox> {
    let metadata = sandbox.metadata.into_option()?;
    check_id("sandbox", &sandbox.id).ok()?;
    let is_named = is_name(&metadata.namespace) && is_name(&metadata.name);
    is_named.then(|| PodSandbox {
        id: sandbox.id,
        pod: PodName { namespace: metadata.namespace, name: metadata.name },
        uid: metadata.uid,
        attempt: metadata.attempt,
        is_ready: sandbox.state == EnumOrUnknown::new(PodSandboxState::SANDBOX_READY),
        handler: sandbox.runtime_handler,
    })
}

fn pod_container(container: cri::Container) -> Option<PodContainer> {
    let metadata = container.metadata.into_option()?;
    check_id("container", &container.id).ok()?;
    is_name(&metadata.name).then(|| PodContainer {
        id: container.id,
        sandbox: container.pod_sandbox_id,
        name: metadata.name,
        attempt: metadata.attempt,
        state: container.state.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(id: &str, name: &str) -> cri::PodSandbox {
        let metadata = cri::PodSandboxMetadata {
            name: name.to_owned(),
            namespace: "shop".to_owned(),
            ..Default::default()
        };
        let metadata = Some(metadata).into();
        cri::PodSandbox { id: id.to_owned(), metadata, ..Default::default() }
    }

    #[test]
    fn what_does_not_look_like_an_id_or_a_name_is_left_out() {
        let found = pod_sandbox(sandbox("s1", "db-0")).unwrap();
        assert_eq!((found.pod.to_string().as_str(), found.is_ready), ("shop/db-0", true));
        for (id, name) in
            [("../s1", "db-0"), ("", "db-0"), ("s1", ""), ("s1", "a\nb"), ("s1", "a/b")]
        {
            assert_eq!(pod_sandbox(sandbox(id, name)), None, "{id} {name}");
        }
        assert_eq!(pod_sandbox(cri::PodSandbox::default()), None);
        assert_eq!(pod_container(cri::Container::default()), None);
    }

    #[test]
    fn a_state_of_a_later_version_is_unknown() {
        assert_eq!(ContainerState::from(EnumOrUnknown::from_i32(17)), ContainerState::Unknown);
        let mut later = sandbox("s1", "db-0");
        later.state = EnumOrUnknown::from_i32(17);
        assert!(!pod_sandbox(later).unwrap().is_ready);
    }
}
