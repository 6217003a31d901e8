//! Standstill: a VM that is paused (QMP `stop`) does not answer, so a plug ends in time and leaves
//! nothing; a frozen container gets its volume, because the agent does the work; one that the agent
//! has paused loses its volume and gets none.

use rstest::rstest;
use serde_json::json;
use vm_harness::{Sandbox, Snapshot, Volume};

use super::{
    MIB,
    host_failures::claim_is_free,
    hot_unplug::{at, unplug, unplug_command},
    sandbox,
};

#[rstest]
#[tokio::test]
async fn plug_into_a_paused_vm_ends_in_time_and_leaves_nothing(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    // QEMU serves one client at a time.
    let execute = async |command: &str| {
        sandbox.monitor().await.unwrap().execute(command, json!({})).await.unwrap();
    };
    execute("stop").await;
    let plug = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]);
    let finished = plug.args(["--timeout", "5s"]).run().await;
    let (reason, message) = finished.failed_with(7);
    assert_eq!(reason, "timed_out", "{message}");
    assert!(claim_is_free(&volume));
    execute("cont").await;
    before.assert_unchanged(&sandbox, &[&container]).await;
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
}

#[rstest]
#[tokio::test]
async fn frozen_container_gets_and_loses_a_volume(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let freeze = format!("/sys/fs/cgroup/pod/{}/cgroup.freeze", container.id());
    let set = async |state: &str| sandbox.observer().write(&freeze, state).await.unwrap();
    let volume = Volume::image(MIB);
    set("1").await;
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    set("0").await;
    assert_eq!(container.read("/dev/xvda", 0..MIB).await, volume.bytes(0..MIB));
    set("1").await;
    unplug(&sandbox, &at(&container, "/dev/xvda")).await;
    set("0").await;
    before.assert_unchanged(&sandbox, &[&container]).await;
}

/// Paused by the agent, which then hands out no running container.
#[rstest]
#[case::with_force(&["--force"])]
#[case::without_force(&[])]
#[tokio::test]
async fn paused_container_loses_a_volume_and_gets_none(
    #[future(awt)] sandbox: Sandbox,
    #[case] force: &[&str],
) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let (volume, other) = (Volume::image(MIB), Volume::image(MIB));
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    container.pause().await.unwrap();
    let refused = sandbox.hot_plug_command(&container, &[(&other, "/dev/xvdb")]).run().await;
    let (reason, message) = refused.failed_with(3);
    assert_eq!(reason, "container_not_running");
    assert!(message.contains("the container is paused"), "{message}");
    let unplug = unplug_command(&sandbox, &container, "/dev/xvda").args(force);
    let finished = unplug.run().await;
    assert_eq!(finished.status, 0, "{}", finished.stdout);
    assert_eq!(finished.json()["result"], "detached");
    assert!(claim_is_free(&volume));
    container.resume().await.unwrap();
    before.assert_unchanged(&sandbox, &[&container]).await;
}
