//! What a container keeps of a device node when its volume is unplugged: links, descriptors, copies
//! of the mount. Without a device filter nothing of it leads to a later volume, and the guest keeps
//! what it needs for that no longer than the reference lives.

use std::time::Duration;

use rstest::rstest;
use vm_harness::{
    Container, ContainerOptions, DeviceFilter, Output, Sandbox, Snapshot, Volume, mount,
};

use super::{
    MIB,
    hot_unplug::{at, unplug},
    sandbox,
    swapped_parent::Swapper,
};

/// Starts a container that has the program for the attack (`observer hold`), and no device filter.
async fn attacker(sandbox: &Sandbox, capabilities: &[&str]) -> Container {
    let options = ContainerOptions {
        mounts: vec![mount("/dev/observer", "bind", "/usr/bin/observer", &["bind", "ro"])],
        capabilities: capabilities.iter().map(|name| (*name).to_owned()).collect(),
        ..ContainerOptions::default()
    };
    sandbox.start_container_with(&options).await
}

/// A process of the container that refers to a node.
struct Holder {
    process: tokio::task::JoinHandle<Output>,
    container: Container,
}

impl Holder {
    /// Starts it, and waits until it refers to `node`.
    async fn start(sandbox: &Sandbox, container: &Container, kind: &str, node: &str) -> Self {
        container.exec(&["mkdir", "/dev/held"]).await;
        let command = ["/dev/observer", "hold", kind, node, "/dev/held"].map(str::to_owned);
        let of = container.clone();
        let process = tokio::spawn(async move {
            let command = command.each_ref().map(String::as_str);
            of.try_exec(&command, b"").await.unwrap()
        });
        let this = Self { process, container: container.clone() };
        this.wait_for(sandbox, "held").await;
        this
    }

    async fn wait_for(&self, sandbox: &Sandbox, file: &str) {
        let script = format!("until test -e /dev/held/{file}; do sleep 0.02; done");
        let command = ["sh", "-c", &script];
        let appeared = self.container.exec(&command);
        sandbox.guest().wait_for(file, Duration::from_secs(10), appeared).await.unwrap();
    }

    /// Lets it open what it has, and go on.
    async fn open(&self, sandbox: &Sandbox) {
        self.container.exec(&["touch", "/dev/held/open"]).await;
        self.wait_for(sandbox, "opened").await;
    }

    /// Lets it give up what it has, and returns what it read.
    async fn release(self) -> String {
        self.container.exec(&["touch", "/dev/held/release"]).await;
        let output = self.process.await.unwrap();
        assert_eq!(output.status, 0, "{}", output.error_text());
        self.container.exec(&["rm", "-r", "/dev/held"]).await;
        output.text().trim().to_owned()
    }
}

/// Unplugs, although a descriptor of the node counts as a holder where it is seen.
async fn force_unplug(sandbox: &Sandbox, container: &Container, path: &str) {
    let [c, id, p, path] = at(container, path);
    unplug(sandbox, &[c, id, p, path, "--force"]).await;
}

/// The descriptors of disks that the agent has.
async fn kept(sandbox: &Sandbox) -> Vec<String> {
    let snapshot = Snapshot::of(sandbox, &[]).await;
    snapshot.agent.descriptors.into_iter().filter(|file| file.starts_with("/dev/sd")).collect()
}

async fn mounts_of_ours(container: &Container) -> String {
    let mounts = container.exec(&["sh", "-c", "grep ecrblk /proc/self/mountinfo || true"]).await;
    String::from_utf8(mounts).unwrap()
}

