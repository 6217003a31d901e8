//! Every attack on a forced unplug, many times.

use rstest::rstest;
use vm_harness::Sandbox;

use crate::{hostile_cycles::hostile_cycles, sandbox};

#[rstest]
#[tokio::test]
async fn five_hundred_hostile_cycles(#[future(awt)] sandbox: Sandbox) {
    hostile_cycles(&sandbox, 500).await;
}
