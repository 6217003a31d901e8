//! What the API server itself refuses.

use block_volume_kubernetes::resource::BlockVolumeAttachment;
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::{
    cluster::Cluster,
    tenant::{attachment, object},
};

/// The attachment with a mount in place of its device.
fn mounted(mount: Value) -> Value {
    let mut attachment = with("mount", mount);
    attachment["spec"].as_object_mut().unwrap().remove("devicePath");
    attachment
}

/// The attachment with a change of its specification.
fn with(field: &str, value: Value) -> Value {
    let mut attachment = attachment("one", "db-0");
    attachment["spec"][field] = value;
    attachment
}

#[tokio::test]
async fn what_can_never_work_is_refused_by_the_schema() {
    let cluster = Cluster::start().await;
    let create = async |value: Value| {
        let request = kube::core::Request::new(
            "/apis/block-volume.ecr-runtime.dev/v1alpha1/\
                                                namespaces/db/blockvolumeattachments",
        );
        let mut value = value;
        value["apiVersion"] = "block-volume.ecr-runtime.dev/v1alpha1".into();
        value["kind"] = "BlockVolumeAttachment".into();
        let request = request
            .create(
                &PostParams { dry_run: true, ..Default::default() },
                value.to_string().into_bytes(),
            )
            .unwrap();
        cluster.client.request::<Value>(request).await
    };
    let claim = json!({ "claimName": "one" });
    for valid in [
        attachment("one", "db-0"),
        with("source", json!({ "hostPath": { "path": "/dev/vg/scratch" } })),
        with("devicePath", "/dev/.hidden/..x".into()),
        with("limits", json!({ "iops": 1, "bytesPerSecond": "20Mi" })),
        with("limits", json!({ "bytesPerSecond": "1048576" })),
        with("readOnly", true.into()),
        mounted(json!({ "path": "/data" })),
        mounted(json!({
            "path": "/data", "fsType": "ext4", "options": ["noatime", "commit=5"], "fsGroup": 0,
            "fsGroupChangePolicy": "OnRootMismatch" })),
    ] {
        let created = create(valid.clone()).await;
        assert!(created.is_ok(), "{valid:#}: {created:?}");
    }
    for invalid in [
        with("source", json!({})),
        with(
            "source",
            json!({
            "persistentVolumeClaim": claim, "hostPath": { "path": "/dev/vg/scratch" } }),
        ),
        with("source", json!({ "persistentVolumeClaim": { "claimName": "../x" } })),
        with("source", json!({ "hostPath": { "path": "dev/vg/scratch" } })),
        with("source", json!({ "hostPath": { "path": "/dev/vg/../sda" } })),
        with("source", Value::Null),
        with("devicePath", "dev/xvda".into()),
        with("devicePath", "/dev/../xvda".into()),
        with("devicePath", "/dev/./xvda".into()),
        with("devicePath", "/dev//xvda".into()),
        with("devicePath", "/dev/".into()),
        with("devicePath", "/".into()),
        with("devicePath", Value::Null),
        with("mount", json!({ "path": "/data" })),
        mounted(json!({})),
        mounted(json!({ "path": "data" })),
        mounted(json!({ "path": "/data/../etc" })),
        mounted(json!({ "path": "/data", "fsType": "nfs" })),
        mounted(json!({ "path": "/data", "options": ["noatime,commit=5"] })),
        mounted(json!({ "path": "/data", "options": [""] })),
        mounted(json!({ "path": "/data", "fsGroup": -1 })),
        mounted(json!({ "path": "/data", "fsGroupChangePolicy": "Never" })),
        with("podName", "".into()),
        with("podName", "a/b".into()),
        with("containerName", Value::Null),
        with("limits", json!({ "iops": 0 })),
        with("limits", json!({ "bytesPerSecond": "20MiB" })),
        with("limits", json!({ "bytesPerSecond": 1048576 })),
        with("limits", json!({ "bytesPerSecond": "0" })),
    ] {
        match create(invalid.clone()).await {
            Err(kube::Error::Api(status)) => {
                assert_eq!(status.code, 422, "{invalid:#}: {status:?}")
            }
            other => panic!("{invalid:#}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_status_cannot_be_created_with_an_attachment() {
    let cluster = Cluster::start().await;
    let mut hostile = attachment("one", "db-0");
    hostile["status"] = json!({ "nodeName": "node-1", "podUID": "x" });
    let created: BlockVolumeAttachment = cluster.create(hostile).await;
    assert_eq!(created.status, None);
    let mut unknown = attachment("two", "db-0");
    unknown["spec"]["unknown"] = json!({ "path": "/data" });
    let created: Value =
        serde_json::to_value(cluster.create::<BlockVolumeAttachment>(unknown).await).unwrap();
    assert_eq!(created["spec"]["unknown"], Value::Null);
    let _: BlockVolumeAttachment = object(created);
}
