//! One of several replicas works.

use std::time::Duration;

use block_volume_kubernetes::lease::Lease;

use crate::{api_server::User, cluster::Cluster, wait::LIMIT};

#[tokio::test]
async fn a_lease_has_one_holder_until_it_is_released() {
    let cluster = Cluster::start().await;
    let lease = |identity| {
        let client = cluster.server.client(User::Controller);
        Lease::new(client, "block-volume", "block-volume-controller", identity)
    };
    let (mut first, mut second) = (lease("first"), lease("second"));
    tokio::time::timeout(LIMIT, first.acquire()).await.unwrap();
    let taken = tokio::time::timeout(Duration::from_secs(5), second.acquire()).await;
    assert!(taken.is_err(), "two hold the lease");
    first.release().await.unwrap();
    tokio::time::timeout(LIMIT, second.acquire()).await.unwrap();
    // The first one notices.
    let lost = tokio::time::timeout(LIMIT, first.hold()).await.unwrap();
    assert!(lost.to_string().contains("block-volume-controller"), "{lost}");
}
