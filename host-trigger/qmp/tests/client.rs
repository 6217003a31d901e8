//! The client against a real QEMU where QEMU can be made to show the case, and against a scripted
//! peer for what QEMU does only rarely: an unknown event, a late reply, no greeting.

mod common;

use std::time::Duration;

use block_volume_qmp::{Deadline, Qmp, QmpError};
use common::{qemu::Qemu, scripted_peer};
use serde_json::json;
use tokio::{io::AsyncWriteExt, net::UnixListener};

fn soon(millis: u64) -> Deadline {
    Deadline::after(Duration::from_millis(millis))
}

#[tokio::test]
async fn another_event_or_a_second_reply_does_not_end_the_connection() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("q");
    scripted_peer::start(&path, async |mut peer| {
        let command = peer.command().await;
        let event = concat!(
            r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "UNKNOWN_EVENT", "#,
            r#""data": {"device": "d"}}"#,
            "\r\n",
            r#"{"timestamp": {}, "event": "DEVICE_DELETED", "data": {"device": "d"}}"#,
            "\r\n"
        );
        let (first, second) = event.split_at(30);
        peer.send(first).await;
        peer.send(second).await;
        peer.reply(&json!({"id": "another"}), json!({"running": false})).await;
        peer.reply(&command, json!({"running": true, "event": 1})).await;
        // The same reply again, directly after the first, without a command.
        peer.reply(&command, json!({"running": true, "event": 1})).await;
        let command = peer.command().await;
        peer.reply(&command, json!({"fdsets": 0})).await;
    })
    .await;
    let mut qmp = Qmp::connect(&path, soon(5000)).await.unwrap();
    assert_eq!(qmp.version(), "10.0.2");
    assert_eq!(qmp.execute("query-status", json!({})).await.unwrap()["running"], true);
    let event = qmp.next_event(soon(1000)).await.unwrap();
    assert_eq!((event.name.as_str(), &event.data["device"]), ("DEVICE_DELETED", &json!("d")));
    assert_eq!(qmp.next_event(soon(20)).await, None);
    assert_eq!(qmp.execute("query-fdsets", json!({})).await.unwrap()["fdsets"], 0);
}

#[tokio::test]
async fn a_late_reply_is_not_taken_for_the_reply_to_a_later_command() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("q");
    scripted_peer::start(&path, async |mut peer| {
        let command = peer.command().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        peer.reply(&command, json!({"late": true})).await;
    })
    .await;
    let mut qmp = Qmp::connect(&path, soon(5000)).await.unwrap();
    qmp.set_deadline(soon(50));
    assert!(matches!(qmp.execute("query-status", json!({})).await, Err(QmpError::TimedOut { .. })));
    qmp.set_deadline(soon(5000));
    let next = qmp.execute("query-version", json!({})).await.unwrap_err();
    assert!(matches!(next, QmpError::Disconnected { .. }) && next.ends_connection(), "{next}");
}

#[tokio::test]
async fn a_command_whose_future_was_dropped_ends_the_connection() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("q");
    scripted_peer::start(&path, async |_peer| std::future::pending().await).await;
    let mut qmp = Qmp::connect(&path, soon(5000)).await.unwrap();
    drop_in_flight(&mut qmp).await;
    assert!(!qmp.is_usable());
    assert!(matches!(
        qmp.execute("query-fdsets", json!({})).await,
        Err(QmpError::Disconnected { .. })
    ));
}

#[tokio::test]
async fn the_next_client_ignores_replies_to_the_previous_one() {
    let qemu = Qemu::start().await;
    for _ in 0..50 {
        let mut qmp = Qmp::connect(qemu.socket(), soon(5000)).await.unwrap();
        drop_in_flight(&mut qmp).await;
    }
}

/// Sends a command and drops its future, most likely before the reply has arrived.
async fn drop_in_flight(qmp: &mut Qmp) {
    let command = qmp.execute("query-fdsets", json!({}));
    tokio::select! { biased; _ = command => {}, () = std::future::ready(()) => {} }
}

#[tokio::test]
async fn a_peer_that_ends_the_connection_is_distinguished_from_a_silent_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("q");
    scripted_peer::start(&path, async |mut peer| {
        peer.command().await;
        peer.0.get_mut().shutdown().await.unwrap();
    })
    .await;
    let mut qmp = Qmp::connect(&path, soon(5000)).await.unwrap();
    assert!(matches!(
        qmp.execute("query-status", json!({})).await,
        Err(QmpError::Disconnected { .. })
    ));

    let silent = directory.path().join("silent");
    let _listener = UnixListener::bind(&silent).unwrap();
    assert!(matches!(Qmp::connect(&silent, soon(50)).await, Err(QmpError::Silent { .. })));
}

#[tokio::test]
async fn a_server_of_another_protocol_is_not_qmp() {
    let directory = tempfile::tempdir().unwrap();
    for (name, greeting) in
        [("hmp", "QEMU 10.0.2 monitor - type 'help'\r\n"), ("json", "{}\n"), ("eof", "")]
    {
        let path = directory.path().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(greeting.as_bytes()).await.unwrap();
        });
        assert!(
            matches!(Qmp::connect(&path, soon(5000)).await, Err(QmpError::NotQmp { .. })),
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_refusal_has_qemus_description() {
    let qemu = Qemu::start().await;
    let mut qmp = Qmp::connect(qemu.socket(), soon(5000)).await.unwrap();
    let refused = qmp.execute("device_del", json!({"id": "missing"})).await.unwrap_err();
    assert!(
        matches!(&refused, QmpError::Refused { class, .. } if class == "DeviceNotFound"),
        "{refused:?}"
    );
    assert_eq!(refused.refusal(), Some("Device 'missing' not found"));
    let unknown = qmp.execute("unknown", json!({})).await.unwrap_err();
    assert!(
        matches!(&unknown, QmpError::Refused { class, .. } if class == "CommandNotFound"),
        "{unknown:?}"
    );
    assert!(qmp.is_usable());
    let null = std::fs::File::open("/dev/null").unwrap();
    let first = qmp.add_fd(&null, None, "x").await.unwrap();
    let second = qmp.add_fd(&null, Some(first.set), "y").await.unwrap();
    assert_eq!(first.set, second.set);
    assert_ne!(first.fd, second.fd);
}
