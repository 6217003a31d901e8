//! Commands that are sent together: with a real QEMU, and with scripted peers that read slowly,
//! reply wrongly or end.

mod common;

use std::{
    fs::File,
    path::PathBuf,
    time::{Duration, Instant},
};

use block_volume_qmp::{Command, Deadline, PassedFd, Qmp, QmpError, Replies};
use common::{qemu::Qemu, scripted_peer};
use nix::sys::socket::{setsockopt, sockopt};
use rstest::rstest;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

fn soon(millis: u64) -> Deadline {
    Deadline::after(Duration::from_millis(millis))
}

/// Files of different lengths, so that what QEMU opens can be told apart.
struct Images {
    _directory: tempfile::TempDir,
    files: Vec<(PathBuf, File)>,
}

impl Images {
    fn new(count: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = |index: usize| {
            let path = directory.path().join(index.to_string());
            let mut options = File::options();
            let file = options.read(true).write(true).create_new(true).open(&path).unwrap();
            file.set_len(length(index)).unwrap();
            (path, file)
        };
        let files = (0..count).map(file).collect();
        Self { _directory: directory, files }
    }

    /// The commands that add each file as a block node, by a set of its own.
    fn commands(&self) -> Vec<Command<'_>> {
        let commands = self.files.iter().enumerate().flat_map(|(index, (_, file))| {
            let node = json!({
                "driver": "file", "node-name": format!("n{index}"),
                "filename": format!("/dev/fdset/{}", set(index)),
            });
            let opaque = "x".repeat(300);
            [Command::add_fd(file, Some(set(index)), &opaque), Command::new("blockdev-add", node)]
        });
        commands.collect()
    }
}

fn length(index: usize) -> u64 {
    512 * (1 + u64::try_from(index).unwrap())
}

fn set(index: usize) -> u64 {
    (1 << 30) + length(index)
}

#[tokio::test]
async fn each_of_64_volumes_in_one_call_gets_its_own_descriptor() {
    let (qemu, images) = (Qemu::start().await, Images::new(64));
    let mut qmp = Qmp::connect(qemu.socket(), soon(30_000)).await.unwrap();
    let mut replies = qmp.send_all(&images.commands()).await;
    for (index, (path, _)) in images.files.iter().enumerate() {
        let passed: PassedFd = replies.read().unwrap();
        assert_eq!(passed.set, set(index));
        assert_eq!(qemu.file_of(passed.fd), *path);
        replies.read::<Value>().unwrap();
    }
    let nodes = qmp.execute("query-named-block-nodes", json!({})).await.unwrap();
    for node in nodes.as_array().unwrap() {
        let index: usize = node["node-name"].as_str().unwrap()[1..].parse().unwrap();
        assert_eq!(node["image"]["virtual-size"], length(index));
    }
    assert_eq!(nodes.as_array().unwrap().len(), 64);
}

#[tokio::test]
async fn a_set_that_exists_is_joined_and_its_newest_descriptor_is_used() {
    let (qemu, images) = (Qemu::start().await, Images::new(2));
    let mut qmp = Qmp::connect(qemu.socket(), soon(30_000)).await.unwrap();
    let foreign = &images.files[0].1;
    qmp.add_fd(foreign, Some(set(1)), "foreign").await.unwrap();
    let mut replies = qmp.send_all(&images.commands()[2..]).await;
    assert_eq!(replies.read::<PassedFd>().unwrap().set, set(1));
    replies.read::<Value>().unwrap();
    let nodes = qmp.execute("query-named-block-nodes", json!({})).await.unwrap();
    assert_eq!(nodes[0]["image"]["virtual-size"], length(1));
}

#[tokio::test]
async fn an_error_in_the_middle_concerns_its_own_command() {
    let qemu = Qemu::start().await;
    let mut qmp = Qmp::connect(qemu.socket(), soon(30_000)).await.unwrap();
    let status = || Command::new("query-status", json!({}));
    let missing = Command::new("blockdev-del", json!({"node-name": "missing"}));
    let mut replies = qmp.send_all(&[status(), missing, status()]).await;
    assert_eq!(replies.read::<Value>().unwrap()["running"], false);
    let refused = replies.read::<Value>().unwrap_err();
    assert!(refused.refusal().unwrap().contains("Failed to find node"), "{refused}");
    assert_eq!(replies.read::<Value>().unwrap()["running"], false);
    assert!(qmp.is_usable());
}

#[tokio::test]
async fn a_qemu_that_dies_in_the_middle_replies_to_the_commands_before() {
    let (mut qemu, images) = (Qemu::start().await, Images::new(64));
    let mut qmp = Qmp::connect(qemu.socket(), soon(30_000)).await.unwrap();
    let mut commands = images.commands();
    commands.insert(64, Command::new("quit", json!({})));
    let mut replies = qmp.send_all(&commands).await;
    for _ in 0..32 {
        replies.read::<PassedFd>().unwrap();
        replies.read::<Value>().unwrap();
    }
    let rest: Vec<_> = (64..commands.len()).map(|_| replies.read::<Value>()).collect();
    // QEMU may execute some more commands before it ends.
    assert!(rest.last().unwrap().as_ref().is_err_and(QmpError::ends_connection), "{rest:?}");
    assert!(!qmp.is_usable());
    qemu.kill();
}

