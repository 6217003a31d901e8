//! The removal from a QEMU that tells of it in every order there is: `DEVICE_DELETED` early, late,
//! twice, by its path alone, or never. A real QEMU sends one event, some fifty milliseconds after
//! its answer.

mod common;

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use block_volume_qmp::{Qmp, QmpError};
use common::peer::{Peer, scripted};
use host_trigger::{
    Deadline, Error,
    undo::{self, Whose},
    volume::VolumeId,
};
use rstest::rstest;
use serde_json::{Value, json};

const ID: &str = "0123456789abcdef";
const LATE: Duration = Duration::from_millis(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tells {
    Early,
    Late,
    Twice,
    ByPathAlone,
    AfterOthers,
    Never,
}

fn deleted(data: &Value) -> String {
    format!(
        "{}\r\n",
        json!({"timestamp": {"seconds": 1, "microseconds": 2}, "event": "DEVICE_DELETED", "data": data})
    )
}

fn ours() -> String {
    let device = format!("ecrblk-{ID}");
    deleted(&json!({"device": device, "path": format!("/machine/peripheral/{device}")}))
}

async fn tell(peer: &mut Peer, command: &Value, tells: Tells) {
    let path = format!("/machine/peripheral/ecrblk-{ID}");
    if tells == Tells::Early {
        peer.send(&ours()).await;
    }
    peer.answer(command, json!({})).await;
    match tells {
        Tells::Early | Tells::Never => {}
        Tells::Late => {
            tokio::time::sleep(LATE).await;
            peer.send(&ours()).await;
        }
        Tells::Twice => {
            peer.send(&ours()).await;
            peer.send(&ours()).await;
        }
        Tells::ByPathAlone => peer.send(&deleted(&json!({"path": path}))).await,
        Tells::AfterOthers => {
            peer.send(&deleted(
                &json!({"device": "ecrblk-other", "path": "/machine/peripheral/ecrblk-other"}),
            ))
            .await;
            peer.send(&deleted(&json!({"path": format!("{path}/child[0]")}))).await;
            tokio::time::sleep(LATE).await;
            peer.send(&ours()).await;
        }
    }
}

/// Removes a volume from a QEMU that `tells`, and has the device after `device_del` if it `stays`.
/// Returns the commands that change something, and how long it took.
async fn remove(
    tells: Tells,
    stays: bool,
    limit: Duration,
) -> (Result<(), Error>, Vec<String>, Duration) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("q");
    let commands = Arc::new(Mutex::new(Vec::new()));
    let seen = commands.clone();
    scripted(&path, async move |mut peer| {
        let mut device = true;
        loop {
            let command = peer.command().await;
            let name = command["execute"].as_str().unwrap_or_default().to_owned();
            if !name.starts_with("query") && name != "qom-list" {
                seen.lock().unwrap().push(name.clone());
            }
            match name.as_str() {
                "device_del" => {
                    device = stays;
                    tell(&mut peer, &command, tells).await;
                }
                "qom-list" if device => {
                    let ours = json!([{"name": format!("ecrblk-{ID}"), "type": "child<scsi-hd>"}]);
                    peer.answer(&command, ours).await;
                }
                "query-named-block-nodes" => {
                    let node =
                        json!([{"node-name": format!("ecrblk-{ID}-n"), "image": {"virtual-size": 1024}}]);
                    peer.answer(&command, node).await;
                }
                "blockdev-del" => peer.answer(&command, json!({})).await,
                _ => peer.answer(&command, json!([])).await,
            }
        }
    })
    .await;
    let deadline = Deadline::after(limit);
    let mut qmp = Qmp::connect(&path, deadline).await.unwrap();
    let began = Instant::now();
    let removed = undo::remove(&mut qmp, &VolumeId::parse(ID).unwrap(), Whose::Any, deadline).await;
    let commands = commands.lock().unwrap().clone();
    (removed, commands, began.elapsed())
}

#[rstest]
#[case(Tells::Early, false)]
#[case(Tells::Late, true)]
#[case(Tells::Twice, false)]
#[case(Tells::ByPathAlone, false)]
#[case(Tells::AfterOthers, true)]
#[tokio::test]
async fn the_node_goes_when_the_device_is_gone(#[case] tells: Tells, #[case] late: bool) {
    let (removed, commands, took) = remove(tells, false, Duration::from_secs(8)).await;
    removed.unwrap();
    assert_eq!(commands, ["device_del", "blockdev-del"]);
    assert_eq!(took >= LATE, late, "{tells:?}: {took:?}");
    assert!(took < Duration::from_secs(4), "{tells:?}: {took:?}");
}

#[rstest]
#[case::gone(false)]
#[case::there(true)]
#[tokio::test]
async fn without_an_event_what_counts_is_whether_the_device_is_there(#[case] stays: bool) {
    // QEMU is asked when half the time is over.
    let (removed, commands, _) = remove(Tells::Never, stays, Duration::from_secs(1)).await;
    if stays {
        assert!(matches!(removed, Err(Error::Qmp(QmpError::TimedOut { .. }))), "{removed:?}");
        assert_eq!(commands, ["device_del"]);
    } else {
        removed.unwrap();
        assert_eq!(commands, ["device_del", "blockdev-del"]);
    }
}
