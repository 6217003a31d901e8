//! Block jobs, exports and other nodes on a volume's block node: a command that would fail because
//! of them says so before it changes anything, `hot-unplug --wait` awaits their end by events, and
//! `list` shows what a mirror has moved a volume to.

use std::time::Duration;

use crate::common::{Host, RunOutput, run, volume::Image};
use host_trigger::{
    Deadline,
    ops::{recovery::Action, volume::State},
    output::envelope::Outcome,
};
use rstest::rstest;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const C1: [&str; 4] = ["--container", "c1", "--device-path", "/dev/xvda"];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&C1[..], more].concat()
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    Deadline::after(Duration::from_secs(30)).wait(work).await.expect("it is soon")
}

/// A volume at `/dev/xvda`, and an image in QEMU for copies of it.
struct Setup {
    host: Host,
    image: Image,
    copy: Image,
    id: String,
}

impl Setup {
    async fn new() -> Self {
        let mut host = Host::boot().await;
        let (image, copy) = (Image::of(4 * MIB), Image::of(4 * MIB));
        let plugged = host.plug(image.path(), "/dev/xvda", &[]).await.report();
        let id = plugged.body.volumes[0].id.clone();
        let file = json!({"driver": "file", "filename": copy.path()});
        host.execute("blockdev-add", json!({"driver": "raw", "node-name": "copy", "file": file}))
            .await;
        Self { host, image, copy, id }
    }

    fn node(&self) -> String {
        format!("ecrblk-{}-n", self.id)
    }

    /// Begins a backup that lasts, a mirror or an export.
    async fn use_node(&mut self, user: &str) {
        let node = self.node();
        let (command, arguments) = match user {
            "backup" => (
                "blockdev-backup",
                json!({"job-id": "b1", "device": node, "target": "copy", "sync": "full", "speed": 1}),
            ),
            "mirror" => (
                "blockdev-mirror",
                json!({"job-id": "m1", "device": node, "target": "copy", "sync": "full"}),
            ),
            "export" => {
                let address = json!({"type": "unix", "data": {"path": self.host.path("nbd")}});
                self.host.execute("nbd-server-start", json!({"addr": address})).await;
                ("block-export-add", json!({"type": "nbd", "id": "e1", "node-name": node}))
            }
            _ => (
                "blockdev-add",
                json!({"driver": "raw", "node-name": "top", "read-only": true, "file": node}),
            ),
        };
        self.host.execute(command, arguments).await;
    }

    async fn end_use(&mut self, user: &str) {
        let (command, arguments) = match user {
            "backup" => ("block-job-cancel", json!({"device": "b1"})),
            "mirror" => ("block-job-cancel", json!({"device": "m1"})),
            "export" => ("block-export-del", json!({"id": "e1"})),
            _ => ("blockdev-del", json!({"node-name": "top"})),
        };
        self.host.execute(command, arguments).await;
    }

