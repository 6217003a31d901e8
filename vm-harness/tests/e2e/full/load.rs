//! Many volumes and many callers: all data is correct, and nothing is left afterwards.

use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use vm_harness::{Container, Finished, Footprint, Sandbox, Snapshot, Volume};

use super::{large_sandbox, path, plug_command, plug_in_batches, small_volumes};
use crate::hot_unplug::{at, unplug, unplug_command};

const MANY: usize = 256;

async fn footprint(sandbox: &Sandbox) -> Footprint {
    Footprint::of(sandbox).await.unwrap()
}

/// Checks the data of all volumes, as the container reads it, in a few calls.
async fn assert_bytes(container: &Container, volumes: &[Volume]) {
    for (batch, part) in volumes.chunks(32).enumerate() {
        let paths: Vec<String> = (0..part.len()).map(|index| path(batch * 32 + index)).collect();
        let sums = container.exec(&[&["sha256sum".to_owned()], &paths[..]].concat()).await;
        let sums = String::from_utf8(sums).unwrap();
        assert_eq!(sums.lines().count(), part.len(), "{sums}");
        for ((line, path), volume) in sums.lines().zip(&paths).zip(part) {
            let bytes = std::fs::read(volume.image_path()).unwrap();
            let sum: String =
                Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(line, format!("{sum}  {path}"));
        }
    }
}

#[tokio::test]
async fn two_hundred_and_fifty_six_volumes_are_plugged_and_unplugged() {
    let sandbox = large_sandbox().await;
    let container = sandbox.start_container().await;
    let volumes = small_volumes(MANY);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    // QEMU allocates some resources for disks with the first one, and keeps them.
    plug_command(&sandbox, &container, volumes.iter().enumerate().take(1))
        .run()
        .await
        .succeeded(sandbox.guest());
    unplug(&sandbox, &at(&container, &path(0))).await;
    let at_first = footprint(&sandbox).await;
    let start = Instant::now();
    let (batched, single) = volumes.split_at(MANY / 2);
    plug_in_batches(&sandbox, &container, batched).await;
    println!("{} volumes in batches of 32: {:.1?}", batched.len(), start.elapsed());
    let start = Instant::now();
    for (index, volume) in single.iter().enumerate() {
        let one = std::iter::once((batched.len() + index, volume));
        plug_command(&sandbox, &container, one).run().await.succeeded(sandbox.guest());
    }
    println!("{} volumes one by one: {:.1?}", single.len(), start.elapsed());
    assert_bytes(&container, &volumes).await;
    println!("at first    {at_first}");
    println!("with {MANY}    {}", footprint(&sandbox).await);

    let start = Instant::now();
    for index in 0..MANY {
        unplug(&sandbox, &at(&container, &path(index))).await;
    }
    println!("{MANY} volumes unplugged one by one: {:.1?}", start.elapsed());
    before.assert_unchanged(&sandbox, &[&container]).await;
    let at_last = footprint(&sandbox).await;
    println!("afterwards  {at_last}");
    assert_eq!(at_last.qemu_descriptors, at_first.qemu_descriptors);
    // A heap keeps memory that it once had. A second round must not need more.
    let volumes = small_volumes(MANY / 2);
    plug_in_batches(&sandbox, &container, &volumes).await;
    for index in 0..volumes.len() {
        unplug(&sandbox, &at(&container, &path(index))).await;
    }
    let again = footprint(&sandbox).await;
    println!("once more   {again}");
    assert_eq!(again.growth_since(&at_last), Vec::<String>::new());
}

#[tokio::test]
async fn sixteen_concurrent_calls_all_succeed() {
    let sandbox = large_sandbox().await;
    let container = sandbox.start_container().await;
    let volumes = small_volumes(16);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let start = Instant::now();
    let commands: Vec<_> = volumes
        .iter()
        .enumerate()
        .map(|one| plug_command(&sandbox, &container, std::iter::once(one)).start())
        .collect();
    for command in commands {
        let output =
            sandbox.guest().wait_for("a call", Duration::from_secs(30), command.wait_with_output());
        Finished::new(&output.await.unwrap().unwrap(), Duration::ZERO).succeeded(sandbox.guest());
    }
    println!("16 concurrent calls of hot-plug: {:.1?}", start.elapsed());
    assert_bytes(&container, &volumes).await;
    let start = Instant::now();
    let commands: Vec<_> = (0..volumes.len())
        .map(|index| unplug_command(&sandbox, &container, &path(index)).start())
        .collect();
    for command in commands {
        let output =
            sandbox.guest().wait_for("a call", Duration::from_secs(30), command.wait_with_output());
        Finished::new(&output.await.unwrap().unwrap(), Duration::ZERO).succeeded(sandbox.guest());
    }
    println!("16 concurrent calls of hot-unplug: {:.1?}", start.elapsed());
    before.assert_unchanged(&sandbox, &[&container]).await;
}

#[tokio::test]
async fn batch_takes_less_than_half_of_single_calls() {
    const COUNT: usize = 64;
    let sandbox = large_sandbox().await;
    let container = sandbox.start_container().await;
    let volumes = small_volumes(COUNT);
    let (mut single, mut batch) = (Vec::new(), Vec::new());
    for round in 0..3 {
        let start = Instant::now();
        for one in volumes.iter().enumerate() {
            let command = plug_command(&sandbox, &container, std::iter::once(one));
            command.run().await.succeeded(sandbox.guest());
        }
        single.push(start.elapsed());
        for index in 0..COUNT {
            unplug(&sandbox, &at(&container, &path(index))).await;
        }
        let start = Instant::now();
        let command = plug_command(&sandbox, &container, volumes.iter().enumerate());
        command.run().await.succeeded(sandbox.guest());
        batch.push(start.elapsed());
        if round == 0 {
            assert_bytes(&container, &volumes).await;
        }
        for index in 0..COUNT {
            unplug(&sandbox, &at(&container, &path(index))).await;
        }
    }
    println!("{COUNT} calls: {single:.2?}; one call for {COUNT}: {batch:.2?}");
    single.sort();
    batch.sort();
    assert!(batch[1] * 2 < single[1], "{batch:?} is not less than half of {single:?}");
}
