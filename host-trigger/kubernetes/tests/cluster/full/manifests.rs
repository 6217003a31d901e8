//! The manifests are applied, and deleted again, by kubectl.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use kube::Api;

use crate::cluster::Cluster;

#[tokio::test]
async fn manifests_can_be_applied_twice_and_deleted() {
    let cluster = Cluster::start().await;
    cluster.server.kubectl(&["apply", "--validate=false", "--kustomize=manifests/base"]);
    let deployments = Api::<Deployment>::namespaced(cluster.client.clone(), "block-volume");
    let agents = Api::<DaemonSet>::namespaced(cluster.client.clone(), "block-volume");
    let controller = deployments.get("block-volume-controller").await.unwrap();
    let container = &controller.spec.unwrap().template.spec.unwrap().containers[0];
    assert_eq!(container.image.as_deref(), Some("block-volume-kubernetes:0.1.0"));
    let environment = container.env.iter().flatten();
    let image = environment.filter(|variable| variable.name == "IMAGE");
    let image: Vec<_> = image.map(|variable| &variable.value).collect();
    assert_eq!(image, [&container.image], "attachment pods have another image");
    assert!(agents.get_opt("block-volume-node").await.unwrap().is_some());
    cluster.server.kubectl(&["delete", "--wait=false", "--kustomize=manifests/base"]);
    assert!(agents.get_opt("block-volume-node").await.unwrap().is_none());
}
