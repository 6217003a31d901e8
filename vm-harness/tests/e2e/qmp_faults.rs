//! A real QEMU behind a proxy that delays, drops, adds or cuts messages. Unusual but valid messages
//! do no harm, a hot-plug that fails is rolled back, and an unplug depends on the objects that QEMU
//! has, not on events.

use std::time::Duration;

use rstest::rstest;
use serde_json::{Value, json};
use vm_harness::{
    Container, EcrRuntime, Fault, Finished, QmpProxy, Rule, Sandbox, Snapshot, Volume, command,
    event, greeting, reply_to,
};

use super::{
    MIB,
    host_failures::claim_is_free,
    hot_unplug::{at, unplug, verb},
    sandbox,
};

const LATE: Duration = Duration::from_millis(800);

/// Runs `call` with QEMU behind a proxy with these rules, and checks that each rule applied. Also
/// returns the commands that were sent.
pub(crate) async fn through_proxy(
    sandbox: &Sandbox,
    call: EcrRuntime,
    rules: Vec<Rule>,
) -> (Finished, Vec<String>) {
    let proxy = QmpProxy::start_with(&sandbox.qmp_socket(), rules).unwrap();
    let finished = call.args(["--qmp", proxy.path().to_str().unwrap()]).run().await;
    // If a rule did not apply, the command ended before. Its output shows why.
    println!("{}{}", finished.stdout, finished.stderr);
    proxy.assert_all_met();
    (finished, proxy.commands())
}

/// Checks that the hot-plug of `volume` at /dev/xvda worked, and that it can be unplugged.
pub(crate) async fn assert_plugged(
    finished: &Finished,
    what: &str,
    sandbox: &Sandbox,
    container: &Container,
    volume: &Volume,
) {
    assert_eq!(finished.status, 0, "{what}: {}{}", finished.stdout, finished.stderr);
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536), "{what}");
    unplug(sandbox, &at(container, "/dev/xvda")).await;
}

/// A short `--timeout` that is still long enough for a hot-plug on this machine.
pub(crate) fn short(sandbox: &Sandbox) -> [String; 2] {
    ["--timeout".to_owned(), format!("{}s", sandbox.guest().time_scale().max(2))]
}

/// A reply to another client, which must not be taken for a reply to this one.
fn reply_to_another_client() -> Fault {
    Fault::Inject(b"{\"return\": {\"to\": \"another\"}, \"id\": 1}\r\n".to_vec())
}

#[rstest]
#[tokio::test]
async fn unusual_but_valid_messages_do_not_break_a_plug(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let unknown = || Fault::inject_event("NEVER_HEARD_OF", &json!({ "device": "x", "return": 1 }));
    for (what, rules) in [
        ("late greeting", vec![Rule::on(greeting(), Fault::Stall(LATE))]),
        (
            "replies in pieces",
            vec![
                Rule::on(greeting(), Fault::Split(1)),
                Rule::on(reply_to("query-pci"), Fault::Split(64)),
                Rule::on(reply_to("blockdev-add"), Fault::Split(1)),
                Rule::on(reply_to("device_add"), Fault::Split(3)),
            ],
        ),
        (
            "unknown events",
            vec![
                Rule::on(command("blockdev-add"), unknown()),
                Rule::on(command("device_add"), unknown()),
                Rule::on(reply_to("add-fd"), unknown()),
            ],
        ),
        (
            "duplicated replies",
            vec![
                Rule::on(reply_to("add-fd"), Fault::Twice).each(),
                Rule::on(reply_to("blockdev-add"), Fault::Twice),
                Rule::on(reply_to("device_add"), Fault::Twice),
            ],
        ),
        (
            "replies to another client",
            vec![
                Rule::on(greeting(), reply_to_another_client()),
                // Right before the reply that has the numbers of the descriptor.
                Rule::on(command("add-fd"), reply_to_another_client()),
                Rule::on(reply_to("device_add"), reply_to_another_client()),
            ],
        ),
        (
            "late replies",
            vec![
                Rule::on(reply_to("blockdev-add"), Fault::Stall(LATE)),
                Rule::on(reply_to("device_add"), Fault::Stall(LATE)),
            ],
        ),
    ] {
        let call = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]);
        let (finished, _) = through_proxy(&sandbox, call, rules).await;
        assert_plugged(&finished, what, &sandbox, &container, &volume).await;
        before.assert_unchanged(&sandbox, &[&container]).await;
    }
}

