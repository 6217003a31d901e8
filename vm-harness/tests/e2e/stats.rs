//! `stats` on real VMs: QEMU and the guest count the I/O of a container on a volume, and its
//! errors.

use rstest::rstest;
use serde_json::Value;
use vm_harness::{Container, QmpProxy, Sandbox, Snapshot, Volume};

use super::{
    MIB,
    hot_unplug::{at, verb},
    sandbox,
};

/// Returns the statistics of the only volume that `stats` reports.
pub(crate) async fn stats(sandbox: &Sandbox, more: &[&str]) -> Value {
    let finished = verb(sandbox.ecr_runtime(), sandbox, "stats", more).run().await;
    assert_eq!(finished.status, 0, "{}{}", finished.stdout, finished.stderr);
    let mut json = finished.json();
    assert_eq!(json["volumes"].as_array().unwrap().len(), 1, "{json}");
    json["volumes"][0].take()
}

/// Returns by how much a counter grew, in QEMU and in the guest.
fn growth(before: &Value, after: &Value, counter: &str) -> [u64; 2] {
    ["/qemu", "/guest"].map(|side| {
        let number = |stats: &Value| {
            let value = stats.pointer(&format!("{side}/{counter}"));
            value.and_then(Value::as_u64).unwrap_or_else(|| panic!("no {side}/{counter}: {stats}"))
        };
        number(after) - number(before)
    })
}

async fn dd(container: &Container, arguments: &str) {
    container.exec(&["sh", "-c", &format!("dd {arguments} 2>&1")]).await;
}

