//! Objects of the API for unit tests.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::resource::BlockVolumeAttachment;

pub(crate) fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// An attachment that was just created.
pub(crate) fn attachment() -> BlockVolumeAttachment {
    object(json!({
        "apiVersion": "block-volume.ecr-runtime.dev/v1alpha1",
        "kind": "BlockVolumeAttachment",
        "metadata": { "name": "scratch", "namespace": "db", "uid": "uid-1", "generation": 1 },
        "spec": {
            "podName": "postgres-0",
            "containerName": "postgres",
            "source": { "persistentVolumeClaim": { "claimName": "scratch" } },
            "devicePath": "/dev/xvda",
        },
    }))
}

/// One that is to be mounted.
pub(crate) fn mount() -> BlockVolumeAttachment {
    let mut attachment = attachment();
    attachment.spec.device_path = None;
    attachment.spec.mount = object(json!({
        "path": "/data", "fsType": "ext4", "options": ["noatime"] }));
    attachment
}

/// The pod that it is for, which runs.
pub(crate) fn pod<T: DeserializeOwned>() -> T {
    object(json!({
        "metadata": { "name": "postgres-0", "namespace": "db", "uid": "pod-1" },
        "spec": { "nodeName": "node-1", "containers": [{ "name": "postgres" }] },
        "status": {
            "phase": "Running",
            "containerStatuses": [{
                "name": "postgres", "containerID": "containerd://c1", "ready": true,
                "image": "", "imageID": "", "restartCount": 0,
                "state": { "running": {} },
            }],
        },
    }))
}

/// The claim.
pub(crate) fn claim<T: DeserializeOwned>() -> T {
    object(json!({
        "metadata": { "name": "scratch", "namespace": "db" },
        "spec": { "volumeMode": "Block", "accessModes": ["ReadWriteOnce"] },
        "status": { "phase": "Bound", "capacity": { "storage": "1Gi" } },
    }))
}
