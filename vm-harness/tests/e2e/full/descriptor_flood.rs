//! A flood of descriptors of an unprivileged user: a search through all of them takes minutes.

use std::time::Duration;

use vm_harness::Machine;

use crate::{boot, holder_scan::unplug_in_a_flood};

#[tokio::test]
async fn four_hundred_processes_of_another_container_delay_no_forced_unplug() {
    let sandbox = boot(&Machine { memory: 768, ..Machine::default() }).await;
    let took = unplug_in_a_flood(&sandbox, 400, Duration::from_secs(5)).await;
    println!("forced after {took:?}");
}
