//! The log of the guest's agent: one line for each operation, including one that is refused.

use rstest::rstest;
use vm_harness::{Machine, Sandbox, Volume};

use super::{MIB, boot, hot_unplug::unplug, sandbox, wait_for_console};

#[rstest]
#[tokio::test]
async fn log_of_the_guest_names_each_volume_and_its_device(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let plugged = sandbox.hot_plug(&container, &Volume::image(MIB), "/dev/xvda").await;
    let (id, container) = (plugged.id(), container.id());
    let (device, number) = (plugged.guest_device(), plugged.device_number());
    let attached = format!(
        r#"operation="attach" about={id} {container}:"/dev/xvda" ReadWrite {device} ({number}) "#
    );
    wait_for_console(&sandbox, &attached).await;
    unplug(&sandbox, &["--volume", id]).await;
    let detached = format!(r#"operation="detach" about={id} {container}:"/dev/xvda" ReadWrite "#);
    wait_for_console(&sandbox, &detached).await;
}

#[tokio::test]
async fn refusal_is_logged_with_the_requested_volume() {
    let kernel_parameters = vec!["agent.deny=AttachBlockVolumeRequest".to_owned()];
    let sandbox = boot(&Machine { kernel_parameters, ..Machine::default() }).await;
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]).run().await.failed_with(9);
    // The line contains the serial number of sixteen digits, which is derived from the source.
    wait_for_console(&sandbox, r#"operation="attach" about="#).await;
    let console = sandbox.guest().console().text();
    let line = console.lines().find(|line| line.contains(r#"operation="attach""#)).unwrap();
    let named = format!(r#" {}:"/dev/xvda" ReadWrite "#, container.id());
    assert!(line.contains(&named) && line.contains("reason=REASON_DENIED"), "{line}");
}
