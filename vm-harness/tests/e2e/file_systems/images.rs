//! Images that were made to do harm: links, device nodes, names with escape sequences, images that
//! are cut short, and superblocks that lie. What is in the container stays in the container, and
//! the next volume is mounted as if nothing had been.

use std::process::Command;

use rstest::rstest;
use serde_json::Value;
use vm_harness::{Container, FileSystem, Sandbox, Snapshot, Volume, random_bytes};

use super::{
    super::{
        MIB, holders::ends_soon, host_failures::claim_is_free, hot_unplug::query_volumes, sandbox,
    },
    HELLO, assert_hello, ext4, shell, superblocks, unmount, unmount_command,
};

/// Runs a command of debugfs that changes the image.
fn debugfs(volume: &Volume, command: &str) {
    let run = Command::new("debugfs").args(["-w", "-R", command, volume.name()]).output().unwrap();
    let error = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && error.lines().count() == 1, "{command}: {error}");
}

/// The next volume is mounted at the same path.
async fn assert_usable(sandbox: &Sandbox, container: &Container, before: &Snapshot) {
    before.assert_unchanged(sandbox, &[container]).await;
    let volume = ext4();
    sandbox.mount(container, &volume, "/mnt").await;
    assert_hello(container, "/mnt").await;
    unmount(sandbox, container, "/mnt").await;
    before.assert_unchanged(sandbox, &[container]).await;
}

/// The guest would be gone with its first look at the directory that is damaged.
#[rstest]
#[tokio::test]
async fn image_that_asks_for_a_panic_becomes_read_only(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let image = ext4();
    let tuned = Command::new("tune2fs").args(["-e", "panic", image.name()]).output().unwrap();
    assert!(tuned.status.success(), "{tuned:?}");
    debugfs(&image, "mkdir damaged");
    debugfs(&image, "zap_block -f damaged -p 255 0");
    sandbox.mount(&container, &image, "/mnt").await;
    shell(&container, "echo before >/mnt/new && sync").await;
    // The kernel leaves the block out, and notes an error of the file system.
    assert_eq!(shell(&container, "ls /mnt/damaged").await, "");
    let refused = container.exec_fails(&["sh", "-c", "echo after >/mnt/new"]).await;
    assert!(refused.contains("Read-only file system"), "{refused}");
    assert_hello(&container, "/mnt").await;
    unmount(&sandbox, &container, "/mnt").await;
    assert_usable(&sandbox, &container, &before).await;
}

/// A volume is mounted below another one, where links of that one lead.
#[rstest]
#[tokio::test]
async fn links_of_an_image_lead_nowhere_out_of_the_container(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    shell(&container, "mkdir /dev/real").await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let (image, volume) = (ext4(), ext4());
    for (name, target) in [
        ("upwards", "../../../../dev/real"),
        ("root", "/proc/1/root/dev"),
        ("magic", "/proc/self/fd/0"),
        ("loop", "loop"),
        ("outside", "/ctr"),
    ] {
        debugfs(&image, &format!("symlink {name} {target}"));
    }
    sandbox.mount(&container, &image, "/mnt").await;
    // The directories of the guest that the links would lead to, or pass.
    let listed = async || sandbox.observer().shell("ls -A / /run /ctr").await;
    let files = listed().await;
    let with_image = Snapshot::of(&sandbox, &[&container]).await;
    // In the directory of the container, and not beside that of the guest.
    sandbox.mount(&container, &volume, "/mnt/upwards/volume").await;
    assert_hello(&container, "/dev/real/volume").await;
    unmount(&sandbox, &container, "/mnt/upwards/volume").await;
    with_image.assert_unchanged(&sandbox, &[&container]).await;
    assert_eq!(listed().await, files);
    for path in ["/mnt/root/x", "/mnt/magic/x", "/mnt/loop/x", "/mnt/outside/x", "/mnt/upwards"] {
        let refused = sandbox.mount_command(&container, &[(&volume, path)]).run().await;
        assert_ne!(refused.status, 0, "{path}: {}", refused.stdout);
        with_image.assert_unchanged(&sandbox, &[&container]).await;
        assert_eq!(listed().await, files);
    }
    unmount(&sandbox, &container, "/mnt").await;
    assert_usable(&sandbox, &container, &before).await;
}

