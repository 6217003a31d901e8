//! The removal of a device from a QEMU that sends `DEVICE_DELETED` early, late, twice, with the
//! path only, or never. A real QEMU sends one event, some fifty milliseconds after its reply.

#[path = "../../qmp/tests/common/scripted_peer.rs"]
mod scripted_peer;

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use block_volume_qmp::{Qmp, QmpError};
use host_trigger::{
    Deadline, Error,
    qemu::removal::{self, Owner},
    volume_id::VolumeId,
};
use rstest::rstest;
use scripted_peer::ScriptedPeer;
use serde_json::{Value, json};

const ID: &str = "0123456789abcdef";
const LATE: Duration = Duration::from_millis(300);

/// When and how QEMU sends `DEVICE_DELETED`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Early,
    Late,
    Twice,
    WithPathOnly,
    AfterOthers,
    Never,
}

fn deleted(data: &Value) -> String {
    format!(
        "{}\r\n",
        json!({"timestamp": {"seconds": 1, "microseconds": 2}, "event": "DEVICE_DELETED", "data": data})
    )
}

/// The event of our device.
fn our_device_deleted() -> String {
    let device = format!("ecrblk-{ID}");
    deleted(&json!({"device": device, "path": format!("/machine/peripheral/{device}")}))
}

async fn reply_to_device_del(peer: &mut ScriptedPeer, command: &Value, event: Event) {
    let path = format!("/machine/peripheral/ecrblk-{ID}");
    if event == Event::Early {
        peer.send(&our_device_deleted()).await;
    }
    peer.reply(command, json!({})).await;
    match event {
        Event::Early | Event::Never => {}
        Event::Late => {
            tokio::time::sleep(LATE).await;
            peer.send(&our_device_deleted()).await;
        }
        Event::Twice => {
            peer.send(&our_device_deleted()).await;
            peer.send(&our_device_deleted()).await;
        }
        Event::WithPathOnly => peer.send(&deleted(&json!({"path": path}))).await,
        Event::AfterOthers => {
            peer.send(&deleted(
                &json!({"device": "ecrblk-other", "path": "/machine/peripheral/ecrblk-other"}),
            ))
            .await;
            peer.send(&deleted(&json!({"path": format!("{path}/child[0]")}))).await;
            tokio::time::sleep(LATE).await;
            peer.send(&our_device_deleted()).await;
        }
    }
}

/// Removes a volume from a QEMU that sends `event`. The device stays in QEMU after `device_del` if
/// `stays`. Returns the result, the commands that change something, and how long it took.
async fn remove(
    event: Event,
    stays: bool,
    limit: Duration,
) -> (Result<(), Error>, Vec<String>, Duration) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("q");
    let commands = Arc::new(Mutex::new(Vec::new()));
    let seen = commands.clone();
    scripted_peer::start(&path, async move |mut peer| {
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
                    reply_to_device_del(&mut peer, &command, event).await;
                }
                "qom-list" if device => {
                    let ours = json!([{"name": format!("ecrblk-{ID}"), "type": "child<scsi-hd>"}]);
                    peer.reply(&command, ours).await;
                }
                "query-named-block-nodes" => {
                    let node =
                        json!([{"node-name": format!("ecrblk-{ID}-n"), "image": {"virtual-size": 1024}}]);
                    peer.reply(&command, node).await;
                }
                "blockdev-del" => peer.reply(&command, json!({})).await,
                _ => peer.reply(&command, json!([])).await,
            }
        }
    })
    .await;
    let deadline = Deadline::after(limit);
    let mut qmp = Qmp::connect(&path, deadline).await.unwrap();
    let began = Instant::now();
    let removed =
        removal::remove(&mut qmp, &VolumeId::parse(ID).unwrap(), Owner::Any, deadline).await;
    let commands = commands.lock().unwrap().clone();
    (removed, commands, began.elapsed())
}

#[rstest]
#[case(Event::Early, false)]
#[case(Event::Late, true)]
#[case(Event::Twice, false)]
#[case(Event::WithPathOnly, false)]
#[case(Event::AfterOthers, true)]
#[tokio::test]
async fn the_block_node_is_removed_when_the_device_is_gone(
    #[case] event: Event,
    #[case] late: bool,
) {
    let (removed, commands, took) = remove(event, false, Duration::from_secs(8)).await;
    removed.unwrap();
    assert_eq!(commands, ["device_del", "blockdev-del"]);
    assert_eq!(took >= LATE, late, "{event:?}: {took:?}");
    assert!(took < Duration::from_secs(4), "{event:?}: {took:?}");
}

#[rstest]
#[case::gone(false)]
#[case::present(true)]
#[tokio::test]
async fn without_an_event_the_list_of_devices_is_decisive(#[case] stays: bool) {
    // QEMU is queried after half of the time.
    let (removed, commands, _) = remove(Event::Never, stays, Duration::from_secs(1)).await;
    if stays {
        assert!(matches!(removed, Err(Error::Qmp(QmpError::TimedOut { .. }))), "{removed:?}");
        assert_eq!(commands, ["device_del"]);
    } else {
        removed.unwrap();
        assert_eq!(commands, ["device_del", "blockdev-del"]);
    }
}
