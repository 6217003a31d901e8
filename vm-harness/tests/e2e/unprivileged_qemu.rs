//! A QEMU that may not open the source by its path: it gets the volume as a descriptor.

use std::{
    fs, os::unix::fs::PermissionsExt as _, os::unix::process::CommandExt as _, process::Command,
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
