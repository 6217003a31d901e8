//! The node agent is killed (SIGKILL) at each step of a plug and of an unplug. The one that is
//! started next has only the cluster and QEMU to go on from.

use std::time::{Duration, Instant};

use block_volume_kubernetes::resource::{BlockVolumeAttachment, ConditionType, Truth};
use vm_harness::{Snapshot, Volume};

use crate::{
    agent_process::AgentProcess,
    cluster::NAMESPACE,
    kata_node::{KataNode, host_path},
};

use ConditionType::Attached;

const MIB: u64 = 1 << 20;
/// The fault points of `ecr-runtime`: those that `just crash` goes through, too.
const PLUG: [&str; 11] = [
    "after-preflight",
    "after-start",
    "after-add-fd",
    "after-blockdev-add",
    "after-ready",
    "after-device-add",
    "after-go",
    "after-prepared",
    "after-record",
    "after-attach",
    // The volume is attached, and no status says so.
    "after-commit",
];
const UNPLUG: [&str; 7] = [
    "before-detach",
    "after-released",
    "remove-before-device-deleted",
    "remove-after-device-del",
    "after-detach",
    "remove-after-blockdev-del",
    // Nothing is left, and no status says so.
    "after-remove",
];

/// A node with a volume, and its state without it.
struct World {
    node: KataNode,
    volume: Volume,
    before: Snapshot,
}

impl World {
    async fn new() -> Self {
        // Of a block device the host can tell whether it is claimed.
        let volume = Volume::loop_device(MIB);
        let node = KataNode::without_agent(&[&format!("{NAMESPACE}=/dev")]).await;
        let before = Snapshot::of(&node.sandbox, &[&node.container]).await;
        Self { node, volume, before }
    }

    fn agent(&self, faults: &str) -> AgentProcess {
        AgentProcess::start(&self.node, faults)
    }

    async fn create(&self, name: &str) {
        let new = host_path(name, self.volume.name());
        self.node.cluster.create::<BlockVolumeAttachment>(new).await;
    }

    /// Waits until the volume is attached, and checks that it is so once.
    async fn until_attached(&self, name: &str) {
        self.node.cluster.until_condition(name, Attached, Truth::True, "Attached").await;
        let listed = self.node.listed().await;
        assert!(listed.len() == 1 && listed[0]["state"] == "attached", "{listed:#?}");
        let read = self.node.container.read(&format!("/dev/{name}"), 0..4096).await;
        assert_eq!(read, self.volume.bytes(0..4096));
        self.volume.check_claimable().unwrap_err();
    }

    /// Waits until the attachment is gone, and checks that nothing is left of its volume.
    async fn until_gone(&self, name: &str) {
        self.node.cluster.until_gone(name).await;
        self.before.assert_unchanged(&self.node.sandbox, &[&self.node.container]).await;
        self.volume.check_claimable().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_killed_at_any_step_is_followed_by_one_that_completes_it() {
    let world = World::new().await;
    let mut times = Vec::new();
    for (number, point) in PLUG.into_iter().enumerate() {
        let name = format!("plug-{number}");
        let agent = world.agent(&format!("{point}=kill"));
        world.create(&name).await;
        agent.until_killed(point).await;
        let began = Instant::now();
        let next = world.agent("");
        world.until_attached(&name).await;
        times.push((point, began.elapsed()));
        world.node.cluster.delete(&name).await;
        world.until_gone(&name).await;
        next.kill().await;
    }
    for (number, point) in UNPLUG.into_iter().enumerate() {
        let name = format!("unplug-{number}");
        let agent = world.agent(&format!("{point}=kill"));
        world.create(&name).await;
        world.until_attached(&name).await;
        world.node.cluster.delete(&name).await;
        agent.until_killed(point).await;
        let began = Instant::now();
        let next = world.agent("");
        world.until_gone(&name).await;
        times.push((point, began.elapsed()));
        next.kill().await;
    }
    for (point, time) in times {
        println!("{point:30} {:>6.1} s until it is as wanted", time.as_secs_f64());
    }
}

/// The time without an API server.
const OUTAGE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minute_without_an_api_server_delays_what_is_said_and_nothing_else() {
    let mut world = World::new().await;
    let _agent = world.agent("after-device-add=delay:5000,remove-after-device-del=delay:5000");
    world.create("one").await;
    world.until_listed(1).await;
    let stopped = world.stop_server();
    world.node.until_device("/dev/one", true).await;
    world.go_on(stopped).await;
    world.until_attached("one").await;

    world.node.cluster.delete("one").await;
    world.node.until_device("/dev/one", false).await;
    let stopped = world.stop_server();
    world.until_listed(0).await;
    world.go_on(stopped).await;
    world.until_gone("one").await;
}

impl World {
    /// Waits until `ecr-runtime` lists this number of volumes, whatever their state is.
    async fn until_listed(&self, count: usize) {
        let node = &self.node;
        let is_so = || async { node.listed().await.len() == count };
        crate::wait::until(&format!("{count} volumes are listed"), is_so).await;
    }

    fn stop_server(&mut self) -> Instant {
        self.node.cluster.server.stop();
        Instant::now()
    }

    /// Starts the API server when its time without is over.
    async fn go_on(&mut self, stopped: Instant) {
        tokio::time::sleep(OUTAGE.saturating_sub(stopped.elapsed())).await;
        self.node.cluster.server.go_on().await;
    }
}
