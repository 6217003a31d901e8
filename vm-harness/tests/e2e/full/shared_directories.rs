//! Device paths in a directory that the host shares with the guest by 9p or virtio-fs. The
//! container gets a mount. Everything else that sees this directory, the host in particular, sees
//! an empty file.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::{MetadataExt as _, chown, symlink},
    path::Path,
    sync::mpsc,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify},
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use rstest::rstest;
use vm_harness::{
    Container, ContainerOptions, Environment, Machine, Protocol, Sandbox, SharedDirectory,
    Snapshot, Volume, mount,
};

use crate::{
    MIB,
    hot_unplug::{at, query_volumes, unplug},
};

/// A guest with a directory of the host mounted at `/share`.
struct Setup {
    sandbox: Sandbox,
    directory: tempfile::TempDir,
}

impl Setup {
    async fn boot(protocol: Protocol) -> Self {
        let (setup, share) = Self::boot_with(protocol, tempfile::tempdir().unwrap()).await;
        setup.sandbox.observer().shell(&share.mount_command("/share")).await;
        setup
    }

    async fn boot_with(
        protocol: Protocol,
        directory: tempfile::TempDir,
    ) -> (Self, SharedDirectory) {
        let share = SharedDirectory { path: directory.path().to_owned(), protocol };
        let mut environment = Environment::from_variables();
        environment.overrides.kernel =
            Some(environment.generic_kernel().unwrap_or_else(|error| panic!("{}", error.chain())));
        let machine = Machine {
            kernel_parameters: vec![share.kernel_parameter()],
            share: Some(share.clone()),
            ..Machine::default()
        };
        let sandbox = Sandbox::boot_in(&environment, "default", &machine).await;
        let sandbox = sandbox.unwrap_or_else(|error| panic!("no sandbox: {}", error.chain()));
        (Self { sandbox, directory }, share)
    }

    /// Starts a container that has the directory below `/dev`, which a snapshot covers.
    async fn container(&self, user_namespace: bool) -> Container {
        let mounts = vec![mount("/dev/share", "bind", "/share", &["rbind", "rprivate"])];
        let options = ContainerOptions { mounts, user_namespace, ..ContainerOptions::default() };
        self.sandbox.start_container_with(&options).await
    }

    fn host(&self) -> &Path {
        self.directory.path()
    }

    /// The state of the files that the host's links point to, in the guest and in its containers.
    async fn passwd_files(&self) -> String {
        self.sandbox
            .observer()
            .shell("stat -c '%i %Y %Z %s' /etc/passwd /ctr/rootfs/etc/passwd")
            .await
    }

    /// The files that the host has in the directory: each name with type and permissions, owner,
    /// size and device number.
    fn files(&self) -> Vec<String> {
        let mut lines = Vec::new();
        list(self.host(), "", &mut lines);
        lines.sort();
        lines
    }
}

fn list(directory: &Path, prefix: &str, lines: &mut Vec<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{prefix}{}", path.file_name().unwrap().to_string_lossy());
        let found = fs::symlink_metadata(&path).unwrap();
        let size = if found.is_dir() { 0 } else { found.size() };
        lines.push(format!("{name} {:o} {} {size} {:x}", found.mode(), found.uid(), found.rdev()));
        if found.is_dir() {
            list(&path, &format!("{name}/"), lines);
        }
    }
}