    /// Waits until a run has connected to QEMU and asked for the block jobs.
    async fn asked_for_jobs(&self, times: usize) {
        let asked = |command: &Value| command["execute"] == "query-block-jobs";
        soon(async {
            while self.host.commands().iter().filter(|command| asked(command)).count() < times {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    fn unplug(&self, wait: &str) -> tokio::task::JoinHandle<RunOutput> {
        let mut command = self.host.verb_command("hot-unplug", &with(&["--wait", wait]));
        tokio::spawn(async move { run(&mut command).await })
    }
}

#[rstest]
#[case("backup", "block job b1 (backup, running)")]
#[case("mirror", "block job m1 (mirror, ")]
#[case("export", "export e1 (nbd, active)")]
#[case("node", "block node top (raw)")]
#[tokio::test]
async fn a_node_in_use_is_refused_before_anything_changes(#[case] user: &str, #[case] named: &str) {
    let mut setup = Setup::new().await;
    setup.use_node(user).await;
    let changes = setup.host.changes();
    for (verb, more) in [
        ("hot-unplug", &["--dry-run"][..]),
        ("hot-unplug", &["--dry-run", "--wait", "60s"]),
        ("hot-unplug", &[]),
        ("hot-unplug", &["--force"]),
        ("hot-unplug", &["--force", "--without-guest"]),
        ("hot-unplug", &["--force", "--without-guest", "--dry-run"]),
        ("hot-unplug", &["--wait", "100ms"]),
        ("resize", &["--size", "8MiB", "--dry-run"]),
        ("resize", &["--size", "8MiB"]),
    ] {
        let ran = setup.host.verb(verb, &with(more)).await;
        ran.assert_fails("busy_in_qemu", 5);
        assert!(ran.failure().message.contains(named), "{ran:?}");
    }
    assert_eq!(setup.host.changes(), changes);
    assert!(setup.host.agent.detached.lock().unwrap().is_empty());
    assert_eq!(setup.image.size(), 4 * MIB);
    // What needs no node of its own goes on.
    setup.host.verb("throttle", &with(&["--iops", "100"])).await.report();
    setup.host.verb("resize", &C1).await.report();
    let listed = setup.host.verb("list", &[]).await.listing().body.volumes;
    assert_eq!((listed[0].state, &listed[0].volume.moved_to), (State::Attached, &None));

    setup.end_use(user).await;
    let report = setup.host.verb("hot-unplug", &with(&["--wait", "60s"])).await.report();
    assert_eq!(report.result, Outcome::Detached);
}

#[rstest]
#[case("backup")]
#[case("mirror")]
#[case("export")]
#[tokio::test]
async fn the_end_of_the_use_is_awaited_by_its_event(#[case] user: &str) {
    let mut setup = Setup::new().await;
    setup.use_node(user).await;
    let unplug = setup.unplug("60s");
    setup.asked_for_jobs(1).await;
    setup.end_use(user).await;
    let report = soon(unplug).await.unwrap().report();
    assert_eq!((report.result, &report.body.volumes[0].id), (Outcome::Detached, &setup.id));
    assert!(setup.host.agent.attached_paths().is_empty());
}

#[tokio::test]
async fn a_run_that_waits_for_a_job_lets_others_go_on() {
    let mut setup = Setup::new().await;
    setup.use_node("backup").await;
    let unplug = setup.unplug("60s");
    setup.asked_for_jobs(1).await;
    let quickly = ["--timeout", "10s"];
    for turns in 2..5 {
        assert_eq!(setup.host.verb("list", &quickly).await.listing().body.volumes.len(), 1);
        setup.asked_for_jobs(turns).await;
    }
    let other = Image::of(MIB);
    setup.host.plug(other.path(), "/dev/xvdb", &quickly).await.report();
    setup.end_use("backup").await;
    assert_eq!(soon(unplug).await.unwrap().report().result, Outcome::Detached);
    assert_eq!(setup.host.agent.attached_paths(), ["/dev/xvdb"]);
}

#[tokio::test]
async fn two_runs_wait_for_the_same_job() {
    let mut setup = Setup::new().await;
    setup.use_node("backup").await;
    let (first, second) = (setup.unplug("60s"), setup.unplug("60s"));
    setup.asked_for_jobs(2).await;
    setup.end_use("backup").await;
    let (first, second) = soon(async { tokio::join!(first, second) }).await;
    let results = [first.unwrap().report().result, second.unwrap().report().result];
    assert!(results.contains(&Outcome::Detached), "{results:?}");
}

#[tokio::test]
async fn repair_leaves_a_volume_whose_node_is_in_use() {
    let mut setup = Setup::new().await;
    setup.use_node("export").await;
    setup.host.agent.gone_containers.lock().unwrap().push("c1".to_owned());
    let changes = setup.host.changes();
    for more in [&["--dry-run"][..], &[]] {
        let repaired = setup.host.verb("repair", more).await.repaired();
        assert_eq!(repaired.error.unwrap().exit_code, 8);
        let row = &repaired.body.volumes[0];
        assert_eq!(row.action, Action::Failed);
        assert!(row.detail.contains("in use in QEMU: export e1"), "{row:?}");
    }
    assert_eq!(setup.host.changes(), changes);
    setup.end_use("export").await;
    assert_eq!(
        setup.host.verb("repair", &[]).await.repaired().body.volumes[0].action,
        Action::RolledBack
    );
}

#[tokio::test]
async fn a_volume_that_was_mirrored_away_is_shown_where_it_is() {
    let mut setup = Setup::new().await;
    setup.use_node("mirror").await;
    while setup.host.await_event("JOB_STATUS_CHANGE").await.data["status"] != "ready" {}
    setup.host.execute("block-job-complete", json!({"device": "m1"})).await;
    setup.host.await_event("BLOCK_JOB_COMPLETED").await;
    let listed = setup.host.verb("list", &[]).await.listing().body.volumes.remove(0);
    assert_eq!(listed.volume.moved_to.as_deref(), Some("copy"));
    assert_eq!(listed.volume.source_device, setup.copy.path());
    assert_eq!(listed.volume.source, setup.copy.path());
    assert_eq!(listed.state, State::Attached);
    let more = with(&["--size", "8MiB"]);
    setup.host.verb("resize", &more).await.assert_fails("moved_in_qemu", 4);

    let report = setup.host.verb("hot-unplug", &C1).await.report();
    assert_eq!(report.body.volumes[0].source_device, setup.copy.path());
    // The copy is the other program's.
    setup.host.execute("blockdev-del", json!({"node-name": "copy"})).await;
}
