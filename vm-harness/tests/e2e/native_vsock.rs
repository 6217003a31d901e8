//! Connections to the agent by native vsock, from inside a guest over its loopback (the hosts of
//! these tests have no vhost-vsock), and a separate vsock port that serves only the plugin, and
//! only to the host.

use serde_json::Value;
use vm_harness::{CommandOutput, Machine, Sandbox, Volume};

use super::{
    MIB, boot,
    conformance::{SEPARATE_PORT, with_separate_port},
    wait_for_console,
};

/// A machine with native vsock in the guest, and `parameter` on the kernel's command line.
fn machine(parameter: Option<&str>) -> Machine {
    let parameters = ["guest.modules=vsock_loopback"].into_iter().chain(parameter);
    Machine { kernel_parameters: parameters.map(str::to_owned).collect(), ..Machine::default() }
}

/// Sends a probe to the plugin at `address` from inside the guest.
async fn probe(sandbox: &Sandbox, address: &str) -> CommandOutput {
    sandbox
        .observer()
        .run(&["/usr/bin/agent-probe", address])
        .await
        .expect("the guest has the program")
}

#[tokio::test]
async fn server_of_the_agent_is_reachable_over_native_vsock() {
    let sandbox = boot(&machine(None)).await;
    let ran = probe(&sandbox, "vsock://1:1024").await;
    assert_eq!(ran.status, 0, "{}{}", ran.stdout, ran.stderr);
    let answer: Value =
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {}", ran.stdout));
    assert_eq!(answer["api_level"], 1, "{answer}");
    assert_eq!(answer["scan_mode"], "none", "{answer}");
    let unserved = probe(&sandbox, "vsock://1:1999").await;
    assert_eq!(unserved.status, 14, "{}{}", unserved.stdout, unserved.stderr);
    assert!(unserved.stderr.contains("not reachable"), "{}", unserved.stderr);
}

#[tokio::test]
async fn separate_port_of_the_plugin_serves_only_the_host() {
    let (port, parameter) = SEPARATE_PORT;
    let sandbox =
        Sandbox::boot_in(&with_separate_port(), "default", &machine(Some(parameter))).await;
    let sandbox = sandbox.unwrap_or_else(|error| panic!("no sandbox: {}", error.chain()));
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(container.read("/dev/xvda", 0..4096).await, volume.bytes(0..4096));
    // The agent sends the reply before it writes the log line.
    wait_for_console(&sandbox, r#"operation="attach""#).await;
    let console = sandbox.guest().console().text();
    assert!(!console.contains("refused a caller"), "the host must not be refused");
    let at = |text: &str| {
        console.find(text).unwrap_or_else(|| panic!("no {text:?} in the guest's log: {console}"))
    };
    assert!(
        at("a caller cid=2 port=") < at(r#"operation="attach""#),
        "the caller is logged before the operation"
    );

    // A caller inside the guest, such as a container, is refused at each address, and the refusal
    // is logged.
    for (address, refused) in [("1".to_owned(), 1), (sandbox.guest_cid().to_string(), 2)] {
        let ran = probe(&sandbox, &format!("vsock://{address}:{port}")).await;
        assert_eq!(ran.status, 14, "{}{}", ran.stdout, ran.stderr);
        assert!(ran.stderr.contains("the connection to the agent ended"), "{}", ran.stderr);
        wait_for_console(
            &sandbox,
            &format!("refused a caller that is not the host cid=1 refused={refused}"),
        )
        .await;
    }

    // The plugin is reachable on this port only: the address from the shim is the agent without the
    // plugin.
    let other = Volume::image(MIB);
    let plug = sandbox.hot_plug_command(&container, &[(&other, "/dev/xvdb")]);
    let refused = plug.args(["--agent", sandbox.agent_url()]).run().await.failed_with(10);
    assert_eq!(refused.0, "no_plugin", "{refused:?}");
}
