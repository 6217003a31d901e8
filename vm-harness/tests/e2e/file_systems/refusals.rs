//! What cannot be mounted is refused before anything changes, with a reason and a remedy.

use rstest::rstest;
use vm_harness::{Container, FileSystem, Sandbox, Snapshot, Volume, random_bytes};

use super::{
    super::{MIB, sandbox},
    ext4, shell, unmount,
};

struct Refusal<'a> {
    sandbox: &'a Sandbox,
    container: &'a Container,
    before: Snapshot,
}

impl Refusal<'_> {
    /// Checks that the volume is not mounted there, and was not written.
    async fn is(&self, volume: &Volume, path: &str, more: &[&str], expected: (i32, &str, &str)) {
        let Self { sandbox, container, before } = self;
        let (status, reason, part) = expected;
        let written = super::written(volume);
        let plug = sandbox.mount_command(container, &[(volume, path)]).args(more);
        let (reported, message) = plug.run().await.failed_with(status);
        assert_eq!(reported, reason, "{path} {more:?}: {message}");
        assert!(message.contains(part), "{path} {more:?}: {message}");
        before.assert_unchanged(sandbox, &[container]).await;
        assert_eq!(super::written(volume), written, "{path} {more:?}: it was written");
    }
}

#[rstest]
#[tokio::test]
async fn volume_without_the_file_system_is_refused(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let refusal = Refusal { sandbox: &sandbox, container: &container, before };
    let blank = Volume::sparse(16 * MIB);
    refusal.is(&blank, "/data", &[], (9, "no_file_system", "mkfs.")).await;
    let typed = ["--fs-type", "xfs"];
    refusal.is(&blank, "/data", &typed, (9, "no_file_system", "mkfs.")).await;
    refusal.is(&Volume::image(MIB), "/data", &[], (9, "no_file_system", "")).await;
    refusal.is(&ext4(), "/data", &typed, (9, "file_system_mismatch", "ext4")).await;

    // Images that lie: cut short, and a superblock whose rest is noise.
    let short = ext4();
    short.resize(4 * MIB);
    refusal.is(&short, "/data", &[], (9, "file_system_refused", "bad geometry")).await;
    let broken = FileSystem::Xfs.volume(&[]);
    broken.write(4096, &random_bytes(MIB as usize));
    broken.write(16, &[0xff; 16]);
    refusal.is(&broken, "/data", &[], (9, "file_system_refused", "xfs")).await;
    assert_eq!(shell(&container, "ls -d /data || true").await, "", "no directory is left");
}

#[rstest]
#[tokio::test]
async fn options_that_give_rights_away_are_refused(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let refusal = Refusal { sandbox: &sandbox, container: &container, before };
    let volume = ext4();
    for option in ["dev", "suid", "errors=panic", "usrquota", "no-such-option", "noatime,dev"] {
        let plug = sandbox.mount_command(&container, &[(&volume, "/mnt")]);
        let refused = plug.args(["--mount-options", option]).run().await;
        let (_, message) = refused.failed_with(2);
        let named = option.rsplit(',').next().unwrap();
        assert!(message.contains(named), "{option}: {message}");
        refusal.before.assert_unchanged(&sandbox, &[&container]).await;
    }
}

#[rstest]
#[tokio::test]
async fn path_that_is_taken_or_leads_out_of_the_container_is_not_mounted_on(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    // Resolved in the guest, the links lead to directories of the guest.
    shell(&container, "ln -s /../../../../run /out && ln -s /proc/1/root/run /magic").await;
    shell(&container, "touch /file && ln -s /nowhere /dangling").await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let refusal = Refusal { sandbox: &sandbox, container: &container, before };
    let volume = ext4();
    for (path, expected) in [
        ("/file", (4, "path_taken", "file")),
        ("/dev", (4, "path_taken", "mount")),
        ("/proc/self", (4, "path_taken", "symbolic link")),
    ] {
        refusal.is(&volume, path, &[], expected).await;
    }
    for path in ["relative", "/data/../..", "/"] {
        let plug = sandbox.mount_command(&container, &[(&volume, path)]);
        assert_eq!(plug.run().await.status, 2, "{path}");
    }
    // A link is followed below the container's root, and never out of it.
    let guest = sandbox.observer().shell("ls -A /run").await;
    let finished = sandbox.mount_command(&container, &[(&volume, "/out/volume")]).run().await;
    if finished.status == 0 {
        let inside = shell(&container, "cat /run/volume/hello").await;
        assert_eq!(inside, "from the host");
        unmount(&sandbox, &container, "/out/volume").await;
    }
    assert_eq!(sandbox.observer().shell("ls -A /run").await, guest);
    for path in ["/magic", "/magic/volume", "/dangling"] {
        let finished = sandbox.mount_command(&container, &[(&volume, path)]).run().await;
        assert_ne!(finished.status, 0, "{path}: {}", finished.stdout);
    }
    assert_eq!(sandbox.observer().shell("ls -A /run").await, guest);
    assert_eq!(shell(&container, "ls -d /nowhere || true").await, "");
}
