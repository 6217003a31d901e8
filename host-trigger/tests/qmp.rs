//! The monitor's client: against a real QEMU where QEMU can be made to do it, and against a
//! scripted peer for what it does only by bad luck: an event that is not known, a late reply, no
//! greeting.

mod common;

use std::time::Duration;

use block_volume_qmp::{Qmp, QmpError};
use common::{Host, peer::scripted};
use host_trigger::Deadline;
use serde_json::json;
use tokio::{io::AsyncWriteExt, net::UnixListener};

fn soon(millis: u64) -> Deadline {
    Deadline::after(Duration::from_millis(millis))
}

#[tokio::test]
async fn an_unknown_event_or_a_second_answer_does_not_end_the_connection() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("q");
    scripted(&path, async |mut peer| {
        let command = peer.command().await;
        let event = concat!(
            r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "NEVER_HEARD", "#,
            r#""data": {"device": "d"}}"#,
            "\r\n"
        );
        let (first, second) = event.split_at(30);
        peer.send(first).await;
        peer.send(second).await;
        peer.answer(&json!({"id": "another"}), json!({"running": false})).await;
        peer.answer(&command, json!({"running": true, "event": 1})).await;
        // Once more, right behind it: nobody asked.
        peer.answer(&command, json!({"running": true, "event": 1})).await;
        let command = peer.command().await;
        peer.answer(&command, json!({"fdsets": 0})).await;
    })
    .await;
    let mut qmp = Qmp::connect(&path, soon(5000)).await.unwrap();
    assert_eq!(qmp.version(), "10.0.2");
    assert_eq!(qmp.execute("query-status", json!({})).await.unwrap()["running"], true);
    let event = qmp.next_event(soon(1000)).await.unwrap();
    assert_eq!((event.name.as_str(), &event.data["device"]), ("NEVER_HEARD", &json!("d")));
    assert_eq!(qmp.next_event(soon(20)).await, None);
    assert_eq!(qmp.execute("query-fdsets", json!({})).await.unwrap()["fdsets"], 0);
}

#[tokio::test]
async fn a_late_reply_answers_no_later_command() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("q");
    scripted(&path, async |mut peer| {
        let command = peer.command().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        peer.answer(&command, json!({"late": true})).await;
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
    let host = Host::boot().await;
    let mut qmp = Qmp::connect(host.path("vm/s1/qmp.sock"), soon(5000)).await.unwrap();
    {
        let command = qmp.execute("query-fdsets", json!({}));
        tokio::select! { biased; _ = command => panic!("answered without a wait"), () = std::future::ready(()) => {} }
    }
    assert!(!qmp.is_usable());
    assert!(matches!(
        qmp.execute("query-fdsets", json!({})).await,
        Err(QmpError::Disconnected { .. })
    ));
}

#[tokio::test]
async fn the_next_client_is_not_confused_by_answers_to_the_last_one() {
    let host = Host::boot().await;
    for _ in 0..50 {
        let mut qmp = Qmp::connect(host.path("vm/s1/qmp.sock"), soon(5000)).await.unwrap();
        let command = qmp.execute("query-fdsets", json!({}));
        tokio::select! { biased; _ = command => panic!("answered at once"), () = std::future::ready(()) => {} }
    }
}

#[tokio::test]
async fn a_peer_that_ends_the_connection_is_told_from_one_that_is_silent() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("q");
    scripted(&path, async |mut peer| {
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
async fn another_protocol_is_no_qmp() {
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
async fn refusals_are_told_in_qemus_words_and_unlisted_commands_are_not_sent() {
    let host = Host::boot().await;
    let mut qmp = Qmp::connect(host.path("vm/s1/qmp.sock"), soon(5000)).await.unwrap();
    let refused = qmp.execute("device_del", json!({"id": "nix"})).await.unwrap_err();
    assert!(
        matches!(&refused, QmpError::Refused { class, .. } if class == "DeviceNotFound"),
        "{refused:?}"
    );
    assert_eq!(refused.refusal(), Some("Device 'nix' not found"));
    assert!(matches!(qmp.execute("frobnicate", json!({})).await, Err(QmpError::Unlisted { .. })));
    assert!(qmp.is_usable());
    let null = std::fs::File::open("/dev/null").unwrap();
    let first = qmp.add_fd(&null, None, "x").await.unwrap();
    let second = qmp.add_fd(&null, Some(first.set), "y").await.unwrap();
    assert_eq!(first.set, second.set);
    assert_ne!(first.fd, second.fd);
}
