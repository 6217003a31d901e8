//! Many nodes and attachments, with hosts that only take their time: how long the cluster takes.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use block_volume_kubernetes::resource::{BlockVolumeAttachment, ConditionType};
use futures_util::{StreamExt as _, stream};
use kube::api::{ListParams, PostParams};
use serde_json::json;

use crate::{
    cluster::{Cluster, attachment, object},
    fake_host::FakeHost,
    wait::until_within,
};

/// The time of a plug.
const PLUG: Duration = Duration::from_millis(300);
const AT_A_TIME: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_nodes_converge() {
    let per_node: usize = std::env::var("PER_NODE").ok().map_or(5, |count| count.parse().unwrap());
    const NODES: usize = 100;
    let cluster = Cluster::start().await;
    let mut running = Vec::new();
    for number in 0..NODES {
        let node: &'static str = format!("node-{number}").leak();
        cluster.create_node(node).await;
        cluster.run_pod(&format!("db-{number}"), node, "c1").await;
        running.push(cluster.node_agent(node, FakeHost::slow(PLUG)));
    }
    running.push(cluster.controller());
    let began = Instant::now();
    let all = cluster.api::<BlockVolumeAttachment>();
    let names = (0..NODES * per_node).map(|number| {
        let mut one = attachment(&format!("a{number}"), &format!("db-{}", number % NODES));
        one["spec"]["source"] = json!({ "hostPath": { "path": format!("/dev/vg/{number}") } });
        one["spec"]["devicePath"] = format!("/dev/data{number}").into();
        one
    });
    stream::iter(names)
        .for_each_concurrent(AT_A_TIME, |one| {
            let all = &all;
            async move {
                let new: BlockVolumeAttachment = object(one);
                all.create(&PostParams::default(), &new).await.unwrap();
            }
        })
        .await;
    let created = began.elapsed();
    let attached = || async {
        let list = all.list(&ListParams::default()).await.unwrap();
        let attached = list.items.iter().filter(|one| one.is(ConditionType::Attached));
        let names: HashSet<_> = attached.filter_map(|one| one.metadata.name.clone()).collect();
        names.len() == NODES * per_node
    };
    until_within(Duration::from_secs(1800), "all are attached", attached).await;
    let count = NODES * per_node;
    println!(
        "{NODES} nodes, {count} attachments: created in {created:?}, attached after {:?}",
        began.elapsed()
    );
}
