//! Hostile containers. Whatever they do to the device path during a hot-plug, nothing outside of
//! their root directory is created, changed, removed or opened, no thread of the agent stays in
//! their namespaces, and names that they choose are escaped before they reach a terminal.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    time::{Duration, Instant},
};

use rstest::rstest;
use vm_harness::{
    Container, ContainerOptions, DeviceFilter, Finished, Machine, Sandbox, Snapshot, Volume,
};

use super::{
    MIB, boot, guarded,
    hot_unplug::{at, query_volumes, unplug},
    sandbox, sandbox_with_faults, set_guest_faults,
    swapped_parent::GuestFiles,
    wait_for_console,
};

#[rstest]
#[tokio::test]
async fn symbolic_links_as_parents_stay_in_the_container_or_are_refused(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let script = "cd /dev; mkdir real; ln -s /dev/real inside; ln -s ../../../../dev/real upwards; ln -s /proc/1/root/dev root
        ln -s /proc/self/fd/0 magic; ln -s loop loop; ln -s /nowhere dangling; echo x > file
        ln -s /ctr outside";
    container.exec(&["sh", "-ec", script]).await;
    // In the container the link is dangling, but the guest has such a directory.
    sandbox.observer().shell("test -d /ctr").await;
    container.exec_fails(&["ls", "/ctr"]).await;
    let files = GuestFiles::of(&sandbox).await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let volume = Volume::image(MIB);
    for (parent, status, reason) in [
        ("root", 10, "unsupported"),
        ("magic", 3, "parent_missing"),
        ("loop", 10, "unsupported"),
        ("dangling", 3, "parent_missing"),
        ("dangling/new", 3, "parent_missing"),
        ("outside", 3, "parent_missing"),
        ("outside/new", 3, "parent_missing"),
        ("file", 3, "parent_missing"),
        ("file/new", 3, "parent_missing"),
    ] {
        let path = format!("/dev/{parent}/xvda");
        let finished =
            sandbox.hot_plug_command(&container, &[(&volume, path.as_str())]).run().await;
        let (reported, message) = finished.failed_with(status);
        assert_eq!(reported, reason, "{parent}: {message}");
        before.assert_unchanged(&sandbox, &[&container]).await;
    }
    for parent in ["inside", "upwards"] {
        let path = format!("/dev/{parent}/new/xvda");
        sandbox.hot_plug(&container, &volume, &path).await;
        assert_eq!(container.read("/dev/real/new/xvda", 0..4096).await, volume.bytes(0..4096));
        // `inspect` resolves the path in the same way.
        assert_eq!(
            query_volumes(&sandbox, "inspect", &at(&container, &path)).await[0]["state"],
            "attached",
            "{path}"
        );
        unplug(&sandbox, &at(&container, &path)).await;
        before.assert_unchanged(&sandbox, &[&container]).await;
    }
    files.assert_unchanged(&sandbox).await;
}

#[rstest]
#[tokio::test]
async fn names_from_a_container_are_escaped_before_they_reach_a_terminal(
    #[future(awt)] sandbox: Sandbox,
) {
    // A link is made to the node, which is possible in the container's own file system alone.
    let container = sandbox.start_container_with(&guarded()).await;
    let volume = Volume::image(MIB);
    let path = "/dev/a\nb\u{1b}[2J\u{202e}/x\u{7}";
    let plugged = sandbox.hot_plug(&container, &volume, path).await;
    assert_eq!(container.read(path, 0..4096).await, volume.bytes(0..4096));
    // A process with a name that needs escapes holds the volume by a path that needs escapes.
    let script =
        "ln \"$1\" \"$(printf '/dev/\\377\\033]0;t\\007')\"; exec 5<\"$(printf '/dev/\\377\\033]0;t\\007')\"
        printf 'e\\033[31m' > /proc/self/comm; touch /dev/open; while :; do sleep 1; done";
    let holder = container.clone();
    let holder =
        tokio::spawn(async move { holder.try_exec(&["sh", "-ec", script, "sh", path], b"").await });
    let open = container.exec(&["sh", "-c", "until test -e /dev/open; do sleep 0.05; done"]);
    sandbox.guest().wait_for("the holder", Duration::from_secs(10), open).await.unwrap();
    let which = ["--sandbox", sandbox.id(), "--container", container.id(), "--device-path", path];
    let mut shown = Vec::new();
    for verb in ["list", "inspect", "hot-unplug", "repair", "stats"] {
        let which = if matches!(verb, "inspect" | "hot-unplug") { &which[..] } else { &which[..2] };
        for output in ["human", "json"] {
            let arguments = ["block-volume", verb, "--output", output];
            let finished = sandbox.ecr_runtime().args(arguments).args(which).run().await;
            shown.push(format!("{verb} {output}\n{}{}", finished.stdout, finished.stderr));
        }
    }
    let raw = |text: &String| {
        // JSON is for programs: control characters are escaped there too, characters that only
        // change the appearance are not.
        let bidi = |c: char| c == '\u{202e}' && !text.contains(" json\n");
        text.chars().any(|c| (c.is_control() && c != '\n') || bidi(c))
    };
    let unescaped = shown.iter().filter(|text| raw(text)).collect::<Vec<_>>();
    assert!(unescaped.is_empty(), "these outputs have unescaped characters: {unescaped:#?}");
    assert!(
        shown.iter().any(|text| text.contains("\\u{1b}[31m")),
        "the holder's name is reported: {shown:?}"
    );
    assert!(plugged.volume.to_string().contains("\\u001b"), "JSON uses its own escapes");
    holder.abort();
}

