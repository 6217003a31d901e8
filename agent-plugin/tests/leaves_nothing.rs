//! Requests leave nothing in the agent: no thread, no descriptor, no thread in another namespace.
//! Only one test, because it counts the threads and descriptors of the whole process.

mod container;

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use agent_plugin::{
    Agent, Container, ContainerError, Denied,
    api::{block_volume as wire, block_volume_ttrpc::BlockVolumeClient},
};
use async_trait::async_trait;
use container::{Fixture, start, thread_namespaces, threads};
use ttrpc::r#async::{Client, Server};

struct TestAgent(Fixture);

#[async_trait]
impl Agent for TestAgent {
    async fn container(&self, _: &str) -> Result<Container, ContainerError> {
        Ok(self.0.handles())
    }

    async fn authorize(&self, _: &str, _: &serde_json::Value) -> Result<(), Denied> {
        Ok(())
    }
}

/// Waits for the end of the plugin's threads: they send their reply shortly before they end.
async fn settle() {
    let deadline = Instant::now() + Duration::from_secs(10);
    let ours = || {
        let names =
            threads().into_iter().filter_map(|thread| fs::read_to_string(thread.join("comm")).ok());
        names.filter(|name| name.starts_with("block-volume")).count()
    };
    while ours() > 0 {
        assert!(Instant::now() < deadline, "{} threads of the plugin still run", ours());
        tokio::task::yield_now().await;
    }
}

/// The number of threads, and the targets of all descriptors.
fn state() -> (usize, Vec<String>) {
    let entries = fs::read_dir("/proc/self/fd").expect("/proc").flatten();
    let mut descriptors: Vec<String> = entries
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|link| link.display().to_string())
        .collect();
    descriptors.retain(|link| !link.contains("/fd"));
    descriptors.sort();
    (threads().len(), descriptors)
}

fn detachment(lun: u32) -> wire::Detachment {
    let attachment = wire::Attachment {
        container_id: "c1".into(),
        address: Some(wire::ScsiAddress { target: 255, lun, ..Default::default() }).into(),
        serial: format!("{lun:016}"),
        size: 1 << 20,
        path: format!("/dev/xvd{lun}"),
        access: wire::Access::ACCESS_READ_WRITE.into(),
        ..Default::default()
    };
    wire::Detachment { attachment: Some(attachment).into(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_leave_no_thread_and_no_descriptor() {
    let agent = Arc::new(TestAgent(start("")));
    let directory = tempfile::tempdir().expect("a temporary directory");
    let address = format!("unix://{}/agent.sock", directory.path().display());
    let mut server = Server::new()
        .bind(&address)
        .expect("bind")
        .register_service(agent_plugin::service(agent.clone()));
    server.start().await.expect("the server starts");
    let client = BlockVolumeClient::new(Client::connect(&address).await.expect("connect"));
    let context = || ttrpc::context::with_duration(Duration::from_secs(20));
    let probe = wire::ProbeRequest {
        container_id: "c1".into(),
        paths: vec!["/dev/x".into()],
        ..Default::default()
    };

    client.probe(context(), &probe).await.expect("a first request, which initializes everything");
    settle().await;
    let namespaces = thread_namespaces();
    assert_eq!(namespaces.len(), 1);
    let before = state();
    for lun in 1..=10 {
        let detach = wire::DetachRequest {
            detachments: vec![detachment(lun)],
            timeout_ms: 10_000,
            ..Default::default()
        };
        let reply = client.detach(context(), &detach).await.expect("a reply");
        assert!(reply.failure.is_none(), "{reply:?}");
        let attach = wire::AttachRequest {
            attachments: vec![detachment(lun).attachment.unwrap()],
            timeout_ms: 10_000,
            ..Default::default()
        };
        // There is no such controller, or no such disk. The test is about what the failure leaves
        // behind.
        let mut attach = attach;
        attach.attachments[0].controller = "0000:ff:1f.7".into();
        let reply = client.attach(context(), &attach).await.expect("a reply");
        assert!(reply.failure.undone, "{reply:?}");
        client.probe(context(), &probe).await.expect("a reply");
    }
    // Callers that disconnect right after they have sent the request.
    for lun in 1..=10 {
        let gone = BlockVolumeClient::new(Client::connect(&address).await.expect("connect"));
        let detach = wire::DetachRequest {
            detachments: vec![detachment(lun)],
            timeout_ms: 10_000,
            ..Default::default()
        };
        let _ =
            tokio::time::timeout(Duration::from_micros(200), gone.detach(context(), &detach)).await;
    }
    // The server detects a disconnected caller only when it serves that connection.
    let deadline = Instant::now() + Duration::from_secs(10);
    while state() != before {
        assert!(Instant::now() < deadline, "before: {before:?}\nafter: {:?}", state());
        tokio::task::yield_now().await;
    }
    settle().await;
    assert_eq!(thread_namespaces(), namespaces);
    assert_eq!(agent.0.list("/dev"), ["sub"]);
}
