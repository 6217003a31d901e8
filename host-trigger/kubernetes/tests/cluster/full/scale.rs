//! Many nodes and attachments, with hosts that only take their time: what they cost the API server,
//! whether that grows with their number, and how long it takes until all is as wanted.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use block_volume_kubernetes::{
    attachment_pod,
    resource::{BlockVolumeAttachment, ConditionType},
};
use futures_util::{Stream, StreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Resource, ResourceExt as _,
    api::ListParams,
    runtime::{WatchStreamExt as _, watcher},
};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::{
    api_load::{ApiLoad, resident},
    cluster::{Cluster, NAMESPACE, Running},
    fake_host::FakeHost,
    tenant::{Tenant, attachment},
};

const NODES: usize = 100;
/// The attachments are made in this number of steps, each as large as the others.
const STEPS: usize = 5;
/// The time of a plug.
const PLUG: Duration = Duration::from_millis(300);
const AT_A_TIME: usize = 8;
/// The time for one step.
const LIMIT: Duration = Duration::from_secs(1800);

/// A change of an object in the namespace, for ever.
fn changes<K>(tenant: &Tenant) -> impl Stream<Item = K>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + 'static,
{
    let changes = watcher::watcher(tenant.api::<K>(), watcher::Config::default());
    let changes = changes.default_backoff().applied_objects();
    changes.filter_map(async |change| change.ok())
}

/// Has every attachment pod run, as scheduler and kubelets do.
fn run_attachment_pods(tenant: Tenant) -> Running {
    let is_new = |pod: &Pod| {
        let labels = pod.labels();
        let is_it = labels
            .get(attachment_pod::LABEL)
            .is_some_and(|label| label == attachment_pod::LABEL_VALUE);
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        is_it && phase != Some("Running")
    };
    Running::new(async move {
        let pods = changes::<Pod>(&tenant).filter(|pod| std::future::ready(is_new(pod)));
        pods.for_each_concurrent(AT_A_TIME, async |pod| {
            tenant.set_pod_status(&pod.name_any(), json!({ "phase": "Running" })).await;
        })
        .await;
    })
}

/// Creates these attachments, each of a claim of its own, and waits until all are attached.
async fn attach(cluster: &Cluster, numbers: std::ops::Range<usize>) -> Duration {
    let began = Instant::now();
    let mut awaited: HashSet<_> = numbers.clone().map(|number| format!("a{number}")).collect();
    let create = stream::iter(numbers).for_each_concurrent(AT_A_TIME, async |number| {
        let name = format!("a{number}");
        cluster.claim(&name, "1Gi").await;
        let mut one = attachment(&name, &format!("db-{}", number % NODES));
        one["spec"]["devicePath"] = format!("/dev/data{number}").into();
        cluster.create::<BlockVolumeAttachment>(one).await;
    });
    let wait = async {
        let mut all = std::pin::pin!(changes::<BlockVolumeAttachment>(cluster));
        while !awaited.is_empty() {
            let one = all.next().await.unwrap();
            if one.is(ConditionType::Attached) {
                awaited.remove(&one.name_any());
            }
        }
    };
    let both = tokio::time::timeout(LIMIT, async { tokio::join!(create, wait) }).await;
    assert!(both.is_ok(), "not in {LIMIT:?}: {} are not attached", awaited.len());
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cost_of_an_attachment_does_not_grow_with_their_number() {
    let per_node: usize = std::env::var("PER_NODE").ok().map_or(5, |count| count.parse().unwrap());
    assert_eq!(per_node % STEPS, 0, "PER_NODE is a multiple of {STEPS}");
    let mut cluster = Cluster::start().await;
    let admin = cluster.client.clone();
    let mut running = vec![run_attachment_pods(cluster.tenant.clone())];
    for number in 0..NODES {
        let node: &'static str = format!("node-{number}").leak();
        cluster.create_node(node).await;
        cluster.run_pod(&format!("db-{number}"), node, "c1").await;
        running.push(cluster.node_agent(node, FakeHost::slow(PLUG)));
    }
    running.push(cluster.controller());

    println!("requests, events, kB and processor seconds are those of one attachment");
    println!("attachments      s  writes   reads  events      kB  s server     s own");
    let step = NODES * per_node / STEPS;
    let mut requests = Vec::new();
    let mut kinds = Vec::new();
    for number in 0..STEPS {
        let before = ApiLoad::now(&cluster.server, &admin).await;
        let time = attach(&cluster, number * step..(number + 1) * step).await;
        let load = ApiLoad::now(&cluster.server, &admin).await.since(&before);
        let each = |total: f64| total / step as f64;
        let (writes, reads) = load.writes_and_reads();
        println!(
            "{:11} {:6.1} {:7.1} {:7.1} {:7.1} {:7.1} {:9.4} {:9.4}",
            (number + 1) * step,
            time.as_secs_f64(),
            each(writes),
            each(reads),
            each(load.events),
            each(load.event_bytes / 1000.0),
            each(load.server.as_secs_f64()),
            each(load.own.as_secs_f64()),
        );
        requests.push(writes + reads);
        kinds = load.requests.into_iter().map(|(kind, count)| (kind, each(count))).collect();
    }
    println!("requests of one attachment of the last step:");
    for (kind, count) in kinds.iter().filter(|(_, count)| *count >= 0.1) {
        println!("  {count:5.1} {kind}");
    }

    // Nothing happens: what is left is what watches and timers cost.
    const IDLE: Duration = Duration::from_secs(30);
    let before = ApiLoad::now(&cluster.server, &admin).await;
    tokio::time::sleep(IDLE).await;
    let idle = ApiLoad::now(&cluster.server, &admin).await.since(&before);
    let (writes, reads) = idle.writes_and_reads();
    let [etcd, server] = cluster.server.processes();
    println!(
        "idle: {writes} writes and {reads} reads in {IDLE:?}, processor {:?} (server), {:?} (own)",
        idle.server, idle.own
    );
    println!(
        "resident: etcd {} MiB, API server {} MiB, this process {} MiB",
        resident(etcd),
        resident(server),
        resident(std::process::id())
    );

    let all = Api::<BlockVolumeAttachment>::namespaced(admin.clone(), NAMESPACE);
    for (how, parameters) in
        [("from etcd", ListParams::default()), ("from memory", ListParams::default().match_any())]
    {
        let began = Instant::now();
        let list = all.list(&parameters).await.unwrap();
        let (count, time) = (list.items.len(), began.elapsed());
        let bytes = serde_json::to_vec(&list.items).unwrap().len();
        println!("a list of {count} {how}: {time:?}, some {} kB", bytes / 1000);
    }

    cluster.server.stop();
    let stopped = Instant::now();
    cluster.server.go_on().await;
    let restarted = stopped.elapsed();
    let before = ApiLoad::now(&cluster.server, &admin).await;
    let count = NODES * per_node;
    let time = attach(&cluster, count..count + NODES).await;
    let load = ApiLoad::now(&cluster.server, &admin).await.since(&before);
    let (writes, reads) = load.writes_and_reads();
    println!(
        "the API server was away for {restarted:?}; {time:?} later one new attachment on each node \
         was attached: {writes} writes, {reads} reads, processor {:?} (server), {:?} (own)",
        load.server, load.own
    );

    let (first, last) = (requests[0], requests[STEPS - 1]);
    assert!(last < 1.3 * first, "the last step took {last} requests, and the first one {first}");
}
