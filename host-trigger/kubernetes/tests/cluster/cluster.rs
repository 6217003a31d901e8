//! A cluster without nodes: an API server with the manifests, the controller and node agents with
//! their own rights, and one namespace for users.

use std::{ops::Deref, sync::Arc};

use block_volume_kubernetes::{
    controller::{self, Settings},
    metrics::Metrics,
    node::{self, Host},
};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::{
    api_server::{ApiServer, User},
    tenant::{Tenant, object},
};

pub(crate) const NAMESPACE: &str = "db";

/// A task that ends with this value.
#[derive(Debug)]
pub(crate) struct Running(JoinHandle<()>);

impl Running {
    /// Starts the task.
    pub(crate) fn new(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(task))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(crate) struct Cluster {
    pub(crate) server: ApiServer,
    pub(crate) tenant: Tenant,
}

impl Deref for Cluster {
    type Target = Tenant;

    fn deref(&self) -> &Tenant {
        &self.tenant
    }
}

impl Cluster {
    /// A cluster with the manifests and a namespace for users.
    pub(crate) async fn start() -> Self {
        // Shown if the test fails.
        let _ = tracing_subscriber::fmt()
            .with_test_writer()
            .with_env_filter("block_volume_kubernetes=debug,kube_runtime=warn")
            .try_init();
        let server = ApiServer::start().await;
        // This API server does not know rules in CEL: it leaves them out, and kubectl lets them be.
        server.kubectl(&["apply", "--validate=false", "--kustomize=manifests/base"]);
        let definition = "customresourcedefinitions/blockvolumeattachments.\
                          block-volume.ecr-runtime.dev";
        server.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", definition]);
        let tenant = Tenant::create_namespace(&server.client(User::Admin), NAMESPACE).await;
        Self { server, tenant }
    }

    /// One with the node `node-1`, on which the pod `db-0` runs with a container `c1`.
    pub(crate) async fn with_pod() -> Self {
        let cluster = Self::start().await;
        cluster.create_node("node-1").await;
        cluster.run_pod("db-0", "node-1", "c1").await;
        cluster
    }

    /// The controller, with its rights.
    pub(crate) fn controller(&self) -> Running {
        let settings = Settings { image: "image".to_owned() };
        let client = self.server.client(User::Controller);
        let run = controller::run(client, settings, Arc::default(), std::future::pending());
        Running::new(run)
    }

    /// The agent of a node, with its rights.
    pub(crate) fn node_agent(&self, node: &'static str, host: impl Host) -> Running {
        Self::node_agent_by(self.server.client(User::Node), node, host)
    }

    /// The agent of a node that uses this client.
    pub(crate) fn node_agent_by(client: Client, node: &'static str, host: impl Host) -> Running {
        let metrics = Arc::<Metrics>::default();
        let run = async move {
            node::run(client, node, host, metrics, std::future::pending()).await;
        };
        Running::new(run)
    }

    pub(crate) async fn create_node(&self, name: &str) {
        let node: Node = object(json!({ "metadata": { "name": name } }));
        Api::all(self.client.clone()).create(&PostParams::default(), &node).await.unwrap();
    }

    pub(crate) async fn delete_node(&self, name: &str) {
        Api::<Node>::all(self.client.clone()).delete(name, &DeleteParams::default()).await.unwrap();
    }
}
