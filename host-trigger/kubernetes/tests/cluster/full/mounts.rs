//! A volume whose file system is mounted in the container, with a real VM.

use std::fs;

use block_volume_kubernetes::{
    node::{CountedVolume, Host as _, Request},
    resource::{BlockVolumeAttachment, ConditionType, FileSystemStatus, NodeStatus, Truth},
};
use kube::ResourceExt as _;
use serde_json::{Value, json};
use vm_harness::FileSystem;

use crate::{cluster::NAMESPACE, kata_node::KataNode, tenant::attachment};

const MIB: u64 = 1 << 20;

/// An attachment of the claim of the same name, mounted at /data.
fn mounted(name: &str, mount: Value) -> Value {
    let mut one = attachment(name, "db-0");
    one["spec"].as_object_mut().unwrap().remove("devicePath");
    one["spec"]["mount"] = mount;
    one
}

fn file_system(attachment: &BlockVolumeAttachment) -> Option<FileSystemStatus> {
    attachment.status.as_ref()?.node.file_system.clone()
}

fn size(attachment: &BlockVolumeAttachment) -> Option<i64> {
    attachment.status.as_ref()?.node.size
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_system_is_mounted_grows_with_its_claim_and_follows_its_container() {
    let mut node = KataNode::new(&[]).await;
    let log = node.sandbox.run_dir().join("audit.log");
    node.host.audit_log = Some(log.clone());
    node.start_agent();
    let volume = FileSystem::Ext4.volume(&[("hello", b"from the host")]);
    node.cluster.claim("one", "16Mi").await;
    let mount = json!({ "path": "/data", "fsType": "ext4", "options": ["noatime"] });
    let made = node.cluster.create::<BlockVolumeAttachment>(mounted("one", mount)).await;
    node.publish(&made, &volume).await;

    let attached =
        node.cluster.until_condition("one", ConditionType::Attached, Truth::True, "Attached").await;
    let before = file_system(&attached).unwrap();
    assert_eq!((before.kind.as_str(), size(&attached)), ("ext4", Some(16 << 20)));
    assert!(before.size > 0 && before.size < 16 << 20, "{before:?}");
    assert_eq!(node.container.exec(&["cat", "/data/hello"]).await, b"from the host");
    node.container.exec(&["sh", "-c", "echo kept >/data/new"]).await;

    // The claim grows, and with it the file system.
    volume.resize(32 * MIB);
    node.cluster.claim_has("one", "32Mi").await;
    let grown = node
        .cluster
        .until("one", "both sizes have grown", |one| {
            size(one) == Some(32 << 20)
                && file_system(one).is_some_and(|now| now.size > before.size * 3 / 2)
        })
        .await;

    // What Prometheus is told of it.
    let status = grown.status.clone().unwrap();
    let counted = CountedVolume {
        name: "one".to_owned(),
        pod: format!("{NAMESPACE}/db-0").parse().unwrap(),
        pod_uid: status.controller.pod_uid.unwrap(),
        id: status.node.volume_id.unwrap(),
        path: "/data".to_owned(),
    };
    let [counted] = &node.host.statistics(vec![counted]).await[..] else { panic!("one pod") };
    let used = counted.as_ref().unwrap()[0].file_system.as_ref().unwrap();
    assert_eq!(i64::try_from(used.capacity_bytes).ok(), file_system(&grown).map(|now| now.size));

    // The container that runs next has it again.
    node.restart_container().await;
    let container = &node.container;
    crate::wait::until("the new container has the file system", || async {
        let kept = container.try_exec(&["cat", "/data/new"], b"").await;
        kept.is_ok_and(|kept| kept.stdout == b"kept\n")
    })
    .await;

    // What was never reported, as by an agent that was killed, is found by its source.
    let mut unreported = node.cluster.attachment("one").await.unwrap();
    unreported.status.as_mut().unwrap().node = NodeStatus::default();
    let request = Request::new(&unreported).unwrap();
    assert_eq!(node.host.detach(request).await, Ok("detached".to_owned()));

    node.cluster.delete("one").await;
    node.cluster.until_gone("one").await;
    volume.check_claimable().unwrap();
    FileSystem::Ext4.check(&volume).unwrap();

    // All of that was recorded, by the name of the attachment.
    let text = fs::read_to_string(log).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let uid = made.uid().unwrap();
    let of = |command: &str, phase: &str| {
        let mut its = lines.iter().filter(|line| {
            line["command"] == command
                && line["phase"] == phase
                && line["attachment"] == "db/one"
                && line["attachment_uid"] == *uid
                && line["pod"] == "db/db-0"
        });
        assert!(its.next().is_some(), "no {phase} of {command} in\n{text}");
    };
    for command in ["hot-plug", "resize", "hot-unplug"] {
        of(command, "begin");
        of(command, "end");
    }
}