#[rstest]
#[tokio::test]
async fn volume_on_a_directory_of_the_host_is_a_mount_and_the_host_has_an_empty_file(
    #[values(Protocol::NineP, Protocol::VirtioFs)] protocol: Protocol,
) {
    let setup = Setup::boot(protocol).await;
    let sandbox = &setup.sandbox;
    // The owner that crun maps user 0 of a user namespace to.
    fs::create_dir(setup.host().join("own")).unwrap();
    chown(setup.host().join("own"), Some(100_000), Some(100_000)).unwrap();
    let (container, remapped) = (setup.container(false).await, setup.container(true).await);
    let sibling = setup.container(false).await;
    let all = [&container, &remapped, &sibling];
    let (before, files) = (Snapshot::of(sandbox, &all).await, setup.files());
    for (container, name, made) in [
        (&container, "xvda", &["xvda 100000 0 0 0"][..]),
        (
            &container,
            "new/directory/xvda",
            &["new 40755 0 0 0", "new/directory 40755 0 0 0", "new/directory/xvda 100000 0 0 0"],
        ),
        (&remapped, "own/xvda", &["own/xvda 100000 100000 0 0"]),
    ] {
        let path = format!("/dev/share/{name}");
        let volume = Volume::image(MIB);
        let plugged = sandbox.hot_plug(container, &volume, &path).await;
        assert_eq!(plugged.text("node"), "bind", "{path}");
        assert_eq!(container.read(&path, 0..MIB).await, volume.bytes(0..MIB), "{path}");
        let fresh = vm_harness::random_bytes(65536);
        container.write(&path, 4096, &fresh).await;

        let mut expected: Vec<_> =
            files.iter().cloned().chain(made.iter().map(|&l| l.to_owned())).collect();
        expected.sort();
        assert_eq!(setup.files(), expected, "the host has an empty file that no user may open");
        let seen = sibling.exec(&["sh", "-c", &format!("stat -c %F {path}; wc -c < {path}")]).await;
        assert_eq!(String::from_utf8(seen).unwrap(), "regular empty file\n0\n", "{path}");
        let seen = sandbox.observer().shell(&format!("stat -c %F /share/{name}")).await;
        assert_eq!(seen, "regular empty file\n", "{path}");

        unplug(sandbox, &at(container, &path)).await;
        assert_eq!(setup.files(), files, "{path}");
        assert_eq!(
            volume.bytes(4096..4096 + 65536),
            fresh,
            "what the container wrote is on the volume"
        );
    }
    before.assert_unchanged(sandbox, &all).await;
}

