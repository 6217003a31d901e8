//! Many file systems at once, and many times.

use std::time::Instant;

use rstest::rstest;
use vm_harness::{FileSystem, Footprint, Sandbox, Snapshot, Volume};

use super::large_sandbox;
use crate::{
    file_systems::{HELLO, assert_hello, ext4, shell, superblocks, unmount},
    hot_unplug::query_volumes,
    sandbox,
};

#[tokio::test]
async fn sixty_four_file_systems_are_mounted_by_one_call() {
    let sandbox = large_sandbox().await;
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let volumes: Vec<Volume> = (0..64).map(|_| ext4()).collect();
    let paths: Vec<String> = (0..64).map(|index| format!("/data/{index}")).collect();
    let pairs: Vec<_> = volumes.iter().zip(paths.iter().map(String::as_str)).collect();
    let plug = sandbox.mount_command(&container, &pairs).args(["--timeout", "10m"]);
    let finished = plug.run().await;
    assert_eq!(finished.succeeded(sandbox.guest()).len(), 64);
    println!("64 file systems in {:.2?}", finished.elapsed);
    for path in &paths {
        assert_hello(&container, path).await;
    }
    let listed = query_volumes(&sandbox, "list", &[]).await;
    let attached = listed.iter().filter(|volume| volume["state"] == "attached").count();
    assert_eq!(attached, 64);
    for path in &paths {
        unmount(&sandbox, &container, path).await;
    }
    before.assert_unchanged(&sandbox, &[&container]).await;
    assert_eq!(shell(&container, "ls -d /data || true").await, "");
    volumes.iter().for_each(|volume| FileSystem::Ext4.assert_consistent(volume));
}

#[rstest]
#[tokio::test]
async fn five_hundred_cycles_leave_nothing(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let kinds = [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs];
    let volumes = kinds.map(|kind| (kind, kind.volume(&[HELLO])));
    let cycle = async |index: usize| {
        let (_, volume) = &volumes[index % volumes.len()];
        sandbox.mount(&container, volume, "/data/volume").await;
        shell(&container, &format!("echo {index} >> /data/volume/cycles")).await;
        unmount(&sandbox, &container, "/data/volume").await;
    };
    // The first ones load modules and fill caches.
    for index in 0..30 {
        cycle(index).await;
    }
    let (before, blocks) =
        (Snapshot::of(&sandbox, &[&container]).await, superblocks(&sandbox).await);
    let early = Footprint::of(&sandbox).await.unwrap();
    let start = Instant::now();
    for index in 30..530 {
        cycle(index).await;
        if index % 100 == 29 {
            println!("{index} cycles: {}", Footprint::of(&sandbox).await.unwrap());
        }
    }
    println!("500 cycles in {:.1?}", start.elapsed());
    before.assert_unchanged(&sandbox, &[&container]).await;
    assert_eq!(superblocks(&sandbox).await, blocks);
    let growth = Footprint::of(&sandbox).await.unwrap().growth_since(&early);
    assert_eq!(growth, [""; 0]);
    for (kind, volume) in &volumes {
        kind.assert_consistent(volume);
        let cycles = kind.read(volume, "cycles");
        let lines = cycles.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).count();
        assert!(lines >= 176, "{kind}: {lines} cycles were written");
    }
}
