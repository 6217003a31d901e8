//! Containers that are the enemy: whatever they do to the path while a volume comes, nothing outside of their roots is made, changed,
//! removed or opened, no thread of the agent stays with them, and what they are called does not reach a terminal as it is.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    time::{Duration, Instant},
};

use agent_plugin::contract::block_volume::{AttachRequest, Attachment, DetachRequest, Detachment};
use rstest::rstest;
use vm_harness::{Container, ContainerOptions, Finished, Machine, Sandbox, Snapshot, Volume, mount};

use super::{
    MIB, boot,
    hot_unplug::{at, unplug},
    sandbox, sandbox_with_faults, set_guest_faults, wait_for_console,
};

/// With the attacker's program (`observer swap`) in it.
pub(crate) fn armed(user_namespace: bool) -> ContainerOptions {
    let program = mount("/dev/observer", "bind", "/usr/bin/observer", &["bind", "ro"]);
    ContainerOptions { user_namespace, mounts: vec![program], ..ContainerOptions::default() }
}

/// Everything of the guest's own files, with what tells that one was changed. The containers' common root is left out, and what the
/// kernel, the agent and the observer write themselves.
async fn guest_files(sandbox: &Sandbox) -> String {
    let skipped = ["/proc", "/sys", "/run", "/ctr/rootfs", "/sys/fs/cgroup"];
    let prune: Vec<String> = skipped.iter().map(|path| format!("-path {path} -prune -o")).collect();
    let list =
        format!("find / {} -print | sort | xargs stat -c '%n %i %f %u:%g %s %t:%T %Y'", prune.join(" "));
    let all = sandbox.observer().shell(&list).await;
    // A terminal's time is that of its last use, crun works in /tmp, and the kernel makes and removes the guest's own nodes.
    let moves = |line: &&str| ["/dev/console ", "/dev ", "/tmp "].iter().any(|name| line.starts_with(name));
    all.lines().filter(|line| !moves(line)).collect::<Vec<_>>().join("\n")
}

/// Two names that the container exchanges all the time.
pub(crate) struct Swapper {
    attack: tokio::task::JoinHandle<vm_harness::Output>,
    container: Container,
}

impl Swapper {
    /// `/dev/arena/a` is a directory, and in the next moment what `b` is made to be.
    pub(crate) async fn start(container: &Container, b: &str) -> Self {
        // What an earlier attack has hidden from its own detach is a mount, perhaps, and cannot be removed.
        let aside = "test ! -e /dev/arena || mv /dev/arena $(mktemp -d /dev/old.XXXXXX)";
        // It is empty, as those are that are made for a volume, and must not go with them.
        let script = format!("{aside}; mkdir -p /dev/arena/a; cd /dev/arena; {b}");
        container.exec(&["sh", "-ec", &script]).await;
        let attacker = container.clone();
        let attack = tokio::spawn(async move {
            attacker.try_exec(&["/dev/observer", "swap", "/dev/arena", "a", "b"], b"").await.unwrap()
        });
        Self { attack, container: container.clone() }
    }

    /// How often it did.
    pub(crate) async fn stop(self) -> u64 {
        self.container.exec(&["touch", "/dev/arena/stop"]).await;
        let output = self.attack.await.unwrap();
        assert_eq!(output.status, 0, "{}", output.error_text());
        self.container.exec(&["sh", "-c", "rm -f /dev/arena/stop"]).await;
        output.text().trim().parse().unwrap()
    }
}

/// What the second name is.
pub(crate) const TRAPS: [&str; 5] = [
    "ln -s /etc b",
    "ln -s ../../../../../../../../etc b",
    "ln -s /proc/1/root/etc b",
    "ln -s /proc/self/cwd b",
    "echo file > b",
];

/// The node step alone, as often as `times`, while the container exchanges the parent for `trap`. Says what came of it, and returns how
/// often the container did.
pub(crate) async fn attach_beside_swaps(
    sandbox: &Sandbox,
    container: &Container,
    attachment: &Attachment,
    trap: &str,
    times: usize,
) -> u64 {
    let attach = AttachRequest {
        attachments: vec![attachment.clone()],
        timeout_ms: 10_000 * u64::from(sandbox.guest().time_scale()),
        ..AttachRequest::default()
    };
    let swapper = Swapper::start(container, trap).await;
    let (attached, refused) = attach_and_detach(sandbox, &attach, times).await;
    let swaps = swapper.stop().await;
    println!("{trap}: {attached} attached, {refused} refused, {swaps} swaps");
    swaps
}

