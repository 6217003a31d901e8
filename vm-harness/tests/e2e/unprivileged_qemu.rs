//! A QEMU that may not open the source by its path: it gets the volume as a descriptor.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    process::Command,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use vm_harness::{Machine, Volume};

use super::{MIB, boot, host_failures::claim_is_free, hot_unplug::unplug};

/// The user `nobody`.
const USER: u32 = 65534;

#[tokio::test]
async fn volumes_that_qemu_has_no_right_to_open_are_plugged_and_unplugged() {
    let sandbox = boot(&Machine { user: Some(USER), ..Machine::default() }).await;
    let status = fs::read_to_string(format!("/proc/{}/status", sandbox.guest().qemu_id())).unwrap();
    assert!(status.contains(&format!("\nUid:\t{USER}\t{USER}\t{USER}\t{USER}\n")), "{status}");
    let container = sandbox.start_container().await;
    for (volume, path) in
        [(Volume::loop_device(MIB), "/dev/xvda"), (Volume::image(MIB), "/dev/xvdb")]
    {
        fs::set_permissions(volume.image_path(), fs::Permissions::from_mode(0o600)).unwrap();
        let cat = Command::new("cat").arg(volume.path()).uid(USER).gid(USER).output().unwrap();
        assert!(
            !cat.status.success() && cat.stdout.is_empty(),
            "QEMU's user must not be able to open {}",
            volume.name()
        );

        let plugged = sandbox.hot_plug(&container, &volume, path).await;
        assert_eq!(container.read(path, 0..65536).await, volume.bytes(0..65536));
        container
            .exec(&[
                "dd",
                "if=/dev/zero",
                &format!("of={path}"),
                "bs=4096",
                "count=1",
                "conv=fsync",
            ])
            .await;
        assert_eq!(volume.bytes(0..4096), [0; 4096]);
        unplug(&sandbox, &["--volume", plugged.id()]).await;
        assert!(claim_is_free(&volume), "{path}");
    }
}

/// Gives this test's thread, and what it starts, an empty `/run`.
fn own_run() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
}

#[tokio::test]
async fn volume_of_a_rootless_vmm_is_plugged_and_unplugged() {
    own_run();
    let sandbox = boot(&Machine { user: Some(USER), rootless: true, ..Machine::default() }).await;
    let theirs = format!("/run/user/{USER}");
    assert!(sandbox.run_dir().starts_with(&theirs), "{:?}", sandbox.run_dir());
    let socket = fs::symlink_metadata(sandbox.qmp_socket()).unwrap();
    assert_eq!((socket.uid(), socket.mode() & 0o7777), (USER, 0o600));
    // What belongs to the user is used only if the user is named.
    let anonymous = sandbox.ecr_runtime().args(["block-volume", "list", "--sandbox", sandbox.id()]);
    let refused = anonymous.clone().vmm_user(None).args(["--output", "json"]).run().await;
    assert_eq!(refused.failed_with(11).0, "untrusted_path");

    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
    let listed = anonymous.run().await;
    assert!(listed.stdout.contains(plugged.id()), "{}{}", listed.stdout, listed.stderr);
    unplug(&sandbox, &["--volume", plugged.id()]).await;
    assert!(claim_is_free(&volume));
}
