//! The kernel's events come in floods: thousands wait in the plugin's socket before that of the
//! disk, or are lost with it.

use rstest::rstest;
use vm_harness::{Sandbox, Snapshot, Volume};

use crate::{
    MIB,
    hot_unplug::{at, unplug},
    sandbox_with_faults, set_guest_faults, wait_for_console,
};

/// An attach that has its socket, and has not looked yet, is held for as long as this is set.
const HELD: &str = "attach-after-lookup=wait\n";

/// The plugin's socket for events, as `/proc/net/netlink` has it.
#[derive(Debug)]
struct Socket {
    /// Bytes that wait in it.
    waiting: u64,
    /// Events that found no room.
    lost: u64,
}

impl Socket {
    async fn of_the_attach(sandbox: &Sandbox) -> Self {
        let table = sandbox.observer().shell("cat /proc/net/netlink").await;
        let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        // NETLINK_KOBJECT_UEVENT; the first socket is the kernel's own.
        let sockets: Vec<_> =
            fields.filter(|fields| fields[1] == "15" && fields[3] != "00000000").collect();
        assert_eq!(sockets.len(), 1, "nobody else listens: {table}");
        let number = |field: usize| sockets[0][field].parse().unwrap();
        Self { waiting: number(4), lost: number(8) }
    }
}

/// `count` events of `length` bytes and some more.
async fn flood(sandbox: &Sandbox, count: u32, length: usize) {
    let event = format!("change 6ba7b810-9dad-11d1-80b4-00c04fd430c8 A={}", "a".repeat(length));
    let script =
        "while [ $i -lt {count} ]; do echo $event > /sys/class/mem/null/uevent; i=$((i+1)); done";
    sandbox
        .observer()
        .shell(&format!("event='{event}'; i=0; {}", script.replace("{count}", &count.to_string())))
        .await;
}

/// Plugs a volume while `flooded` goes on, between the opening of the socket and the look for the
/// disk.
async fn plug_in_flood(sandbox: &Sandbox, flooded: impl Future<Output = ()>) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(4 * MIB);
    let before = Snapshot::of(sandbox, &[&container]).await;
    set_guest_faults(sandbox, HELD).await;
    let seen = sandbox.guest().console().text().matches("fail point attach-after-lookup").count();
    assert_eq!(seen, 0, "one flood a guest");
    let plug =
        sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]).args(["--timeout", "90s"]);
    let (finished, ()) = tokio::join!(plug.run(), async {
        wait_for_console(sandbox, "fail point attach-after-lookup").await;
        flooded.await;
        set_guest_faults(sandbox, "").await;
    });
    finished.succeeded(sandbox.guest());
    assert_eq!(container.read("/dev/xvda", 0..4 * MIB).await, volume.bytes(0..4 * MIB));
    unplug(sandbox, &at(&container, "/dev/xvda")).await;
    before.assert_unchanged(sandbox, &[&container]).await;
}

fn noticed(sandbox: &Sandbox) -> usize {
    sandbox.guest().console().text().matches("uevents were lost").count()
}

#[rstest]
#[tokio::test]
async fn disk_is_found_behind_two_thousand_events_that_wait(
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
    assert_eq!(noticed(&sandbox), 0, "none is lost: the plugin's buffer is larger than that");
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
    assert!(noticed(&sandbox) > 0, "the plugin never heard that events were lost");
}
