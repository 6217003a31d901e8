//! Ways to the agent: native vsock, dialled from inside a guest over its loopback (there is no vhost-vsock where these tests run), and
//! a vsock port that serves the plugin alone.

use serde_json::Value;
use vm_harness::{Machine, Volume};

use super::{MIB, boot};

#[tokio::test]
async fn agent_is_dialled_over_native_vsock_on_its_own_server_and_on_the_plugins_port() {
    let kernel_parameters = ["guest.modules=vsock_loopback", "agent.block_volume_port=1040"];
    let kernel_parameters = kernel_parameters.map(str::to_owned).to_vec();
    let sandbox = boot(&Machine { kernel_parameters, ..Machine::default() }).await;
    for address in ["vsock://1:1024", "vsock://1:1040"] {
        let ran = sandbox.observer().run(&["/usr/bin/agent-probe", address]).await.unwrap();
        assert_eq!(ran.status, 0, "{address}: {}{}", ran.stdout, ran.stderr);
        let answer: Value =
            serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {}", ran.stdout));
        assert_eq!(answer["api_level"], 1, "{answer}");
        assert_eq!(answer["scan_mode"], "none", "{answer}");
    }
    let nobody = sandbox.observer().run(&["/usr/bin/agent-probe", "vsock://1:1999"]).await.unwrap();
    assert_ne!(nobody.status, 0, "{}", nobody.stdout);
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
}