#[rstest]
#[case::descriptor("descriptor", &[], 1)]
#[case::in_transit_in_a_socket("socket", &[], 1)]
#[case::unmounted_by_the_container("unmounted", &["CAP_SYS_ADMIN"], 1)]
#[case::copy_in_no_namespace("tree", &["CAP_SYS_ADMIN"], 1)]
#[case::copy_in_a_namespace("namespace", &[], 0)]
#[case::copy_in_a_dead_namespace("dead-namespace", &[], 1)]
#[tokio::test]
async fn what_refers_to_a_node_leads_to_no_later_volume(
    #[future(awt)] sandbox: Sandbox,
    #[case] kind: &str,
    #[case] capabilities: &[&str],
    #[case] numbers: usize,
) {
    let container = attacker(&sandbox, capabilities).await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let [first, second, third] = [(); 3].map(|()| Volume::image(MIB));
    let plugged = sandbox.hot_plug(&container, &first, "/dev/xvda").await;
    assert_eq!(plugged.text("node"), "bind");
    let number = plugged.device_number().to_owned();
    let holder = Holder::start(&sandbox, &container, kind, "/dev/xvda").await;
    force_unplug(&sandbox, &container, "/dev/xvda").await;
    assert_eq!(mounts_of_ours(&container).await, "");
    assert_eq!(kept(&sandbox).await.len(), numbers);

    let plugged = sandbox.hot_plug(&container, &second, "/dev/xvda").await;
    let is_same = plugged.device_number() == number;
    assert_eq!(is_same, numbers == 0, "the number is kept while something refers to the node");
    holder.open(&sandbox).await;
    let read = holder.release().await;
    let secret: String = second.bytes(0..16).iter().map(|byte| format!("{byte:02x}")).collect();
    println!("{kind}: {read}");
    assert_ne!(read, secret, "the reference led to the next volume");
    unplug(&sandbox, &at(&container, "/dev/xvda")).await;

    // Seen at the latest when the next request begins.
    let plugged = sandbox.hot_plug(&container, &third, "/dev/xvda").await;
    assert_eq!(plugged.device_number(), number, "the number is free again");
    unplug(&sandbox, &at(&container, "/dev/xvda")).await;
    before.assert_unchanged(&sandbox, &[&container]).await;
}

#[rstest]
#[tokio::test]
async fn no_hard_link_to_a_node_can_be_made(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    sandbox.hot_plug(&container, &Volume::image(MIB), "/dev/xvda").await;
    let error = container.exec_fails(&["ln", "/dev/xvda", "/dev/keep"]).await;
    assert!(error.contains("Invalid cross-device link"), "{error}");
}

/// The container remounts its node, copies it to other places, moves the node itself, and mounts
/// over it.
#[rstest]
#[tokio::test]
async fn node_that_the_container_moved_and_copied_is_removed_everywhere(
    #[future(awt)] sandbox: Sandbox,
) {
    let options = ContainerOptions {
        capabilities: vec!["CAP_SYS_ADMIN".to_owned()],
        ..ContainerOptions::default()
    };
    let container = sandbox.start_container_with(&options).await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    for script in [
        "mount -o remount,bind,ro /dev/xvda",
        "touch /dev/a && mount -o bind /dev/xvda /dev/a",
        "touch /dev/a && mount -o move /dev/xvda /dev/a",
        "mount -o bind /dev/null /dev/xvda && mount -o bind /dev/zero /dev/xvda",
    ] {
        sandbox.hot_plug(&container, &Volume::image(MIB), "/dev/xvda").await;
        container.exec(&["sh", "-ec", script]).await;
        unplug(&sandbox, &at(&container, "/dev/xvda")).await;
        assert_eq!(mounts_of_ours(&container).await, "", "{script}");
        container.exec(&["rm", "-f", "/dev/a"]).await;
        before.assert_unchanged(&sandbox, &[&container]).await;
    }
}

/// The container hides its node below another mount. The unplug succeeds, and the number is kept
/// for as long as the node exists.
#[rstest]
#[tokio::test]
async fn node_that_cannot_be_reached_keeps_its_number(#[future(awt)] sandbox: Sandbox) {
    let options = ContainerOptions {
        capabilities: vec!["CAP_SYS_ADMIN".to_owned()],
        ..ContainerOptions::default()
    };
    let container = sandbox.start_container_with(&options).await;
    container.exec(&["mkdir", "/dev/d"]).await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    sandbox.hot_plug(&container, &Volume::image(MIB), "/dev/d/xvda").await;
    container.exec(&["mount", "-t", "tmpfs", "cover", "/dev/d"]).await;
    unplug(&sandbox, &at(&container, "/dev/d/xvda")).await;
    assert_eq!(kept(&sandbox).await.len(), 1);
    // A device node of a disk that is gone.
    container.exec(&["umount", "/dev/d"]).await;
    container.exec_fails(&["dd", "if=/dev/d/xvda", "of=/dev/null", "count=1"]).await;
    container.exec(&["sh", "-c", "umount -l /dev/d/xvda; rm /dev/d/xvda"]).await;
    sandbox.hot_plug(&container, &Volume::image(MIB), "/dev/xvdb").await;
    unplug(&sandbox, &at(&container, "/dev/xvdb")).await;
    before.assert_unchanged(&sandbox, &[&container]).await;
}