#[rstest]
#[tokio::test]
async fn volume_on_a_volume_holds_it(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let (outer, inner) = (ext4(), ext4());
    sandbox.mount(&container, &outer, "/mnt").await;
    sandbox.mount(&container, &inner, "/mnt/inner").await;
    assert_hello(&container, "/mnt/inner").await;
    let both = Snapshot::of(&sandbox, &[&container]).await;
    let (reason, message) =
        unmount_command(&sandbox, &container, "/mnt").run().await.failed_with(5);
    assert!(reason == "busy" && message.contains("/mnt/inner"), "{message}");
    both.assert_unchanged(&sandbox, &[&container]).await;
    unmount(&sandbox, &container, "/mnt/inner").await;
    unmount(&sandbox, &container, "/mnt").await;
    before.assert_unchanged(&sandbox, &[&container]).await;
    FileSystem::Ext4.assert_consistent(&outer);

    // In one call the inner one would be hidden below the outer one.
    let pairs = [(&inner, "/mnt/inner"), (&outer, "/mnt")];
    let (_, message) = sandbox.mount_command(&container, &pairs).run().await.failed_with(2);
    assert!(message.contains("is below \"/mnt\""), "{message}");
    before.assert_unchanged(&sandbox, &[&container]).await;
}

#[rstest]
#[tokio::test]
async fn device_node_and_set_user_id_program_of_an_image_give_nothing(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let image = ext4();
    // Memory of the guest, which the container's device filter may allow or not.
    debugfs(&image, "mknod null c 1 3");
    debugfs(&image, "mknod disk b 8 0");
    sandbox.mount(&container, &image, "/mnt").await;
    for node in ["null", "disk"] {
        let error = container.exec_fails(&["dd", &format!("if=/mnt/{node}"), "count=1"]).await;
        assert!(error.contains("Permission denied"), "{node}: {error}");
    }
    let (options, _) = super::options(&container, "/mnt").await;
    assert!(options.contains("nosuid") && options.contains("nodev"), "{options}");
    unmount(&sandbox, &container, "/mnt").await;
    assert_usable(&sandbox, &container, &before).await;
}

/// Clears the screen, sets the title of the terminal, begins a new line, and reverses what follows.
const ESCAPES: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\nok: \u{202e}gnp";

#[rstest]
#[tokio::test]
async fn names_of_an_image_reach_no_terminal_unescaped(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let image = FileSystem::Ext4.volume(&[HELLO, (ESCAPES, b"x")]);
    let plugged = sandbox.mount(&container, &image, "/mnt").await;
    let hold = "for file in /mnt/*owned*; do exec 3<\"$file\"; done; \
                tail -f /dev/null </dev/null >/dev/null 2>&1 &";
    shell(&container, hold).await;
    let is_plain = |text: &str| !text.contains(['\u{1b}', '\u{7}', '\u{202e}']);
    for format in ["json", "human"] {
        for (verb, status) in [("hot-unplug", 5), ("inspect", 0)] {
            let runtime = sandbox.ecr_runtime().args(["block-volume", verb, "--output", format]);
            let named = runtime.args(["--sandbox", sandbox.id(), "--volume", plugged.id()]);
            let finished = named.run().await;
            assert_eq!(finished.status, status, "{}{}", finished.stdout, finished.stderr);
            let shown = finished.stdout + &finished.stderr;
            assert!(is_plain(&shown) && shown.contains("owned"), "{verb}: {shown:?}");
        }
    }
    shell(&container, "busybox killall tail").await;
    unmount(&sandbox, &container, "/mnt").await;
    assert_usable(&sandbox, &container, &before).await;
}

/// The kernel shows such a path with octal escapes, and it is compared as the bytes that it is.
#[rstest]
#[tokio::test]
async fn path_that_the_kernel_escapes_is_mounted_and_unmounted(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let (volume, neighbour) = (ext4(), ext4());
    let (path, imitated) = ("/dev/data/a b\\040c#é", "/dev/data/a b c#é");
    sandbox.mount(&container, &volume, path).await;
    sandbox.mount(&container, &neighbour, imitated).await;
    assert_hello(&container, path).await;
    let listed = query_volumes(&sandbox, "list", &[]).await;
    assert!(listed.iter().all(|volume| volume["state"] == "attached"), "{listed:?}");
    assert!(listed.iter().any(|volume| volume["mount_path"] == path), "{listed:?}");
    unmount(&sandbox, &container, path).await;
    assert_hello(&container, imitated).await;
    unmount(&sandbox, &container, imitated).await;
    before.assert_unchanged(&sandbox, &[&container]).await;
}

