//! The search for the holders of a volume, and processes that hide from it, or make it long, by
//! names, threads and descriptors that need no privilege.

use std::time::{Duration, Instant};

use rstest::rstest;
use vm_harness::{Container, ContainerOptions, Sandbox, Snapshot, Volume, mount};

use super::{
    MIB, guarded,
    holders::assert_named_and_waited_for,
    hot_unplug::{at, query_volumes, unplug, verb},
    sandbox,
};

/// Starts a container that has the program for the attacks (`observer hide`, `observer flood`).
async fn attacker(sandbox: &Sandbox) -> Container {
    let program = mount("/dev/observer", "bind", "/usr/bin/observer", &["bind", "ro"]);
    let options = ContainerOptions { mounts: vec![program], ..ContainerOptions::default() };
    sandbox.start_container_with(&options).await
}

#[rstest]
#[case::beside_its_process("")]
#[case::whose_first_thread_has_ended("alone")]
#[tokio::test]
async fn a_thread_with_descriptors_of_its_own_is_named_and_waited_for(
    #[future(awt)] sandbox: Sandbox,
    #[case] alone: &str,
) {
    let container = attacker(&sandbox).await;
    let volume = Volume::loop_device(MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let hide = format!(
        "/dev/observer hide /dev/xvda {alone} </dev/null >/dev/hidden 2>&1 &
         until test -s /dev/hidden; do usleep 10000; done; cat /dev/hidden"
    );
    let said = container.exec(&["sh", "-c", &hide]).await;
    assert_eq!(String::from_utf8_lossy(&said), "ready\n");
    let holder = assert_named_and_waited_for(&sandbox, &plugged, "process", "kill -9 PID").await;
    assert_eq!(holder["container"], container.id());
    assert_eq!((&holder["command"], &holder["detail"]), (&"observer".into(), &"/dev/xvda".into()));
}

/// Gives the process and one of the container's mounts names that are no UTF-8.
const NO_TEXT: &str = r"printf '\377) S\n\033[2J(' >/proc/self/comm
    mv /dev/parent $(printf '/dev/\377\033')
    touch /dev/renamed; while :; do sleep 1000; done";

#[rstest]
#[tokio::test]
async fn names_that_are_no_text_keep_no_volume(#[future(awt)] sandbox: Sandbox) {
    let options = ContainerOptions {
        command: ["/bin/sh", "-c", NO_TEXT].map(str::to_owned).to_vec(),
        mounts: vec![mount("/dev/parent/point", "tmpfs", "tmpfs", &[])],
        ..guarded()
    };
    let container = sandbox.start_container_with(&options).await;
    let renamed =
        container.exec(&["sh", "-c", "until test -e /dev/renamed; do usleep 10000; done"]);
    sandbox.guest().wait_for("the new name", Duration::from_secs(10), renamed).await.unwrap();
    // The kernel shows both names as they are.
    let shown = r#"for file in mountinfo comm; do grep -q "$(printf '\377')" /proc/1/$file; done"#;
    container.exec(&["sh", "-ec", shown]).await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let volume = Volume::loop_device(MIB);
    for force in [false, true] {
        let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
        let state = query_volumes(&sandbox, "inspect", &["--volume", plugged.id()]).await;
        assert_eq!(state[0]["state"], "attached");
        let repaired = verb(sandbox.ecr_runtime(), &sandbox, "repair", &[]).run().await;
        assert_eq!(repaired.status, 0, "{}{}", repaired.stdout, repaired.stderr);
        // A holder by a node with such a name, under such a name.
        let hold = r#"ln /dev/xvda "$(printf '/dev/\376')"
            (printf '\374)\n' >/proc/self/comm; exec 5<"$(printf '/dev/\376')"; touch /dev/open
             read line <>/dev/pts/ptmx) </dev/null >/dev/null 2>&1 &
            until test -e /dev/open; do usleep 10000; done"#;
        container.exec(&["sh", "-c", hold]).await;
        let unplug_command = |force: &[&str]| {
            let which = ["--volume", plugged.id()];
            verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &[&which[..], force].concat())
        };
        let refused = unplug_command(&[]).run().await;
        let (reason, message) = refused.failed_with(5);
        assert_eq!(reason, "busy", "{message}");
        let holder = &refused.json()["error"]["holders"][0];
        assert_eq!(
            (&holder["command"], &holder["detail"]),
            (&r"\xfc)\n".into(), &r"/dev/\xfe".into())
        );
        assert!(!message.chars().any(char::is_control), "{message:?}");
        if force {
            unplug_command(&["--force"]).run().await.succeeded(sandbox.guest());
        }
        let pid = &holder["pid"];
        let kill = format!("kill -9 {pid}; while test -e /proc/{pid}; do usleep 10000; done");
        sandbox.observer().shell(&kill).await;
        if !force {
            unplug(&sandbox, &at(&container, "/dev/xvda")).await;
        }
        container.exec(&["sh", "-c", "rm -f /dev/open \"$(printf '/dev/\\376')\""]).await;
        before.assert_unchanged(&sandbox, &[&container]).await;
    }
}

