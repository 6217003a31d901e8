//! `resize` grows a mounted file system while a process writes to it.

use rstest::rstest;
use serde_json::json;
use vm_harness::{FileSystem, Sandbox, Snapshot};

use super::{
    super::{
        MIB,
        hot_unplug::{query_volumes, verb},
        sandbox,
    },
    HELLO, assert_hello, mounted, shell, unmount,
};

/// Writes numbered blocks until it is stopped, and checks them.
const WRITER: &str = "i=0; until test -e /tmp/stop; do i=$((i+1)); echo $i >> /mnt/log; \
                      dd if=/mnt/hello of=/mnt/block conv=fsync 2>/dev/null || exit 1; \
                      touch /tmp/writes; done; test $(wc -l < /mnt/log) = $i && echo consistent";

#[rstest]
#[case(FileSystem::Ext4, 48)]
#[case(FileSystem::Xfs, 512)]
#[case(FileSystem::Btrfs, 256)]
#[tokio::test]
async fn file_system_grows_while_a_process_writes(
    #[future(awt)] sandbox: Sandbox,
    #[case] kind: FileSystem,
    #[case] mebibytes: u64,
) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let volume = kind.volume(&[HELLO]);
    sandbox.mount(&container, &volume, "/mnt").await;
    let blocks = async || {
        let text =
            shell(&container, "stat -f -c '%b %S' /mnt | awk '{ print $1 * $2 / 1024 }'").await;
        text.trim().parse::<u64>().unwrap()
    };
    let few = blocks().await;
    let writer = container.clone();
    let writer = tokio::spawn(async move { shell(&writer, WRITER).await });
    shell(&container, "until test -e /tmp/writes; do sleep 0.01; done").await;

    let size = format!("{mebibytes}MiB");
    let more = [&mounted(&container, "/mnt")[..], &["--size", &size]].concat();
    let resize = verb(sandbox.ecr_runtime(), &sandbox, "resize", &more);
    let grown = resize.run().await.succeeded(sandbox.guest()).remove(0);
    assert_eq!(
        (grown.result.as_str(), &grown.volume["size"]),
        ("resized", &json!(mebibytes * MIB))
    );
    let many = blocks().await;
    assert!(many > few + (mebibytes * MIB - kind.usual_size()) / 1024 * 8 / 10, "{few} → {many}");
    let again = resize.run().await.succeeded(sandbox.guest()).remove(0);
    assert_eq!(again.result, "unchanged");

    shell(&container, "rm /tmp/writes; until test -e /tmp/writes; do sleep 0.01; done").await;
    shell(&container, "touch /tmp/stop").await;
    assert_eq!(writer.await.unwrap(), "consistent\n");
    assert_hello(&container, "/mnt").await;
    let listed = query_volumes(&sandbox, "list", &[]).await;
    assert_eq!(
        (&listed[0]["state"], &listed[0]["size"]),
        (&json!("attached"), &json!(mebibytes * MIB))
    );
    unmount(&sandbox, &container, "/mnt").await;
    before.assert_unchanged(&sandbox, &[&container]).await;
    kind.assert_consistent(&volume);
}

/// FAT has no ioctl for it. The disk has its new size, and the command says why the file system has
/// not.
#[rstest]
#[tokio::test]
async fn file_system_that_cannot_grow_is_named_beside_both_sizes(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let volume = FileSystem::Vfat.volume(&[]);
    let plugged = sandbox.mount(&container, &volume, "/mnt").await;
    shell(&container, "echo written > /mnt/file").await;
    let space = shell(&container, "stat -f -c '%b %S' /mnt").await;
    let numbers: Vec<u64> =
        space.split_whitespace().map(|number| number.parse().unwrap()).collect();
    let bytes = numbers[0] * numbers[1];

    let more = [&mounted(&container, "/mnt")[..], &["--size", "48MiB"]].concat();
    let resize = verb(sandbox.ecr_runtime(), &sandbox, "resize", &more);
    let expected = json!({
        "before_bytes": bytes,
        "capacity_bytes": bytes,
        "not_grown": "vfat cannot grow while it is mounted",
    });
    for result in ["resized", "unchanged"] {
        let finished = resize.run().await;
        let resized = finished.succeeded(sandbox.guest()).remove(0);
        assert_eq!((resized.result.as_str(), &resized.volume["size"]), (result, &json!(48 * MIB)));
        assert_eq!(finished.json()["file_system"], expected, "{result}");
    }
    let sectors = format!("cat /sys/block/{}/size", plugged.guest_device());
    assert_eq!(sandbox.observer().shell(&sectors).await.trim(), (48 * MIB / 512).to_string());
    assert_eq!(volume.size(), 48 * MIB);
    assert_eq!(
        shell(&container, "stat -f -c '%b %S' /mnt && cat /mnt/file").await,
        space + "written\n"
    );
    let text = sandbox.ecr_runtime().args(["block-volume", "resize", "--sandbox", sandbox.id()]);
    let shown = text.args(&more).run().await.stdout;
    assert!(shown.contains("not grown: vfat cannot grow while it is mounted"), "{shown}");
    unmount(&sandbox, &container, "/mnt").await;
    before.assert_unchanged(&sandbox, &[&container]).await;
    FileSystem::Vfat.assert_consistent(&volume);
}