/// Takes a disk that is there to a node and back, without the disk: the node step alone. Counts what came of it.
async fn attach_and_detach(sandbox: &Sandbox, attach: &AttachRequest, times: usize) -> (usize, usize) {
    let service = sandbox.block_volume_service().await.unwrap();
    let (mut attached, mut refused) = (0, 0);
    for _ in 0..times {
        let answer = service.attach(sandbox.agent().context(), attach).await.unwrap();
        let outcome = answer.attached.first().map(|volume| volume.outcome.clone());
        match outcome {
            Some(_) => attached += 1,
            None => refused += 1,
        }
        let detachment = Detachment {
            attachment: Some(attach.attachments[0].clone()).into(),
            outcome: outcome.unwrap_or_default(),
            keep_disk: true,
            ..Default::default()
        };
        let request = DetachRequest {
            detachments: vec![detachment],
            timeout_ms: attach.timeout_ms,
            ..Default::default()
        };
        let answer = service.detach(sandbox.agent().context(), &request).await.unwrap();
        assert!(answer.failure.is_none() || answer.failure.undone, "{answer}");
    }
    (attached, refused)
}

#[rstest]
#[case::mknod(false)]
#[case::bind(true)]
#[tokio::test]
async fn parent_that_is_swapped_all_the_time_leads_nowhere_else(
    #[future(awt)] sandbox: Sandbox,
    #[case] user_namespace: bool,
) {
    let container = sandbox.start_container_with(&armed(user_namespace)).await;
    let sibling = sandbox.start_container_with(&armed(user_namespace)).await;
    let volume = Volume::image(MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let (files, before) = (guest_files(&sandbox).await, Snapshot::of(&sandbox, &[&sibling]).await);
    let mut attachment = plugged.attachment();
    for (trap, path) in TRAPS.iter().zip(["x", "x", "new/x", "x", "new/x"]) {
        attachment.path = format!("/dev/arena/a/{path}");
        let swaps = attach_beside_swaps(&sandbox, &container, &attachment, trap, 8).await;
        assert!(swaps > 64, "{swaps}");
    }
    assert_eq!(guest_files(&sandbox).await, files);
    before.assert_unchanged(&sandbox, &[&sibling]).await;
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
}

#[rstest]
#[tokio::test]
async fn links_as_parents_stay_inside_or_are_refused(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let script = "cd /dev; mkdir real; ln -s /dev/real inside; ln -s ../../../../dev/real upwards; ln -s /proc/1/root/dev root
        ln -s /proc/self/fd/0 magic; ln -s loop loop; ln -s /nowhere dangling; echo x > file";
    container.exec(&["sh", "-ec", script]).await;
    let files = guest_files(&sandbox).await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let volume = Volume::image(MIB);
    for (parent, status, reason) in [
        ("root", 3, "parent_missing"),
        ("magic", 3, "parent_missing"),
        ("loop", 3, "parent_missing"),
        ("dangling", 3, "parent_missing"),
        ("dangling/new", 3, "parent_missing"),
        ("file", 3, "parent_missing"),
        ("file/new", 3, "parent_missing"),
    ] {
        let path = format!("/dev/{parent}/xvda");
        let finished = sandbox.hot_plug_command(&container, &[(&volume, path.as_str())]).run().await;
        let told = finished.failed_with(status);
        assert_eq!(told.0, reason, "{parent}: {}", told.1);
        before.assert_unchanged(&sandbox, &[&container]).await;
    }
    for parent in ["inside", "upwards"] {
        let path = format!("/dev/{parent}/new/xvda");
        sandbox.hot_plug(&container, &volume, &path).await;
        assert_eq!(container.read("/dev/real/new/xvda", 0..4096).await, volume.bytes(0..4096));
        unplug(&sandbox, &at(&container, &path)).await;
        before.assert_unchanged(&sandbox, &[&container]).await;
    }
    assert_eq!(guest_files(&sandbox).await, files);
}

#[rstest]
#[tokio::test]
async fn names_of_a_container_do_not_reach_a_terminal_as_they_are(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let path = "/dev/a\nb\u{1b}[2J\u{202e}/x\u{7}";
    let plugged = sandbox.hot_plug(&container, &volume, path).await;
    assert_eq!(container.read(path, 0..4096).await, volume.bytes(0..4096));
    // A process with such a name holds the volume by such a path.
    let script =
        "ln \"$1\" \"$(printf '/dev/\\377\\033]0;t\\007')\"; exec 5<\"$(printf '/dev/\\377\\033]0;t\\007')\"
        printf 'e\\033[31m' > /proc/self/comm; touch /dev/open; while :; do sleep 1; done";
    let holder = container.clone();
    let holder = tokio::spawn(async move { holder.try_exec(&["sh", "-ec", script, "sh", path], b"").await });
    let open = container.exec(&["sh", "-c", "until test -e /dev/open; do sleep 0.05; done"]);
    sandbox.guest().wait_for("the holder", Duration::from_secs(10), open).await.unwrap();
    let which = ["--sandbox", sandbox.id(), "--container", container.id(), "--device-path", path];
    let mut shown = Vec::new();
    for verb in ["list", "inspect", "hot-unplug", "repair", "stats"] {
        let which = if matches!(verb, "inspect" | "hot-unplug") { &which[..] } else { &which[..2] };
        for output in ["human", "json"] {
            let words = ["block-volume", verb, "--output", output];
            let finished = sandbox.ecr_runtime().args(words).args(which).run().await;
            shown.push(format!("{verb} {output}\n{}{}", finished.stdout, finished.stderr));
        }
    }
    let raw = |text: &String| {
        // JSON is for programs: what would act on a terminal is escaped there too, what would only look odd is not.
        let odd = |c: char| c == '\u{202e}' && !text.contains(" json\n");
        text.chars().any(|c| (c.is_control() && c != '\n') || odd(c))
    };
    assert!(!shown.iter().any(raw), "{shown:?}");
    assert!(shown.iter().any(|text| text.contains("\\u{1b}[31m")), "the holder's name is told: {shown:?}");
    assert!(plugged.volume.to_string().contains("\\u001b"), "JSON has its own escapes");
    holder.abort();
}

#[rstest]
#[tokio::test]
async fn paths_beyond_every_bound_are_usage_errors(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let long = format!("/dev/{}", "a".repeat(256));
    let deep = "/a".repeat(2049);
    let paths =
        [b"/dev/\xff\xfe".as_slice(), long.as_bytes(), deep.as_bytes(), b"/dev/.ecrblk-0123456789abcdef"];
    for path in paths {
        let words =
            ["block-volume", "hot-plug", "--output", "json", "--sandbox", sandbox.id(), "--container"];
        let command =
            sandbox.ecr_runtime().args(words).args([container.id(), "--block-volume", volume.name()]);
        let finished = command.args([OsStr::new("--device-path"), OsStr::from_bytes(path)]).run().await;
        assert_eq!(finished.status, 2, "{}{}", finished.stdout, finished.stderr);
        before.assert_unchanged(&sandbox, &[&container]).await;
    }
    // The longest that works: 4096 bytes, in directories that are there.
    let path = format!("/dev{}/xvda", format!("/{}", "d".repeat(200)).repeat(16));
    sandbox.hot_plug(&container, &volume, &path).await;
    assert_eq!(container.read(&path, 0..4096).await, volume.bytes(0..4096));
    unplug(&sandbox, &at(&container, &path)).await;
    before.assert_unchanged(&sandbox, &[&container]).await;
}

#[rstest]
#[tokio::test]
async fn number_of_the_first_process_that_is_given_anew_leads_to_nobody(
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
    wait_for_console(&sandbox, "fail point attach-after-uevent-socket").await;
    container.kill().await.unwrap();
    container.remove().await.unwrap();
    // A later container gets the number: how many processes crun makes before that one is not ours to know.
    let deadline = Instant::now() + sandbox.guest().scaled(Duration::from_secs(60));
    let mut back = 2;
    let successor = loop {
        assert!(Instant::now() < deadline, "no container got the number {pid}");
        sandbox.observer().write("/proc/sys/kernel/ns_last_pid", &format!("{}", pid - back)).await.unwrap();
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
    assert_eq!(after.agent_namespaces.len(), 1, "no thread of the agent is anywhere else");
}

#[rstest]
#[case::mknod(false)]
#[case::bind(true)]
#[tokio::test]
async fn container_that_executes_itself_all_the_time_is_served(#[case] user_namespace: bool) {
    let sandbox = boot(&Machine::default()).await;
    // Its first process is another program every few milliseconds, and the same process.
    let script = "sleep 0.01; exec /bin/sh -c \"$0\" \"$0\"";
    let command = ["/bin/sh", "-c", script, script].map(str::to_owned).to_vec();
    let options = ContainerOptions { command, user_namespace, ..ContainerOptions::default() };
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