/// Plugs and unplugs a volume, and checks that nothing is kept.
pub(crate) async fn clean_cycles(sandbox: &Sandbox, count: usize) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let before = Snapshot::of(sandbox, &[&container]).await;
    for _ in 0..count {
        let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
        assert_eq!(plugged.text("node"), "bind");
        unplug(sandbox, &at(&container, "/dev/xvda")).await;
    }
    before.assert_unchanged(sandbox, &[&container]).await;
}

#[rstest]
#[tokio::test]
async fn clean_cycles_keep_no_descriptor(#[future(awt)] sandbox: Sandbox) {
    clean_cycles(&sandbox, 20).await;
}

/// Plugs and unplugs while the container exchanges the path's parent: a directory, and a link to
/// `/etc`. After each unplug the container has no mount of ours, and no empty file.
pub(crate) async fn cycles_with_exchanged_parent(sandbox: &Sandbox, count: usize) {
    let container = attacker(sandbox, &[]).await;
    let volume = Volume::image(MIB);
    container.exec(&["sh", "-c", "mkdir -p /dev/etc"]).await;
    let (mut attached, mut refused, mut swaps) = (0, 0, 0);
    let mut swapper = Swapper::start(&container, "ln -s /dev/etc b").await;
    for cycle in 0..count {
        // A command in a container has a time-out.
        if cycle % 25 == 24 {
            swaps += swapper.stop().await;
            swapper = Swapper::start(&container, "ln -s /dev/etc b").await;
        }
        let path = "/dev/arena/a/vol";
        let plug = sandbox.hot_plug_command(&container, &[(&volume, path)]).run().await;
        if plug.status != 0 {
            refused += 1;
        } else {
            attached += 1;
            unplug(sandbox, &at(&container, path)).await;
        }
        assert_eq!(mounts_of_ours(&container).await, "", "after {attached} and {refused}");
        let left = container.exec(&["find", "/dev/etc", "/dev/arena", "-name", "vol"]).await;
        assert_eq!(String::from_utf8(left).unwrap(), "", "after {attached} and {refused}");
    }
    swaps += swapper.stop().await;
    println!("{attached} attached, {refused} refused, {swaps} exchanges");
    assert!(attached > count / 4 && swaps > count as u64, "{attached} attached, {swaps} exchanges");
    assert_eq!(kept(sandbox).await, Vec::<String>::new());
}

#[rstest]
#[tokio::test]
async fn node_is_found_while_the_parent_is_exchanged(#[future(awt)] sandbox: Sandbox) {
    cycles_with_exchanged_parent(&sandbox, 15).await;
}

/// A device filter protects the number: a node in the container's own tmpfs is enough, and nothing
/// is kept.
#[rstest]
#[tokio::test]
async fn device_filter_makes_descriptors_of_the_node_useless(#[future(awt)] sandbox: Sandbox) {
    let options = ContainerOptions {
        device_filter: DeviceFilter::Bpf,
        mounts: vec![mount("/dev/observer", "bind", "/usr/bin/observer", &["bind", "ro"])],
        ..ContainerOptions::default()
    };
    let container = sandbox.start_container_with(&options).await;
    let plugged = sandbox.hot_plug(&container, &Volume::image(MIB), "/dev/xvda").await;
    assert_eq!(plugged.text("node"), "mknod");
    let holder = Holder::start(&sandbox, &container, "descriptor", "/dev/xvda").await;
    force_unplug(&sandbox, &container, "/dev/xvda").await;
    assert_eq!(kept(&sandbox).await, Vec::<String>::new());
    let sibling = sandbox.start_container().await;
    let next = sandbox.hot_plug(&sibling, &Volume::image(MIB), "/dev/xvda").await;
    assert_eq!(next.device_number(), plugged.device_number());
    holder.open(&sandbox).await;
    let read = holder.release().await;
    assert!(read.contains("Operation not permitted"), "{read}");
}
