//! What the guest's kernel lacks, as `check` and `hot-plug` report it. Each capability is taken
//! away for real: by a sysctl, by removing a module.

use rstest::rstest;
use serde_json::Value;
use vm_harness::{ContainerOptions, DeviceFilter, Finished, Sandbox, Snapshot, Volume};

use super::{
    MIB,
    hot_unplug::{at, unplug},
    sandbox,
};

async fn check(sandbox: &Sandbox) -> Finished {
    sandbox.ecr_runtime().args(["check", "--output", "json", "--sandbox", sandbox.id()]).run().await
}

/// Returns the findings about the guest's kernel: capability and status, and all messages.
fn of_kernel(finished: &Finished) -> (Vec<(String, String)>, String) {
    let json = finished.json();
    let all = json["checks"].as_array().unwrap().iter();
    let found: Vec<&Value> = all.filter(|check| check["name"] == "guest_kernel").collect();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let each = found.iter().map(|check| (text(&check["capability"]), text(&check["status"])));
    let messages = found
        .iter()
        .map(|check| format!("{}\n{}\n", text(&check["message"]), text(&check["remedy"])));
    (each.collect(), messages.collect())
}

fn warnings(names: &[&str]) -> Vec<(String, String)> {
    names.iter().map(|name| ((*name).to_owned(), "warning".to_owned())).collect()
}

#[rstest]
#[tokio::test]
async fn restrictions_of_the_guest_are_warnings_that_name_the_option(
    #[future(awt)] sandbox: Sandbox,
) {
    let options =
        ContainerOptions { device_filter: DeviceFilter::Bpf, ..ContainerOptions::default() };
    let filtered = sandbox.start_container_with(&options).await;
    let open = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&filtered, &open]).await;
    let finished = check(&sandbox).await;
    let release = sandbox.observer().shell("uname -r").await;
    let (found, messages) = of_kernel(&finished);
    assert_eq!(found, [(String::new(), "ok".to_owned())], "{messages}");
    assert!(messages.starts_with(&format!("{}: has all", release.trim())), "{messages}");
    before.assert_unchanged(&sandbox, &[&filtered, &open]).await;

    let restrict = "cat /proc/sys/user/max_user_namespaces /proc/sys/net/core/bpf_jit_harden; \
                    echo 0 >/proc/sys/user/max_user_namespaces; \
                    echo 2 >/proc/sys/net/core/bpf_jit_harden";
    let had = sandbox.observer().shell(restrict).await;
    let finished = check(&sandbox).await;
    let (found, messages) = of_kernel(&finished);
    let expected = ["user_namespaces", "readable_device_programs"];
    assert_eq!(found, warnings(&expected), "{messages}");
    for option in ["CONFIG_USER_NS", "net.core.bpf_jit_harden below 2"] {
        assert!(messages.contains(&format!("give the guest {option}")), "{messages}");
    }
    // What the warnings say is true: one container gets no volume, the other one does.
    let volume = Volume::image(MIB);
    let refused = sandbox.hot_plug_command(&filtered, &[(&volume, "/dev/xvda")]).run().await;
    refused.failed_with(10);
    let namespace = ContainerOptions { user_namespace: true, ..ContainerOptions::default() };
    sandbox.try_start_container(&namespace).await.unwrap_err();

    let (namespaces, hardening) = had.trim().split_once('\n').unwrap();
    let restore = format!(
        "echo {namespaces} >/proc/sys/user/max_user_namespaces; \
         echo {hardening} >/proc/sys/net/core/bpf_jit_harden"
    );
    sandbox.observer().shell(&restore).await;
    let (found, messages) = of_kernel(&check(&sandbox).await);
    assert_eq!(found, [(String::new(), "ok".to_owned())], "tried again: {messages}");
    sandbox.hot_plug(&open, &volume, "/dev/xvda").await;
    unplug(&sandbox, &at(&open, "/dev/xvda")).await;
    before.assert_unchanged(&sandbox, &[&filtered, &open]).await;
}

#[rstest]
#[tokio::test]
async fn without_the_driver_of_disks_a_hot_plug_is_refused_before_anything_changes(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    sandbox.observer().shell("rmmod sd_mod").await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let finished = check(&sandbox).await;
    assert_eq!(finished.status, 10, "{}", finished.stdout);
    let (found, messages) = of_kernel(&finished);
    assert_eq!(found, [("sd".to_owned(), "problem".to_owned())], "{messages}");
    assert!(messages.contains("give the guest CONFIG_BLK_DEV_SD"), "{messages}");
    let volume = Volume::image(MIB);
    for dry_run in [&["--dry-run"][..], &[]] {
        let volumes = [(&volume, "/dev/xvda")];
        let command = sandbox.hot_plug_command(&container, &volumes).args(dry_run);
        let refused = command.run().await;
        refused.failed_with(10);
        assert!(refused.stdout.contains("no sd (CONFIG_BLK_DEV_SD)"), "{}", refused.stdout);
    }
    before.assert_unchanged(&sandbox, &[&container]).await;
}
