//! Requests leave nothing in the agent: no thread, no descriptor, no thread in another namespace.
//! Only one test, because it counts the threads and descriptors of the whole process.

mod container;
mod guest;

use std::{
    fs,
    time::{Duration, Instant},
};

use agent_plugin::api::block_volume as wire;
use container::{start, thread_namespaces, threads};
use guest::guest;

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
    let guest = guest(Some(start("")), false).await;
    let context = || ttrpc::context::with_duration(Duration::from_secs(20));
    let probe = wire::ProbeRequest {
        container_id: "c1".into(),
        paths: vec!["/dev/x".into()],
        ..Default::default()
    };

    guest
        .client
        .probe(context(), &probe)
        .await
        .expect("a first request, which initializes everything");
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
        let reply = guest.client.detach(context(), &detach).await.expect("a reply");
        assert!(reply.failure.is_none(), "{reply:?}");
        let mut attach = wire::AttachRequest {
            attachments: vec![detachment(lun).attachment.unwrap()],
            timeout_ms: 10_000,
            ..Default::default()
        };
        // There is no such controller, or no such disk. The test is about what the failure leaves
        // behind.
        attach.attachments[0].controller = "0000:ff:1f.7".into();
        let reply = guest.client.attach(context(), &attach).await.expect("a reply");
        assert!(reply.failure.undone, "{reply:?}");
        guest.client.probe(context(), &probe).await.expect("a reply");
    }
    // Callers that disconnect right after they have sent the request.
    for lun in 1..=10 {
        let gone = guest.connect().await;
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
    let container = guest.agent.container.lock().unwrap();
    assert_eq!(container.as_ref().unwrap().list("/dev"), ["sub"]);
}
