//! Ways to the agent: native vsock, dialled from inside a guest over its loopback (there is no
//! vhost-vsock where these tests run), and a vsock port that serves the plugin alone, and the host
//! alone.

use serde_json::Value;
use vm_harness::{Machine, Ran, Sandbox, Volume};

use super::{
    MIB, boot,
    conformance::{OWN_PORT, with_own_port},
    wait_for_console,
};

/// With native vsock inside, and `word` on the kernel's command line.
fn machine(word: Option<&str>) -> Machine {
    let words = ["guest.modules=vsock_loopback"].into_iter().chain(word);
    Machine { kernel_parameters: words.map(str::to_owned).collect(), ..Machine::default() }
}

/// Asks the plugin at `address` from inside the guest.
async fn probe(sandbox: &Sandbox, address: &str) -> Ran {
    sandbox
        .observer()
        .run(&["/usr/bin/agent-probe", address])
        .await
        .expect("the guest has the program")
}

#[tokio::test]
async fn agents_own_server_is_dialled_over_native_vsock() {
    let sandbox = boot(&machine(None)).await;
    let ran = probe(&sandbox, "vsock://1:1024").await;
    assert_eq!(ran.status, 0, "{}{}", ran.stdout, ran.stderr);
    let answer: Value =
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {}", ran.stdout));
    assert_eq!(answer["api_level"], 1, "{answer}");
    assert_eq!(answer["scan_mode"], "none", "{answer}");
    let nobody = probe(&sandbox, "vsock://1:1999").await;
    assert_eq!(nobody.status, 14, "{}{}", nobody.stdout, nobody.stderr);
    assert!(nobody.stderr.contains("not reachable"), "{}", nobody.stderr);
}

#[tokio::test]
async fn port_of_the_plugins_own_is_dialled_by_the_host_alone() {
    let (port, word) = OWN_PORT;
    let sandbox = Sandbox::boot_in(&with_own_port(), "default", &machine(Some(word))).await;
    let sandbox = sandbox.unwrap_or_else(|error| panic!("no sandbox: {}", error.chain()));
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(container.read("/dev/xvda", 0..4096).await, volume.bytes(0..4096));
    // The agent answers first, and writes then.
    wait_for_console(&sandbox, r#"operation="attach""#).await;
    let said = sandbox.guest().console().text();
    assert!(!said.contains("refused a caller"), "the host is no stranger");
    let at = |text: &str| {
        said.find(text).unwrap_or_else(|| panic!("no {text:?} in the guest's log: {said}"))
    };
    assert!(
        at("a caller cid=2 port=") < at(r#"operation="attach""#),
        "who calls is told before what was done"
    );

    // Whoever is in the guest, as a container may be, is refused, by whatever address it calls; the
    // refusal is logged.
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

    // There is no second way in: what the shim names is the agent without the plugin.
    let other = Volume::image(MIB);
    let plug = sandbox.hot_plug_command(&container, &[(&other, "/dev/xvdb")]);
    let refused = plug.args(["--agent", sandbox.agent_url()]).run().await.failed_with(10);
    assert_eq!(refused.0, "no_plugin", "{refused:?}");
}