#[rstest]
#[tokio::test]
async fn paths_beyond_the_limits_are_usage_errors(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let long = format!("/dev/{}", "a".repeat(256));
    let deep = "/a".repeat(2049);
    let paths = [
        b"/dev/\xff\xfe".as_slice(),
        long.as_bytes(),
        deep.as_bytes(),
        b"/dev/.ecrblk-0123456789abcdef",
    ];
    for path in paths {
        let arguments = [
            "block-volume",
            "hot-plug",
            "--output",
            "json",
            "--sandbox",
            sandbox.id(),
            "--container",
        ];
        let command = sandbox.ecr_runtime().args(arguments).args([
            container.id(),
            "--block-volume",
            volume.name(),
        ]);
        let finished =
            command.args([OsStr::new("--device-path"), OsStr::from_bytes(path)]).run().await;
        assert_eq!(finished.status, 2, "{}{}", finished.stdout, finished.stderr);
        before.assert_unchanged(&sandbox, &[&container]).await;
    }
    // A long path works: 3,225 of at most 4,096 bytes, in directories that the hot-plug creates.
    let path = format!("/dev{}/xvda", format!("/{}", "d".repeat(200)).repeat(16));
    sandbox.hot_plug(&container, &volume, &path).await;
    assert_eq!(container.read(&path, 0..4096).await, volume.bytes(0..4096));
    unplug(&sandbox, &at(&container, &path)).await;
    before.assert_unchanged(&sandbox, &[&container]).await;
}

#[rstest]
#[tokio::test]
async fn reused_pid_of_the_first_process_is_not_taken_for_the_container(
    #[future(awt)] sandbox_with_faults: Sandbox,
) {
    let sandbox = sandbox_with_faults;
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let first = async |container: &Container| {
        let pid = sandbox.observer().shell(&format!("cat /run/agent/{}/pid", container.id())).await;
        pid.trim().parse::<u32>().unwrap()
    };
    let pid = first(&container).await;
    set_guest_faults(&sandbox, "attach-after-uevent-socket=wait\n").await;
    let command = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]).start();
    wait_for_console(&sandbox, "fault point attach-after-uevent-socket").await;
    container.kill().await.unwrap();
    container.remove().await.unwrap();
    // A later container gets the PID. It is not known how many processes crun creates before the
    // container's first one.
    let deadline = Instant::now() + sandbox.guest().scaled(Duration::from_secs(60));
    let mut back = 2;
    let successor = loop {
        assert!(Instant::now() < deadline, "no container got the PID {pid}");
        sandbox
            .observer()
            .write("/proc/sys/kernel/ns_last_pid", &format!("{}", pid - back))
            .await
            .unwrap();
        let next = sandbox.start_container().await;
        match first(&next).await {
            number if number == pid => break next,
            number => back = (back + pid).saturating_sub(number).clamp(1, pid - 1),
        }
        next.kill().await.unwrap();
        next.remove().await.unwrap();
    };
    let before = Snapshot::of(&sandbox, &[&successor]).await.container_devices;
    set_guest_faults(&sandbox, "").await;
    let finished = Finished::new(&command.wait_with_output().await.unwrap(), Duration::ZERO);
    let (reason, message) = finished.failed_with(3);
    assert_eq!(reason, "container_not_running", "{message}");
    let after = Snapshot::of(&sandbox, &[&successor]).await;
    assert_eq!(after.container_devices, before);
    assert_eq!(after.agent.namespaces.len(), 1, "no thread of the agent is in another namespace");
}

#[rstest]
#[case::mknod(false)]
#[case::bind(true)]
#[tokio::test]
async fn container_whose_first_process_repeatedly_executes_itself_is_served(
    #[case] user_namespace: bool,
) {
    let sandbox = boot(&Machine::default()).await;
    // The first process executes a new program every few milliseconds and keeps its PID.
    let script = "sleep 0.01; exec /bin/sh -c \"$0\" \"$0\"";
    let command = ["/bin/sh", "-c", script, script].map(str::to_owned).to_vec();
    let options = ContainerOptions {
        command,
        user_namespace,
        device_filter: DeviceFilter::Bpf,
        ..ContainerOptions::default()
    };
    let container = sandbox.start_container_with(&options).await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    for _ in 0..5 {
        let volume = Volume::image(MIB);
        sandbox.hot_plug(&container, &volume, "/dev/new/xvda").await;
        assert_eq!(container.read("/dev/new/xvda", 0..4096).await, volume.bytes(0..4096));
        unplug(&sandbox, &at(&container, "/dev/new/xvda")).await;
    }
    before.assert_unchanged(&sandbox, &[&container]).await;
}