/// Superblocks that say more than there is. Where the kernel believes them the container reads
/// errors, and nobody else does.
#[rstest]
#[tokio::test]
async fn image_that_is_cut_short_or_lies_is_refused_or_unplugged(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let none = superblocks(&sandbox).await;
    let contents = random_bytes(2 * MIB as usize);
    let files: &[(&str, &[u8])] = &[HELLO, ("large", &contents)];

    let short = |kind: FileSystem, files: &[(&str, &[u8])], size: u64| {
        let image = kind.volume(files);
        image.resize(size);
        image
    };
    // The superblock is alone: what it refers to is behind the end.
    let cut = [
        ("ext4", short(FileSystem::Ext4, files, MIB)),
        ("xfs", short(FileSystem::Xfs, &[HELLO], 16 * MIB)),
        ("btrfs", short(FileSystem::Btrfs, files, 16 * MIB)),
        ("squashfs", short(FileSystem::Squashfs, files, MIB)),
        ("erofs", short(FileSystem::Erofs, files, MIB)),
        ("vfat", short(FileSystem::Vfat, &[], 4096)),
    ];
    // The number of bytes that are used; the number of blocks, without the checksum.
    let squashfs = FileSystem::Squashfs.volume(files);
    squashfs.write(40, &(1u64 << 60).to_le_bytes());
    let erofs = FileSystem::Erofs.volume(files);
    erofs.write(1024 + 8, &[0; 4]);
    erofs.write(1024 + 36, &[0xff; 4]);
    let vfat = FileSystem::Vfat.volume(&[]);
    vfat.write(0x13, &[0; 2]);
    vfat.write(0x20, &[0xff; 4]);
    let lies = [("squashfs", squashfs), ("erofs", erofs), ("vfat", vfat)];

    for (kind, image) in cut.iter().chain(&lies) {
        let mut plug = sandbox.mount_command(&container, &[(image, "/mnt")]);
        if ["squashfs", "erofs"].contains(kind) {
            plug = plug.args(["--read-only"]);
        }
        let finished = plug.run().await;
        println!("{kind}: {} {}", finished.status, finished.stdout.trim());
        if finished.status == 0 {
            let read = ["sh", "-c", "cat /mnt/* >/dev/null; ls -lR /mnt"];
            container.try_exec(&read, b"").await.unwrap();
            let stats = query_volumes(&sandbox, "stats", &[]).await;
            // FAT counts what is free in a table, which may be cut.
            let space = &stats[0]["file_system"];
            let is_known = space["capacity_bytes"].is_u64();
            assert!(is_known || *kind == "vfat" && space.is_null(), "{kind}: {stats:?}");
            unmount(&sandbox, &container, "/mnt").await;
        } else {
            let (reason, message) = finished.failed_with(9);
            assert_eq!(reason, "file_system_refused", "{kind}: {message}");
            assert!(message.contains(kind), "{message}");
        }
        before.assert_unchanged(&sandbox, &[&container]).await;
        assert_eq!(superblocks(&sandbox).await, none, "{kind}");
        assert!(claim_is_free(image), "{kind}");
    }
    assert_usable(&sandbox, &container, &before).await;
}

/// The image ends while it is mounted: writes fail, and the unplug says so, or is forced.
#[rstest]
#[tokio::test]
async fn image_that_is_cut_while_it_is_mounted_can_be_taken_by_force(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let image = ext4();
    sandbox.mount(&container, &image, "/mnt").await;
    // Not by `resize`, which would refuse it.
    std::fs::File::options().write(true).open(image.image_path()).unwrap().set_len(MIB).unwrap();
    let write = "dd if=/dev/urandom of=/mnt/new bs=1M count=4 conv=fsync";
    container.try_exec(&["sh", "-c", write], b"").await.unwrap();
    let force = unmount_command(&sandbox, &container, "/mnt").args(["--force"]);
    let child = force.start();
    let forced = ends_soon(&sandbox, child).await;
    assert_eq!(forced.succeeded(sandbox.guest())[0].result, "detached");
    assert_ne!(forced.json()["volumes"], Value::Null);
    assert!(claim_is_free(&image));
    assert_usable(&sandbox, &container, &before).await;
}