/// Runs `count` commands against a peer that follows `script`.
async fn run(
    count: usize,
    time: u64,
    script: impl AsyncFnOnce(scripted_peer::ScriptedPeer, Vec<Value>) + Send + 'static,
) -> (Replies, Qmp) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("q");
    scripted_peer::start_local(&path, async move |mut peer| {
        let mut commands = Vec::new();
        while commands.len() < count {
            commands.push(peer.command().await);
        }
        script(peer, commands).await;
    });
    let mut qmp = Qmp::connect(&path, soon(20_000)).await.unwrap();
    qmp.set_deadline(soon(time));
    let commands = vec![Command::new("query-status", json!({})); count];
    (qmp.send_all(&commands).await, qmp)
}

#[tokio::test]
async fn no_reply_is_awaited_before_all_commands_are_sent() {
    let (mut replies, qmp) = run(3, 20_000, async |mut peer, commands| {
        for (number, command) in commands.iter().enumerate() {
            peer.reply(command, json!(number)).await;
        }
        std::future::pending::<()>().await;
    })
    .await;
    for number in 0..3 {
        assert_eq!(replies.read::<usize>().unwrap(), number);
    }
    assert!(qmp.is_usable());
}

#[rstest]
#[case::a_reply_too_few(&[0, 2])]
#[case::swapped(&[0, 2, 1])]
#[case::twice(&[0, 0, 2])]
#[tokio::test]
async fn replies_in_another_order_are_not_taken_for_those_to_other_commands(
    #[case] order: &'static [usize],
) {
    let (mut replies, qmp) = run(3, 300, async move |mut peer, commands| {
        for &index in order {
            peer.reply(&commands[index], json!(index)).await;
        }
        std::future::pending::<()>().await;
    })
    .await;
    assert_eq!(replies.read::<usize>().unwrap(), 0);
    let second = replies.read::<usize>();
    let swapped = order.contains(&1);
    assert_eq!(second.is_ok(), swapped, "{second:?}");
    let last = replies.read::<usize>().unwrap_err();
    let is_late = matches!(last, QmpError::TimedOut { .. });
    assert!(last.ends_connection() && is_late == swapped, "{last}");
    assert!(!qmp.is_usable());
}

#[tokio::test]
async fn a_peer_that_ends_in_the_middle_leaves_the_replies_that_it_sent() {
    let (mut replies, qmp) = run(3, 20_000, async |mut peer, commands| {
        peer.reply(&commands[0], json!(0)).await;
        peer.0.get_mut().shutdown().await.unwrap();
    })
    .await;
    assert_eq!(replies.read::<usize>().unwrap(), 0);
    for _ in 0..2 {
        let lost = replies.read::<usize>().unwrap_err();
        assert!(matches!(lost, QmpError::Disconnected { .. }), "{lost}");
    }
    assert!(!qmp.is_usable());
}

/// The peer has small buffers, reads nothing while a reply of its own is not taken, and sends long
/// replies: each side could wait for the other.
#[tokio::test]
async fn a_peer_that_reads_slowly_gets_256_volumes() {
    const VOLUMES: usize = 256;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("q");
    scripted_peer::start_local(&path, async |mut peer| {
        setsockopt(peer.0.get_ref(), sockopt::SndBuf, &4096).unwrap();
        let long = "x".repeat(8000);
        for number in 1.. {
            let command = peer.command().await;
            let fd = json!({"fdset-id": number, "fd": 1, "more": long});
            peer.reply(&command, fd).await;
        }
    });
    let mut qmp = Qmp::connect(&path, soon(30_000)).await.unwrap();
    let images = Images::new(VOLUMES);
    let start = Instant::now();
    let mut replies = qmp.send_all(&images.commands()).await;
    for number in 0..2 * VOLUMES {
        let passed: PassedFd = replies.read().unwrap();
        assert_eq!(passed.set, 1 + u64::try_from(number).unwrap());
    }
    println!("{:?}", start.elapsed());
}

#[tokio::test]
async fn a_peer_that_stops_reading_is_noticed_at_the_deadline() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("q");
    scripted_peer::start_local(&path, async |_peer| std::future::pending::<()>().await);
    let mut qmp = Qmp::connect(&path, soon(20_000)).await.unwrap();
    qmp.set_deadline(soon(200));
    let images = Images::new(512);
    let mut replies = qmp.send_all(&images.commands()).await;
    assert!(matches!(replies.read::<PassedFd>(), Err(QmpError::TimedOut { .. })));
}
