//! A flood of descriptors of an unprivileged user: a search through all of them takes minutes.

use std::time::Duration;

use vm_harness::{Machine, Snapshot, Volume};

use crate::{MIB, boot, holder_scan::unplug_in_a_flood, hot_unplug::verb, wait_for_console};

const TIMEOUT: Duration = Duration::from_secs(5);

#[tokio::test]
async fn four_hundred_processes_of_another_container_delay_no_forced_unplug() {
    let sandbox = boot(&Machine { memory: 768, ..Machine::default() }).await;
    let took = unplug_in_a_flood(&sandbox, 400, TIMEOUT).await;
    println!("forced after {took:?}");
    // The search was not complete, and said so.
    wait_for_console(&sandbox, "not every process was looked at before a forced detach, where")
        .await;

    // That nobody holds a volume cannot be known in time.
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let timeout = format!("{}ms", sandbox.guest().scaled(TIMEOUT).as_millis());
    let which = ["--volume", plugged.id(), "--timeout", &timeout];
    let refused = verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &which).run().await;
    let (reason, message) = refused.failed_with(7);
    assert_eq!(reason, "timed_out", "{message}");
    println!("{message}");
    for part in ["the search for holders of the disk, where process", "(exe)", "descriptors"] {
        assert!(message.contains(part), "{message}");
    }
    before.assert_unchanged(&sandbox, &[&container]).await;
    let forced = [&which[..], &["--force"]].concat();
    let forced = verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &forced).run().await;
    assert_eq!(forced.succeeded(sandbox.guest())[0].result, "detached");
}
