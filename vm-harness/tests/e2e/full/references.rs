//! Many cycles beside what a container keeps of its device nodes.

use rstest::rstest;
use vm_harness::Sandbox;

use crate::{
    references::{clean_cycles, cycles_with_exchanged_parent},
    sandbox,
};

#[rstest]
#[tokio::test]
async fn five_hundred_clean_cycles_keep_no_descriptor(#[future(awt)] sandbox: Sandbox) {
    clean_cycles(&sandbox, 500).await;
}

#[rstest]
#[tokio::test]
async fn three_hundred_cycles_while_the_parent_is_exchanged(#[future(awt)] sandbox: Sandbox) {
    cycles_with_exchanged_parent(&sandbox, 300).await;
}
