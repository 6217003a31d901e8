//! A node agent whose list of attachments is old: the API server has it from its memory, and one of
//! several API servers may be behind the others.

use std::collections::BTreeSet;

use block_volume_kubernetes::resource::{
    BlockVolumeAttachment, ConditionType::Attached, NODE_LABEL, Truth,
};
use hyper::{Method, Request, Response};
use kube::{
    Client,
    client::Body,
    core::{Request as ApiRequest, params::ListParams},
};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::{
    api_server::User,
    cluster::Cluster,
    fake_host::FakeHost,
    tenant::host_path_attachment,
    wait::{LIMIT, until},
};

/// The list that the agent of `node-1` gets now.
async fn list(client: &Client) -> String {
    let url = <BlockVolumeAttachment as kube::Resource>::url_path(&(), None);
    let own = ListParams::default().labels(&format!("{NODE_LABEL}=node-1")).match_any();
    client.request_text(ApiRequest::new(url).list(&own).unwrap()).await.unwrap()
}

/// A client that gets this list, and no changes of it. What else it asks for is true; the path of
/// what it has read goes to `reads`.
fn with_list(client: Client, list: String, reads: UnboundedSender<String>) -> Client {
    let service = tower::service_fn(move |request: Request<Body>| {
        let (client, list, reads) = (client.clone(), list.clone(), reads.clone());
        async move {
            let query = request.uri().query().unwrap_or_default();
            if query.contains("watch=true") {
                std::future::pending::<()>().await;
            }
            if query.contains("resourceVersion=0") {
                return Ok(Response::new(Body::from(list.into_bytes())));
            }
            let is_read = request.method() == Method::GET;
            let path = request.uri().path().to_owned();
            let response = client.send(request).await?;
            if is_read {
                let _ = reads.send(path);
            }
            Ok::<_, kube::Error>(response)
        }
    });
    Client::new(service, "default")
}

#[tokio::test]
async fn what_only_an_old_list_has_is_not_attached() {
    let cluster = Cluster::with_pod().await;
    let host = FakeHost::default();
    let _controller = cluster.controller();
    let agent = cluster.node_agent("node-1", host.clone());
    let create = async |name| {
        let one = host_path_attachment(name, "db-0");
        cluster.create::<BlockVolumeAttachment>(one).await;
        cluster.until_condition(name, Attached, Truth::True, "Attached").await;
    };
    for name in ["gone", "replaced", "stays"] {
        create(name).await;
    }
    let client = cluster.server.client(User::Node);
    let old = list(&client).await;
    for name in ["gone", "replaced"] {
        assert!(old.contains(name), "{old}");
        cluster.delete(name).await;
        cluster.until_gone(name).await;
    }
    create("replaced").await;
    drop(agent);

    let (reads, mut read) = unbounded_channel();
    let later = FakeHost::default();
    let _agent = Cluster::node_agent_by(with_list(client, old, reads), "node-1", later.clone());
    let mut awaited = BTreeSet::from(["gone", "replaced", "stays"]);
    let each_is_read = async {
        while !awaited.is_empty() {
            let path = read.recv().await.unwrap();
            awaited.retain(|name| !path.ends_with(&format!("/{name}")));
        }
    };
    let in_time = tokio::time::timeout(LIMIT, each_is_read).await;
    assert!(in_time.is_ok(), "these were not read before anything is done: {awaited:?}");
    until("what stays is attached", || async { !later.attached().is_empty() }).await;
    let paths: Vec<_> = later.attached().into_iter().map(|one| one.path).collect();
    assert_eq!((paths, later.calls()), (vec!["/dev/stays".to_owned()], 1));
}
