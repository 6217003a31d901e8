//! The reference agent behaves as kata-agent does in everything that the plugin depends on.

use guest_observer::{Reply, Request};
use rstest::rstest;
use vm_harness::{Cgroup, ContainerOptions, DeviceFilter, Machine, Sandbox, Volume};

use super::{MIB, boot, sandbox};

#[rstest]
#[tokio::test]
async fn streams_and_exit_status_of_a_process_are_complete(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let input = vm_harness::random_bytes(1 << 20);
    let output =
        container.try_exec(&["sh", "-c", "cat; echo problem >&2; exit 7"], &input).await.unwrap();
    assert!(output.stdout == input, "{} of {} bytes", output.stdout.len(), input.len());
    assert_eq!((output.error_text().as_str(), output.status), ("problem\n", 7));
    let killed = container.try_exec(&["sh", "-c", "kill -9 $$"], b"").await.unwrap();
    assert_eq!(killed.status, 128 + 9);
}

/// As with kata-agent: who waits for a process before its output was read loses the output, and the
/// agent forgets a process with the reply.
#[rstest]
#[tokio::test]
async fn large_output_is_complete_and_a_process_is_waited_for_once(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let bytes = vm_harness::random_bytes(1 << 20);
    container.exec_with_input(&["sh", "-c", "cat >/dev/bytes"], &bytes).await;
    for _ in 0..5 {
        let output = container.exec(&["dd", "if=/dev/bytes", "bs=64k"]).await;
        assert!(output == bytes, "{} of {} bytes, or others", output.len(), bytes.len());
    }
    container.kill().await.unwrap();
    let error = container.wait().await.unwrap_err().chain();
    assert!(error.contains("NOT_FOUND"), "{error}");
}

#[rstest]
#[tokio::test]
async fn one_reaper_leaves_no_zombie_and_steals_no_exit_status(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    for _ in 0..3 {
        // The orphan is reparented to the container's first process, or to the agent.
        container.exec(&["sh", "-c", "(sleep 0.1 &) ; exit 0"]).await;
        // These processes become children of the agent for certain. They end at the same time, with
        // one SIGCHLD for several of them.
        let orphans = "for i in 1 2 3 4 5 6 7 8; do (sleep 0.1 &) ; done >/dev/null 2>&1";
        sandbox.observer().shell(orphans).await;
    }
    let statuses = tokio::join!(
        container.try_exec(&["sh", "-c", "exit 1"], b""),
        container.try_exec(&["sh", "-c", "exit 2"], b""),
        container.try_exec(&["sh", "-c", "exit 3"], b""),
    );
    assert_eq!(statuses.0.unwrap().status, 1);
    assert_eq!(statuses.1.unwrap().status, 2);
    assert_eq!(statuses.2.unwrap().status, 3);
    container.kill().await.unwrap();
    sandbox.observer().shell("sleep 0.3").await;
    let zombies = sandbox
        .observer()
        .shell("cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z 1 ' || true")
        .await;
    assert_eq!(zombies.trim(), "0", "no child of the agent is left unreaped");
}

#[rstest]
#[tokio::test]
async fn container_life_cycle_is_that_of_kata(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let first = container.exec(&["sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '"]).await;
    assert_eq!(
        String::from_utf8(first).unwrap().trim(),
        "/bin/sleep 1000000",
        "the agent must add a PID namespace"
    );
    container.signal(libc::SIGKILL).await.unwrap();
    assert_eq!(container.wait().await.unwrap(), 128 + 9);
    container.remove().await.unwrap();
    assert!(container.try_exec(&["true"], b"").await.is_err());
    let details = sandbox.agent().details().await.unwrap();
    let features = &details.agent_details.extra_features;
    assert!(features.iter().any(|feature| feature == "block-volume"), "{features:?}");
}

#[rstest]
#[tokio::test]
async fn mount_namespace_of_a_container_is_pinned(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let inside = container.exec(&["readlink", "/proc/self/ns/mnt"]).await;
    let inside = String::from_utf8(inside).unwrap();
    let Reply::AgentState(agent) = sandbox.observer().ask(&Request::AgentState).await.unwrap()
    else {
        panic!()
    };
    assert!(
        agent.fds.iter().any(|target| target == inside.trim()),
        "{} in {:?}",
        inside.trim(),
        agent.fds
    );
}

#[rstest]
#[tokio::test]
async fn pod_denies_all_devices_except_the_default_ones_on_cgroup_v1() {
    let sandbox = boot(&Machine { cgroup: Cgroup::V1, ..Machine::default() }).await;
    let container = sandbox.start_container().await;
    let rules = sandbox.observer().shell("cat /sys/fs/cgroup/devices/pod/devices.list").await;
    assert!(!rules.contains("a *:*"), "{rules}");
    assert!(rules.contains("c 1:3 rwm") && rules.contains("b *:* m"), "{rules}");
    // Any block device number will do: the pod has no right to a disk that is not plugged.
    container.exec(&["mknod", "/dev/disk", "b", "8", "0"]).await;
    let error = container.exec_fails(&["dd", "if=/dev/disk", "of=/dev/null", "count=1"]).await;
    assert!(error.contains("Operation not permitted"), "{error}");
}

#[rstest]
#[case::rules(DeviceFilter::Bpf, 1)]
#[case::no_rules(DeviceFilter::None, 0)]
#[tokio::test]
async fn device_rules_make_a_program_on_cgroup_v2(
    #[future(awt)] sandbox: Sandbox,
    #[case] device_filter: DeviceFilter,
    #[case] programs: usize,
) {
    let container = sandbox
        .start_container_with(&ContainerOptions { device_filter, ..Default::default() })
        .await;
    let attached = sandbox.observer().programs(&format!("/pod/{}", container.id())).await.unwrap();
    assert_eq!(attached.len(), programs);
}

#[rstest]
#[tokio::test]
async fn idle_agent_sleeps(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let switches = async || match sandbox.observer().ask(&Request::AgentState).await.unwrap() {
        Reply::AgentState(agent) => agent.voluntary_switches,
        other => panic!("{other:?}"),
    };
    // What the calls before left behind (threads of a pool) ends within seconds. After that the
    // agent must not wake up.
    tokio::time::sleep(sandbox.guest().scaled(std::time::Duration::from_secs(3))).await;
    let before = switches().await;
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert_eq!(switches().await - before, 0, "wake-ups in five idle seconds");
}