#[rstest]
#[tokio::test]
async fn qemu_and_the_guest_count_the_io_of_a_container(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(4 * MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let before = stats(&sandbox, &[]).await;
    // The kernel has probed the disk, and some of its commands have failed.
    let name = plugged.guest_device();
    let failed = sandbox.observer().shell(&format!("cat /sys/block/{name}/device/ioerr_cnt")).await;
    assert_ne!(failed.trim(), "0x0", "this kernel proves nothing");
    assert_eq!(before["guest"]["scsi_errors"], 0, "{before}");
    assert_eq!(
        (&before["id"], &before["device_path"]),
        (&plugged.volume["id"], &Value::from("/dev/xvda"))
    );
    dd(&container, "if=/dev/xvda of=/dev/null bs=64k count=16 iflag=direct").await;
    dd(&container, "if=/dev/zero of=/dev/xvda bs=4k count=32 oflag=direct conv=notrunc,fsync")
        .await;

    let unchanged = Snapshot::of(&sandbox, &[&container]).await;
    let proxy = QmpProxy::start(&sandbox.qmp_socket()).unwrap();
    let socket = proxy.path();
    let after =
        stats(&sandbox, &["--qmp", socket.to_str().unwrap(), "--volume", plugged.id()]).await;
    assert_eq!(growth(&before, &after, "read/operations"), [16, 16]);
    assert_eq!(growth(&before, &after, "read/bytes"), [MIB, MIB]);
    assert_eq!(growth(&before, &after, "write/bytes"), [32 << 12, 32 << 12]);
    let [qemu_flushes, guest_flushes] = growth(&before, &after, "flush/operations");
    assert!(qemu_flushes >= 1 && guest_flushes >= 1, "{after}");
    // The guest's kernel also counts an fsync as a write of zero bytes.
    let [qemu_writes, guest_writes] = growth(&before, &after, "write/operations");
    assert!(qemu_writes == 32 && (32..=32 + guest_flushes).contains(&guest_writes), "{after}");
    let [in_qemu, in_guest] = growth(&before, &after, "write/total_time_ns");
    assert!(
        0 < in_qemu && in_qemu < in_guest.max(1_000_000) * 2,
        "QEMU's time is part of the guest's: {after}"
    );
    let average = after["qemu"]["write"]["average_time_ns"].as_u64().unwrap();
    let (total, count) =
        (&after["qemu"]["write"]["total_time_ns"], &after["qemu"]["write"]["operations"]);
    assert_eq!(average, total.as_u64().unwrap() / count.as_u64().unwrap());
    let commands = proxy.commands();
    let is_query = |name: &String| {
        name.contains("query-")
            || ["qmp_capabilities", "qom-list", "qom-get"].contains(&name.as_str())
    };
    assert!(commands.iter().all(is_query), "{commands:?}");
    unchanged.assert_unchanged(&sandbox, &[&container]).await;

    // The same numbers in Prometheus' text format.
    let command = sandbox.ecr_runtime().args([
        "block-volume",
        "stats",
        "--prometheus",
        "--sandbox",
        sandbox.id(),
    ]);
    let page = command.run().await;
    let labels = format!(
        r#"sandbox="{}",container="{}",volume="{}",device_path="/dev/xvda""#,
        sandbox.id(),
        container.id(),
        plugged.id()
    );
    for (sample, value) in [
        (
            format!("operations_total{{{labels},operation=\"write\"}}"),
            &after["qemu"]["write"]["operations"],
        ),
        (
            format!("guest_bytes_total{{{labels},operation=\"read\"}}"),
            &after["guest"]["read"]["bytes"],
        ),
        (format!("guest_up{{{labels}}}"), &Value::from(1)),
    ] {
        let line = format!("\necr_block_volume_{sample} {value}\n");
        assert!(page.stdout.contains(&line), "no {line:?} in {}", page.stdout);
    }
}

#[rstest]
#[tokio::test]
async fn errors_of_the_host_are_counted_in_qemu_and_in_the_guest(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(2 * MIB);
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let before = stats(&sandbox, &[]).await;
    // The device is now smaller than QEMU assumes.
    volume.resize(MIB);
    let write = "dd if=/dev/zero of=/dev/xvda bs=4k seek=400 count=1 oflag=direct conv=notrunc";
    container.exec_fails(&["sh", "-c", write]).await;
    let after = stats(&sandbox, &[]).await;
    let failed = after["qemu"]["write"]["failed"].as_u64().unwrap();
    assert!(before["qemu"]["write"]["failed"] == 0 && failed > 0, "{after}");
    let errors = |stats: &Value| stats["guest"]["scsi_errors"].as_u64().unwrap();
    assert!(errors(&before) == 0 && errors(&after) > 0, "{before} {after}");
    assert_eq!(growth(&before, &after, "write/bytes")[0], 0, "a failed request transfers no bytes");

    let no_agent = ["--agent", "unix:///nonexistent/agent.sock"];
    let qemu_only = stats(&sandbox, &no_agent).await;
    assert!(
        qemu_only["guest"].is_null() && qemu_only["qemu"]["write"]["failed"] == failed,
        "{qemu_only}"
    );
}

#[rstest]
#[tokio::test]
async fn all_attachments_have_the_errors_since_the_first_one_without_the_probes_of_a_resize(
    #[future(awt)] sandbox: Sandbox,
) {
    let (first, second) = (sandbox.start_container().await, sandbox.start_container().await);
    let volume = Volume::loop_device(2 * MIB);
    let shared = async |container: &Container| {
        let command = sandbox.hot_plug_command(container, &[(&volume, "/dev/xvda")]);
        command.args(["--shared"]).run().await.succeeded(sandbox.guest()).remove(0)
    };
    let plugged = shared(&first).await;
    volume.resize(MIB);
    let write = "dd if=/dev/zero of=/dev/xvda bs=4k seek=400 count=1 oflag=direct conv=notrunc";
    first.exec_fails(&["sh", "-c", write]).await;
    volume.resize(2 * MIB);
    shared(&second).await;
    let errors = async || -> Vec<u64> {
        let finished = verb(sandbox.ecr_runtime(), &sandbox, "stats", &[]).run().await;
        let json = finished.json();
        let of = |volume: &Value| volume["guest"]["scsi_errors"].as_u64().unwrap();
        json["volumes"].as_array().unwrap().iter().map(of).collect()
    };
    let before = errors().await;
    assert!(before.len() == 2 && before[0] > 0 && before[0] == before[1], "{before:?}");

    // The kernel probes the disk again.
    let path = format!("/sys/block/{}/device/ioerr_cnt", plugged.guest_device());
    let counted = async || sandbox.observer().shell(&format!("cat {path}")).await;
    let failed = counted().await;
    volume.resize(3 * MIB);
    verb(sandbox.ecr_runtime(), &sandbox, "resize", &at(&first, "/dev/xvda"))
        .run()
        .await
        .succeeded(sandbox.guest());
    assert_ne!(counted().await, failed, "this kernel proves nothing");
    assert_eq!(errors().await, before);
}