/// 9p reports the type of the host's file system to the guest. Here it is a tmpfs, which is mounted
/// in the container only and not in the guest itself.
#[rstest]
#[tokio::test]
async fn tmpfs_of_the_host_that_only_the_container_mounts_gets_no_node(
    #[values(Protocol::NineP, Protocol::VirtioFs)] protocol: Protocol,
) {
    let (setup, share) =
        Setup::boot_with(protocol, tempfile::tempdir_in("/dev/shm").unwrap()).await;
    let sandbox = &setup.sandbox;
    let options =
        ContainerOptions { mounts: vec![share.mount("/dev/share")], ..ContainerOptions::default() };
    let container = sandbox.start_container_with(&options).await;
    let before = Snapshot::of(sandbox, &[&container]).await;
    let volume = Volume::image(MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/share/xvda").await;
    assert_eq!(setup.files(), ["xvda 100000 0 0 0"], "the host has an empty file");
    assert_eq!(plugged.text("node"), "bind");
    assert_eq!(container.read("/dev/share/xvda", 0..MIB).await, volume.bytes(0..MIB));
    unplug(sandbox, &at(&container, "/dev/share/xvda")).await;
    assert_eq!(setup.files(), [""; 0]);
    before.assert_unchanged(sandbox, &[&container]).await;
}

/// Replaces the empty file with a symbolic link to `/etc/passwd`.
fn put_link(host: &Path, name: &str) {
    let link = host.join("link");
    symlink("/etc/passwd", &link).unwrap();
    fs::rename(link, host.join(name)).unwrap();
}

fn link(name: &str) -> String {
    format!("{name} 120777 0 11 0")
}

#[rstest]
#[tokio::test]
async fn link_that_the_host_puts_in_place_of_the_file_is_kept_and_not_followed(
    #[values(Protocol::NineP, Protocol::VirtioFs)] protocol: Protocol,
    #[values(false, true)] guest_has_noticed: bool,
) {
    let setup = Setup::boot(protocol).await;
    let sandbox = &setup.sandbox;
    let container = setup.container(false).await;
    let before = Snapshot::of(sandbox, &[&container]).await;
    let passwd_files = setup.passwd_files().await;
    let volume = Volume::image(MIB);
    sandbox.hot_plug(&container, &volume, "/dev/share/xvda").await;
    put_link(setup.host(), "xvda");
    if guest_has_noticed {
        // The guest caches the names from virtiofsd for one second. Then Linux detaches the mounts
        // from a name that has become a different file. With 9p it does not look up a cached name
        // again.
        let (kind, state) = match protocol {
            Protocol::NineP => ("block special file\n", "attached"),
            Protocol::VirtioFs => ("symbolic link\n", "incomplete"),
        };
        let file_type = async || container.exec(&["stat", "-c", "%F", "/dev/share/xvda"]).await;
        let deadline = Instant::now() + sandbox.guest().scaled(Duration::from_secs(5));
        while file_type().await != kind.as_bytes() {
            assert!(Instant::now() < deadline, "no {kind}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(query_volumes(sandbox, "list", &[]).await[0]["state"], state);
    }
    unplug(sandbox, &at(&container, "/dev/share/xvda")).await;
    assert_eq!(setup.files(), [link("xvda")], "the link is the host's own");
    fs::remove_file(setup.host().join("xvda")).unwrap();
    before.assert_unchanged(sandbox, &[&container]).await;
    assert_eq!(setup.passwd_files().await, passwd_files);
}

/// Replaces each file in the host's directory with a link as soon as it appears, and sends a
/// message each time.
fn attack(host: &Path) -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel();
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
    inotify.add_watch(host, AddWatchFlags::IN_CREATE).unwrap();
    let host = host.to_owned();
    std::thread::spawn(move || {
        // The loop ends when the receiver is dropped: the test has ended.
        let mut received = true;
        while received {
            for event in inotify.read_events().unwrap() {
                let name = event.name.as_deref().and_then(OsStr::to_str);
                if let Some(name) = name.filter(|name| name.starts_with("xvd")) {
                    put_link(&host, name);
                    received = sender.send(()).is_ok();
                }
            }
        }
    });
    receiver
}

#[rstest]
#[tokio::test]
async fn host_that_replaces_the_file_during_the_plug_misleads_neither_guest_nor_container(
    #[values(Protocol::NineP, Protocol::VirtioFs)] protocol: Protocol,
) {
    let setup = Setup::boot(protocol).await;
    let sandbox = &setup.sandbox;
    let container = setup.container(false).await;
    let before = Snapshot::of(sandbox, &[&container]).await;
    let passwd_files = setup.passwd_files().await;
    let volume = Volume::image(MIB);
    let attacker = attack(setup.host());
    let (mut plugged, mut refused) = (0, Vec::new());
    for round in 0..20 {
        // A new name each time: the guest caches what was at the old one.
        let name = format!("xvd{round}");
        let path = format!("/dev/share/{name}");
        let finished = sandbox.hot_plug_command(&container, &[(&volume, &path)]).run().await;
        if finished.status == 0 {
            plugged += 1;
            unplug(sandbox, &at(&container, &path)).await;
        } else {
            // With virtio-fs Linux reports EIO when a file has become a link.
            let error = finished.json()["error"].clone();
            let message = error["message"].as_str().unwrap_or_default();
            assert!(
                error["reason"] == "path_taken" || message.contains("Input/output error"),
                "{message}"
            );
            assert!(!message.contains("undo"), "{message}");
            refused.push(finished.status);
        }
        attacker.recv_timeout(Duration::from_secs(10)).expect("the host saw a new file");
        // QEMU removes a file that it could not create completely. By then it may be the host's
        // link.
        let removed_by_qemu = protocol == Protocol::NineP && setup.files().is_empty();
        if !removed_by_qemu {
            assert_eq!(setup.files(), [link(&name)], "the link is the host's own");
            fs::remove_file(setup.host().join(&name)).unwrap();
        }
    }
    println!("{protocol:?}: {plugged} plugged, {} refused: {refused:?}", refused.len());
    before.assert_unchanged(sandbox, &[&container]).await;
    assert_eq!(setup.passwd_files().await, passwd_files);
}

#[rstest]
#[tokio::test]
async fn server_that_stops_answering_affects_only_its_own_path_and_leaves_nothing() {
    let setup = Setup::boot(Protocol::VirtioFs).await;
    let sandbox = &setup.sandbox;
    let container = setup.container(false).await;
    let server = Pid::from_raw(i32::try_from(sandbox.guest().share().unwrap().id()).unwrap());
    let (before, files) = (Snapshot::of(sandbox, &[&container]).await, setup.files());
    let (volume, other) = (Volume::image(MIB), Volume::image(MIB));
    kill(server, Signal::SIGSTOP).unwrap();
    let command = sandbox.hot_plug_command(&container, &[(&volume, "/dev/share/new/xvda")]);
    let (reason, _) = command.args(["--timeout", "15s"]).run().await.failed_with(7);
    assert_eq!(reason, "timed_out");
    // Other hot-plugs do not wait for it.
    sandbox.hot_plug(&container, &other, "/dev/xvdb").await;
    assert_eq!(container.read("/dev/xvdb", 0..4096).await, other.bytes(0..4096));
    unplug(sandbox, &at(&container, "/dev/xvdb")).await;
    kill(server, Signal::SIGCONT).unwrap();
    before.assert_unchanged(sandbox, &[&container]).await;
    assert_eq!(setup.files(), files);
}
