//! Attachment pods that are refused, or that fail as soon as they are there.

use block_volume_kubernetes::{
    attachment_pod,
    resource::{ConditionType, Truth},
};
use k8s_openapi::{
    api::core::v1::{LimitRange, Pod},
    jiff::Timestamp,
};
use kube::{
    ResourceExt as _,
    api::{DeleteParams, PostParams},
};
use serde_json::json;

use crate::{
    api_load::ApiLoad, cluster::Cluster, fake_host::FakeHost, tenant::object, wait::until,
};

use ConditionType::{Attached, SourceReady};

#[tokio::test]
async fn why_an_attachment_pod_is_refused_is_said_and_nothing_is_written_again() {
    let cluster = Cluster::with_pod().await;
    cluster.claim("one", "1Gi").await;
    let limits = json!({ "limits": [{ "type": "Container", "min": { "memory": "1Gi" } }] });
    let range = json!({ "metadata": { "name": "large" }, "spec": limits });
    cluster.create::<LimitRange>(range).await;
    let small: Pod = object(json!({
        "metadata": { "name": "small" },
        "spec": { "containers": [{ "name": "app", "image": "image",
            "resources": { "limits": { "memory": "1Mi" } } }] },
    }));
    let trial = PostParams { dry_run: true, ..PostParams::default() };
    let pods = cluster.api::<Pod>();
    until("the limit is known", || async { pods.create(&trial, &small).await.is_err() }).await;

    let _running = (cluster.controller(), cluster.node_agent("node-1", FakeHost::default()));
    cluster.attach("one", "db-0").await;
    let refused = ("AttachmentPodRefused", Truth::False);
    let said = cluster.until_condition("one", SourceReady, refused.1, refused.0).await;
    let message = &said.condition(SourceReady).unwrap().message;
    assert!(message.contains("minimum memory usage per Container is 1Gi"), "{message}");
    let tries = pod_creations(&cluster).await;
    // What the first of two more tries would write is there when the second one comes.
    until("it is tried again", || async { pod_creations(&cluster).await >= tries + 2.0 }).await;
    let now = cluster.attachment("one").await.unwrap();
    assert_eq!(now.resource_version(), said.resource_version(), "{:#?}", now.status);

    cluster.api::<LimitRange>().delete("large", &DeleteParams::default()).await.unwrap();
    cluster.run_attachment_pod(&now).await;
    cluster.until_condition("one", Attached, Truth::True, "Attached").await;
}

#[tokio::test]
async fn an_attachment_pod_that_fails_again_and_again_is_made_with_longer_pauses() {
    let cluster = Cluster::with_pod().await;
    cluster.claim("one", "1Gi").await;
    let _controller = cluster.controller();
    let one = cluster.attach("one", "db-0").await;
    let mut made: Vec<Timestamp> = Vec::new();
    let mut former = None;
    for _ in 0..3 {
        let pod = next_pod(&cluster, &attachment_pod::name(&one), former.as_deref()).await;
        made.push(pod.metadata.creation_timestamp.clone().unwrap().0);
        former = pod.uid();
        let failed = json!({ "phase": "Failed", "reason": "OutOfmemory", "message": "no room" });
        cluster.set_pod_status(&pod.name_any(), failed).await;
    }
    // The API server stores whole seconds.
    let pauses: Vec<_> = made.windows(2).map(|two| (two[1] - two[0]).get_seconds()).collect();
    assert!(pauses[0] >= 4 && pauses[1] >= 9, "{made:?}");
}

/// Waits for a pod of this name that is not the former one.
async fn next_pod(cluster: &Cluster, name: &str, former: Option<&str>) -> Pod {
    let pods = cluster.api::<Pod>();
    let next = async || {
        let pod = pods.get_opt(name).await.unwrap();
        pod.filter(|pod| pod.metadata.uid.as_deref() != former)
    };
    until(&format!("{name} is made"), || async { next().await.is_some() }).await;
    next().await.unwrap()
}

/// How often a pod was asked for.
async fn pod_creations(cluster: &Cluster) -> f64 {
    let load = ApiLoad::now(&cluster.server, &cluster.client).await;
    load.requests.get("POST pods").copied().unwrap_or_default()
}
