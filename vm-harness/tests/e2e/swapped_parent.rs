//! The container exchanges a parent directory of the device path for something else, continuously
//! or at the decisive moment. Nothing outside of its root directory is created, changed or removed.

use std::collections::BTreeSet;

use block_volume_api::block_volume::{AttachRequest, Attachment, DetachRequest, Detachment};
use rstest::rstest;
use vm_harness::{Container, ContainerOptions, DeviceFilter, Sandbox, Snapshot, Volume, mount};

use super::{MIB, at_fault_point, hot_unplug::unplug_command, sandbox, sandbox_with_faults};

/// Starts a container that has the program for the attack (`observer swap`), and its sibling.
pub(crate) async fn swapping_pair(
    sandbox: &Sandbox,
    user_namespace: bool,
) -> (Container, Container) {
    let program = mount("/dev/observer", "bind", "/usr/bin/observer", &["bind", "ro"]);
    let options = ContainerOptions {
        user_namespace,
        mounts: vec![program],
        device_filter: DeviceFilter::Bpf,
        ..ContainerOptions::default()
    };
    (sandbox.start_container_with(&options).await, sandbox.start_container_with(&options).await)
}

/// The files of the guest itself.
pub(crate) struct GuestFiles(BTreeSet<String>);

impl GuestFiles {
    /// Lists all files with the attributes that show a change. The containers' common root
    /// directory is left out, and so are the files that the kernel, the agent and the observer
    /// write.
    pub(crate) async fn of(sandbox: &Sandbox) -> Self {
        let skipped = ["/proc", "/sys", "/run", "/ctr/rootfs", "/sys/fs/cgroup"];
        let prune: Vec<String> =
            skipped.iter().map(|path| format!("-path {path} -prune -o")).collect();
        let list = format!(
            "find / {} -print | xargs stat -c '%n %i %f %u:%g %s %t:%T %Y'",
            prune.join(" ")
        );
        let all = sandbox.observer().shell(&list).await;
        // The time of a terminal changes with each use, crun works in /tmp, and the kernel creates
        // and removes the guest's own device nodes.
        let changes = |line: &&str| {
            ["/dev/console ", "/dev ", "/tmp "].iter().any(|name| line.starts_with(name))
        };
        Self(all.lines().filter(|line| !changes(line)).map(str::to_owned).collect())
    }

    pub(crate) async fn assert_unchanged(&self, sandbox: &Sandbox) {
        let now = Self::of(sandbox).await;
        let (gone, new) = (Vec::from_iter(&self.0 - &now.0), Vec::from_iter(&now.0 - &self.0));
        assert!(
            gone.is_empty() && new.is_empty(),
            "files of the guest changed: removed {gone:#?}, new {new:#?}"
        );
    }
}

/// A process in the container that continuously exchanges two names.
pub(crate) struct Swapper {
    attack: tokio::task::JoinHandle<vm_harness::Output>,
    container: Container,
}

impl Swapper {
    /// Starts to exchange `/dev/arena/a`, a directory, and `/dev/arena/b`, which the script `b`
    /// creates.
    pub(crate) async fn start(container: &Container, b: &str) -> Self {
        // A mount that an earlier attack has hidden from its own detach may be left there, and
        // cannot be removed.
        let aside = "test ! -e /dev/arena || mv /dev/arena $(mktemp -d /dev/old.XXXXXX)";
        // The directory is empty, like those that are created for a volume, but must not be removed
        // with them.
        let script = format!("{aside}; mkdir -p /dev/arena/a; cd /dev/arena; {b}");
        container.exec(&["sh", "-ec", &script]).await;
        let attacker = container.clone();
        let attack = tokio::spawn(async move {
            attacker
                .try_exec(&["/dev/observer", "swap", "/dev/arena", "a", "b"], b"")
                .await
                .unwrap()
        });
        Self { attack, container: container.clone() }
    }

    /// Stops it and returns the number of swaps.
    pub(crate) async fn stop(self) -> u64 {
        self.container.exec(&["touch", "/dev/arena/stop"]).await;
        let output = self.attack.await.unwrap();
        assert_eq!(output.status, 0, "{}", output.error_text());
        self.container.exec(&["sh", "-c", "rm -f /dev/arena/stop"]).await;
        output.text().trim().parse().unwrap()
    }
}

/// Scripts that create the second name.
pub(crate) const REPLACEMENTS: [&str; 5] = [
    "ln -s /etc b",
    "ln -s ../../../../../../../../etc b",
    "ln -s /proc/1/root/etc b",
    "ln -s /proc/self/cwd b",
    "echo file > b",
];