#[rstest]
#[tokio::test]
async fn plug_that_loses_qemu_in_the_middle_is_rolled_back(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let other_driver =
        || Fault::edit_json(|command| command["arguments"]["driver"] = json!("no-such-driver"));
    for (rule, status, reason) in [
        // QEMU executed the command, and the reply is lost.
        (Rule::on(reply_to("add-fd"), Fault::Cut), 14, "qmp_lost"),
        (Rule::on(reply_to("blockdev-add"), Fault::Cut).nth(2), 14, "qmp_lost"),
        (Rule::on(reply_to("device_add"), Fault::Cut), 14, "qmp_lost"),
        (Rule::on(reply_to("device_add"), Fault::CutAfter(9)), 14, "qmp_lost"),
        // The guest has the volume by then: it is asked to release it first.
        (Rule::on(reply_to("add-fd"), Fault::Cut).nth(2), 14, "qmp_lost"),
        // QEMU did not receive the command.
        (Rule::on(command("device_add"), Fault::Cut), 14, "qmp_lost"),
        (Rule::on(command("device_add"), Fault::CutAfter(40)), 14, "qmp_lost"),
        // QEMU refuses, once with a descriptor added, and once with a block node added, too.
        (Rule::on(command("blockdev-add"), other_driver()).nth(2), 1, "qemu_refused"),
        (Rule::on(command("device_add"), other_driver()), 1, "qemu_refused"),
    ] {
        let what = format!("{rule}");
        let call = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]);
        let (finished, _) = through_proxy(&sandbox, call, vec![rule]).await;
        let (reported, message) = finished.failed_with(status);
        assert_eq!(reported, reason, "{what}: {message}");
        before.assert_unchanged(&sandbox, &[&container]).await;
        assert!(claim_is_free(&volume), "{what}");
    }
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
}

#[rstest]
#[tokio::test]
async fn plug_whose_reply_never_comes_times_out_and_is_rolled_back(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    for rule in [
        Rule::on(greeting(), Fault::Drop).each(),
        Rule::on(reply_to("device_add"), Fault::Drop),
        // The reply comes long after the connection was closed.
        Rule::on(reply_to("blockdev-add"), Fault::Delay(Duration::from_secs(60))).nth(2),
    ] {
        let what = rule.to_string();
        let call =
            sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]).args(short(&sandbox));
        let (finished, _) = through_proxy(&sandbox, call, vec![rule]).await;
        let (reason, message) = finished.failed_with(7);
        assert_eq!(reason, "timed_out", "{what}: {message}");
        before.assert_unchanged(&sandbox, &[&container]).await;
        assert!(claim_is_free(&volume), "{what}");
    }
}

/// A real QEMU sends the event once, about fifty milliseconds after its reply.
#[rstest]
#[tokio::test]
async fn unplug_succeeds_whenever_and_however_the_event_arrives(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let deleted = || event("DEVICE_DELETED");
    let of_another =
        || json!({ "device": "ecrblk-other", "path": "/machine/peripheral/ecrblk-other" });
    let path_alone = || {
        Fault::edit_json(|event| {
            let data = event["data"].as_object_mut().unwrap();
            assert!(data.remove("device").is_some() && data.contains_key("path"));
        })
    };
    for (what, rules, at_least) in [
        ("early", vec![Rule::on(reply_to("device_del"), Fault::Behind(deleted()))], Duration::ZERO),
        ("late", vec![Rule::on(deleted(), Fault::Delay(LATE))], LATE),
        ("twice", vec![Rule::on(deleted(), Fault::Twice)], Duration::ZERO),
        ("by its path alone", vec![Rule::on(deleted(), path_alone())], Duration::ZERO),
        (
            "after the event of another device",
            vec![
                Rule::on(
                    command("device_del"),
                    Fault::inject_event("DEVICE_DELETED", &of_another()),
                ),
                Rule::on(deleted(), Fault::Delay(LATE)),
            ],
            LATE,
        ),
        (
            // QEMU sends this for PCI devices whose guest refuses. Whether the device is removed is
            // decisive.
            "after an error of the guest",
            vec![Rule::on(
                reply_to("device_del"),
                Fault::inject_event("DEVICE_UNPLUG_GUEST_ERROR", &of_another()),
            )],
            Duration::ZERO,
        ),
        (
            "cut after the command",
            vec![Rule::on(reply_to("device_del"), Fault::Cut)],
            Duration::ZERO,
        ),
        (
            "cut before the command",
            vec![Rule::on(command("device_del"), Fault::Cut)],
            Duration::ZERO,
        ),
        (
            "cut before the node is removed",
            vec![Rule::on(command("blockdev-del"), Fault::Cut)],
            Duration::ZERO,
        ),
        (
            "cut after the node was removed",
            vec![Rule::on(reply_to("blockdev-del"), Fault::Cut)],
            Duration::ZERO,
        ),
        (
            "cut after the record was removed",
            vec![Rule::on(reply_to("remove-fd"), Fault::Cut)],
            Duration::ZERO,
        ),
    ] {
        sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
        let (finished, commands) = unplug_through(&sandbox, &container, rules).await;
        assert_eq!(finished.status, 0, "{what}: {}{}", finished.stdout, finished.stderr);
        assert!(finished.elapsed >= at_least, "{what}: {:?}", finished.elapsed);
        if !what.starts_with("cut") {
            let attempts = commands.iter().filter(|command| *command == "blockdev-del").count();
            assert_eq!(attempts, 1, "{what}: the node is free when it is removed: {commands:?}");
            assert_eq!(
                inventories_after_device_del(&commands),
                1,
                "{what}: the event is received: {commands:?}"
            );
        }
        before.assert_unchanged(&sandbox, &[&container]).await;
        assert!(claim_is_free(&volume), "{what}");
    }
}

