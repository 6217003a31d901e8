//! Ways to the agent: native vsock, dialled from inside a guest over its loopback (there is no vhost-vsock where these tests run), and
//! a vsock port that serves the plugin alone, and the host alone.

use serde_json::Value;
use vm_harness::{Machine, Volume};

use super::{MIB, boot, wait_for_console};

#[tokio::test]
async fn agents_own_server_is_dialled_over_native_vsock_and_the_plugins_port_by_the_host_alone() {
    let kernel_parameters = ["guest.modules=vsock_loopback", "agent.block_volume_port=1040"];
    let kernel_parameters = kernel_parameters.map(str::to_owned).to_vec();
    let sandbox = boot(&Machine { kernel_parameters, ..Machine::default() }).await;
    let probe = async |address: &str| {
        sandbox.observer().run(&["/usr/bin/agent-probe", address]).await.expect("the guest has the program")
    };
    let ran = probe("vsock://1:1024").await;
    assert_eq!(ran.status, 0, "{}{}", ran.stdout, ran.stderr);
    let answer: Value =
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {}", ran.stdout));
    assert_eq!(answer["api_level"], 1, "{answer}");
    assert_eq!(answer["scan_mode"], "none", "{answer}");
    let nobody = probe("vsock://1:1999").await;
    assert_eq!(nobody.status, 14, "{}{}", nobody.stdout, nobody.stderr);
    assert!(nobody.stderr.contains("not reachable"), "{}", nobody.stderr);

    // Whoever is in the guest, as a container may be, is refused, by whatever address it calls; the refusal is logged.
    for (address, refused) in [("1".to_owned(), 1), (sandbox.guest_cid().to_string(), 2)] {
        let ran = probe(&format!("vsock://{address}:1040")).await;
        assert_eq!(ran.status, 14, "{}{}", ran.stdout, ran.stderr);
        assert!(ran.stderr.contains("the connection to the agent ended"), "{}", ran.stderr);
        wait_for_console(&sandbox, &format!("refused a caller that is not the host cid=1 refused={refused}"))
            .await;
    }
}

#[tokio::test]
async fn volume_is_plugged_through_a_port_of_the_plugins_own() {
    let kernel_parameters = vec!["agent.block_volume_port=1040".to_owned()];
    let sandbox = boot(&Machine { kernel_parameters, ..Machine::default() }).await;
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let port = sandbox.agent_url().replace(":1024", ":1040");
    let plug = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]).args(["--agent", &port]);
    plug.run().await.succeeded(sandbox.guest());
    assert_eq!(container.read("/dev/xvda", 0..4096).await, volume.bytes(0..4096));
    assert!(!sandbox.guest().console().text().contains("refused a caller"), "the host is no stranger");
}