/// Starts processes of an unprivileged user in `container`, each with 4,092 descriptors.
pub(crate) async fn flood(sandbox: &Sandbox, container: &Container, processes: usize) {
    let processes = processes.to_string();
    let words = ["/dev/observer", "flood", &processes, "4092", "1000"];
    let flooded = container.exec(&words);
    sandbox.guest().wait_for("the flood", Duration::from_secs(120), flooded).await.unwrap();
}

/// Unplugs by force a volume that a process of `victim` holds, while processes of another container
/// have very many descriptors. Returns how long that took.
pub(crate) async fn unplug_in_a_flood(
    sandbox: &Sandbox,
    processes: usize,
    timeout: Duration,
) -> Duration {
    let (noisy, victim) = (attacker(sandbox).await, sandbox.start_container().await);
    let volume = Volume::loop_device(MIB);
    let plugged = sandbox.hot_plug(&victim, &volume, "/dev/xvda").await;
    let hold = "exec 3</dev/xvda; tail -f /dev/null </dev/null >/dev/null 2>&1 &";
    victim.exec(&["sh", "-c", hold]).await;
    flood(sandbox, &noisy, processes).await;
    let timeout = format!("{}ms", sandbox.guest().scaled(timeout).as_millis());
    let arguments = ["--volume", plugged.id(), "--timeout", &timeout];

    // Without force the holder is found before the time is over: it has few descriptors.
    let before = Snapshot::of(sandbox, &[&victim]).await;
    let began = Instant::now();
    let refused = verb(sandbox.ecr_runtime(), sandbox, "hot-unplug", &arguments).run().await;
    println!("{processes} × 4092 descriptors: refused after {:?}", began.elapsed());
    let (reason, message) = refused.failed_with(5);
    assert_eq!(reason, "busy", "{message}");
    let holder = &refused.json()["error"]["holders"][0];
    assert_eq!((&holder["command"], &holder["container"]), (&"tail".into(), &victim.id().into()));
    before.assert_unchanged(sandbox, &[&victim]).await;

    let inspected = query_volumes(sandbox, "inspect", &["--volume", plugged.id()]).await;
    assert_eq!(inspected[0]["guest"]["holders"][0]["command"], "tail", "{inspected:?}");

    let began = Instant::now();
    let forced = [&arguments[..], &["--force"]].concat();
    let forced = verb(sandbox.ecr_runtime(), sandbox, "hot-unplug", &forced).run().await;
    assert_eq!(forced.succeeded(sandbox.guest())[0].result, "detached");
    began.elapsed()
}

#[rstest]
#[tokio::test]
async fn a_flood_of_descriptors_of_another_container_delays_no_forced_unplug(
    #[future(awt)] sandbox: Sandbox,
) {
    let took = unplug_in_a_flood(&sandbox, 60, Duration::from_secs(3)).await;
    println!("forced after {took:?}");
}