/// Runs only the node step, `times` times, while the container exchanges the parent for
/// `replacement`. Prints the results, and returns the number of swaps.
pub(crate) async fn attach_during_swaps(
    sandbox: &Sandbox,
    container: &Container,
    attachment: &Attachment,
    replacement: &str,
    times: usize,
) -> u64 {
    let attach = AttachRequest {
        attachments: vec![attachment.clone()],
        timeout_ms: 10_000 * u64::from(sandbox.guest().time_scale()),
        ..AttachRequest::default()
    };
    let swapper = Swapper::start(container, replacement).await;
    let (attached, refused) = attach_and_detach(sandbox, &attach, times).await;
    let swaps = swapper.stop().await;
    println!("{replacement}: {attached} attached, {refused} refused, {swaps} swaps");
    swaps
}

/// Attaches and detaches a disk that the guest already has and keeps: only the node step. Returns
/// how often the attach succeeded and how often it was refused.
async fn attach_and_detach(
    sandbox: &Sandbox,
    attach: &AttachRequest,
    times: usize,
) -> (usize, usize) {
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
            // The volume is at another path of the container, too.
            keep_right: true,
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
async fn parent_that_is_swapped_continuously_leads_to_no_other_directory(
    #[future(awt)] sandbox: Sandbox,
    #[case] user_namespace: bool,
) {
    let (container, sibling) = swapping_pair(&sandbox, user_namespace).await;
    let volume = Volume::image(MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let (files, before) =
        (GuestFiles::of(&sandbox).await, Snapshot::of(&sandbox, &[&sibling]).await);
    let mut attachment = plugged.attachment();
    for (replacement, path) in REPLACEMENTS.iter().zip(["x", "x", "new/x", "x", "new/x"]) {
        attachment.path = format!("/dev/arena/a/{path}");
        let swaps = attach_during_swaps(&sandbox, &container, &attachment, replacement, 8).await;
        assert!(swaps > 64, "{swaps}");
    }
    files.assert_unchanged(&sandbox).await;
    before.assert_unchanged(&sandbox, &[&sibling]).await;
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
}

/// The parent is exchanged at the decisive moment, and without a race: after the lookup of the path
/// and before anything is created or removed.
#[rstest]
#[case::mknod(false, "mknod")]
#[case::bind(true, "bind")]
#[tokio::test]
async fn parent_that_is_exchanged_after_the_lookup_leads_to_no_other_directory(
    #[future(awt)] sandbox_with_faults: Sandbox,
    #[case] user_namespace: bool,
    #[case] node: &str,
) {
    let sandbox = sandbox_with_faults;
    let options = ContainerOptions {
        user_namespace,
        device_filter: DeviceFilter::Bpf,
        ..ContainerOptions::default()
    };
    let container = sandbox.start_container_with(&options).await;
    // A file of the guest at the path that the link leads to. A detach must not remove it.
    sandbox.observer().shell("touch /etc/held").await;
    container.exec(&["sh", "-c", "mkdir -p /dev/arena/a"]).await;
    let (files, before) =
        (GuestFiles::of(&sandbox).await, Snapshot::of(&sandbox, &[&container]).await);
    let volume = Volume::image(MIB);
    for (link, name) in
        [("/etc", "new"), ("../../../../../../../../etc", "held"), ("/proc/1/root/etc", "held")]
    {
        let (path, aside) = (format!("/dev/arena/a/{name}"), format!("/dev/arena/aside/{name}"));
        let swap = format!("cd /dev/arena && mv a aside && ln -s {link} a");
        let restore = ["sh", "-c", "cd /dev/arena && rm a && mv aside a"];
        let plug = sandbox.hot_plug_command(&container, &[(&volume, &path)]);
        let finished =
            at_fault_point(&sandbox, &container, plug, "attach-after-lookup", &swap).await;
        assert_eq!(finished.succeeded(sandbox.guest())[0].text("node"), node, "{link}");
        assert_eq!(container.read(&aside, 0..4096).await, volume.bytes(0..4096), "{link}");

        container.exec(&restore).await;
        let unplug = unplug_command(&sandbox, &container, &path);
        let finished =
            at_fault_point(&sandbox, &container, unplug, "detach-after-lookup", &swap).await;
        assert_eq!(finished.status, 0, "{link}: {}{}", finished.stdout, finished.stderr);
        files.assert_unchanged(&sandbox).await;
        container.exec(&restore).await;
        before.assert_unchanged(&sandbox, &[&container]).await;
    }
}