#[rstest]
#[tokio::test]
async fn unplug_without_an_event_checks_whether_the_device_exists(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let lost = Rule::on(event("DEVICE_DELETED"), Fault::Drop);
    let (finished, commands) = unplug_through(&sandbox, &container, vec![lost]).await;
    assert_eq!(finished.status, 0, "{}{}", finished.stdout, finished.stderr);
    let after = after_device_del(&commands);
    assert_eq!(
        inventories_after_device_del(&commands),
        2,
        "it checks before the node is removed: {commands:?}"
    );
    assert!(
        !after.contains(&"qmp_capabilities".to_owned()),
        "one connection is enough: {commands:?}"
    );
    before.assert_unchanged(&sandbox, &[&container]).await;

    // QEMU never receives the command: the device stays, and that is reported.
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let suppress = |name| {
        let replace = |command: &mut Value| {
            command["execute"] = json!("query-status");
            command["arguments"] = json!({});
        };
        vec![Rule::on(command(name), Fault::edit_json(replace)).each()]
    };
    let (finished, _) = unplug_through(&sandbox, &container, suppress("device_del")).await;
    let (reason, message) = finished.failed_with(8);
    assert!(reason == "incomplete" && message.contains("device_del"), "{message}");
    unplug(&sandbox, &at(&container, "/dev/xvda")).await;
    before.assert_unchanged(&sandbox, &[&container]).await;

    // QEMU reports that the record is removed, and keeps it.
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let (finished, _) = unplug_through(&sandbox, &container, suppress("remove-fd")).await;
    let (reason, message) = finished.failed_with(8);
    assert!(reason == "incomplete" && message.contains("QEMU to remove volume"), "{message}");
    unplug(&sandbox, &at(&container, "/dev/xvda")).await;
    before.assert_unchanged(&sandbox, &[&container]).await;
}

/// Returns the commands that QEMU got after `device_del`.
/// How often QEMU's inventory is read between the removal of the device and that of the node: once
/// for what is left to remove, and once more if the event does not arrive.
fn inventories_after_device_del(commands: &[String]) -> usize {
    let after = after_device_del(commands).iter();
    let before_node = after.take_while(|command| *command != "blockdev-del");
    before_node.filter(|command| *command == "qom-list").count()
}

fn after_device_del(commands: &[String]) -> &[String] {
    let at =
        commands.iter().position(|command| command == "device_del").expect("the device is removed");
    &commands[at + 1..]
}

async fn unplug_through(
    sandbox: &Sandbox,
    container: &Container,
    rules: Vec<Rule>,
) -> (Finished, Vec<String>) {
    let call = verb(sandbox.ecr_runtime(), sandbox, "hot-unplug", &at(container, "/dev/xvda"));
    through_proxy(sandbox, call.args(short(sandbox)), rules).await
}
