//! Floods of kernel events (uevents): thousands wait in the plugin's socket before the event of the
//! disk, or are lost together with it.

use rstest::rstest;
use vm_harness::{Sandbox, Snapshot, Volume};

use crate::{
    MIB,
    hot_unplug::{at, unplug},
    sandbox_with_faults, set_guest_faults, wait_for_console,
};

/// While this fault point is set, an attach waits after it opened its socket and before it looks
/// for the disk.
const HELD: &str = "attach-after-lookup=wait\n";

/// The plugin's socket for uevents, from `/proc/net/netlink`.
#[derive(Debug)]
struct Socket {
    /// Bytes in the receive queue.
    waiting: u64,
    /// Events that were dropped because the queue was full.
    lost: u64,
}

impl Socket {
    async fn of_the_attach(sandbox: &Sandbox) -> Self {
        let table = sandbox.observer().shell("cat /proc/net/netlink").await;
        let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        // Protocol 15 is NETLINK_KOBJECT_UEVENT. The first socket is the kernel's own.
        let sockets: Vec<_> =
            fields.filter(|fields| fields[1] == "15" && fields[3] != "00000000").collect();
        assert_eq!(sockets.len(), 1, "no other process listens: {table}");
        let number = |field: usize| sockets[0][field].parse().unwrap();
        Self { waiting: number(4), lost: number(8) }
    }
}

/// Sends `count` events, each slightly longer than `length` bytes.
async fn flood(sandbox: &Sandbox, count: u32, length: usize) {
    let event = format!("change 6ba7b810-9dad-11d1-80b4-00c04fd430c8 A={}", "a".repeat(length));
    let script =
        "while [ $i -lt {count} ]; do echo $event > /sys/class/mem/null/uevent; i=$((i+1)); done";
    sandbox
        .observer()
        .shell(&format!("event='{event}'; i=0; {}", script.replace("{count}", &count.to_string())))
        .await;
}

/// Plugs a volume. `flooded` runs after the plugin opened its socket and before it looks for the
/// disk.
async fn plug_in_flood(sandbox: &Sandbox, flooded: impl Future<Output = ()>) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(4 * MIB);
    let before = Snapshot::of(sandbox, &[&container]).await;
    set_guest_faults(sandbox, HELD).await;
    let seen = sandbox.guest().console().text().matches("fault point attach-after-lookup").count();
    assert_eq!(seen, 0, "only one flood per guest");
    let plug =
        sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]).args(["--timeout", "90s"]);
    let (finished, ()) = tokio::join!(plug.run(), async {
        wait_for_console(sandbox, "fault point attach-after-lookup").await;
        flooded.await;
        set_guest_faults(sandbox, "").await;
    });
    finished.succeeded(sandbox.guest());
    assert_eq!(container.read("/dev/xvda", 0..4 * MIB).await, volume.bytes(0..4 * MIB));
    unplug(sandbox, &at(&container, "/dev/xvda")).await;
    before.assert_unchanged(sandbox, &[&container]).await;
}

fn loss_reports(sandbox: &Sandbox) -> usize {
    sandbox.guest().console().text().matches("uevents were lost").count()
}

#[rstest]
#[tokio::test]
async fn disk_is_found_behind_two_thousand_queued_events(
    #[future(awt)] sandbox_with_faults: Sandbox,
) {
    let sandbox = sandbox_with_faults;
    plug_in_flood(&sandbox, async {
        flood(&sandbox, 2000, 1).await;
        let socket = Socket::of_the_attach(&sandbox).await;
        println!("{socket:?}");
        assert!(socket.waiting > 2000 * 256 && socket.lost == 0, "{socket:?}");
    })
    .await;
    assert_eq!(loss_reports(&sandbox), 0, "no event is lost: the plugin's buffer holds them all");
}

#[rstest]
#[tokio::test]
async fn disk_is_found_although_its_event_is_lost_with_a_thousand_others(
    #[future(awt)] sandbox_with_faults: Sandbox,
) {
    let sandbox = sandbox_with_faults;
    plug_in_flood(&sandbox, async {
        let mut socket = Socket::of_the_attach(&sandbox).await;
        while socket.lost <= 1024 {
            flood(&sandbox, 1000, 1800).await;
            socket = Socket::of_the_attach(&sandbox).await;
        }
        println!("{socket:?}");
    })
    .await;
    assert!(loss_reports(&sandbox) > 0, "the plugin did not notice that events were lost");
}
