//! `list --all` and `check --all`: every sandbox below a run directory, of which some cannot be
//! asked.

use std::{fs, os::unix::net::UnixListener, sync::Arc};

use crate::common::{Host, fake_cri::FakeCri, run, volume::Image};
use host_trigger::{
    ops::volume::State,
    output::{findings::CheckReport, listing::ListedSandbox},
};
use serde_json::json;

const MIB: u64 = 1 << 20;

/// A host with the sandbox `s1` and others: `s0`, whose QEMU does not respond, and `s2`, which
/// another hypervisor runs. A container engine tells the pod of `s1`.
struct Node {
    host: Host,
    engine: Arc<FakeCri>,
    _silent: UnixListener,
}

impl Node {
    async fn boot() -> Self {
        let host = Host::boot().await;
        for (sandbox, hypervisor) in [("s0", "qemu"), ("s2", "clh")] {
            fs::create_dir_all(host.path("vm").join(sandbox)).unwrap();
            fs::create_dir_all(host.path("sbs").join(sandbox)).unwrap();
            let state = json!({"HypervisorState": {"Type": hypervisor}});
            fs::write(host.path("sbs").join(sandbox).join("persist.json"), state.to_string())
                .unwrap();
        }
        let silent = UnixListener::bind(host.path("vm/s0/qmp.sock")).unwrap();
        let engine = FakeCri::serve(&host.path("cri.sock"));
        Self { host, engine, _silent: silent }
    }
}

fn reason(sandbox: &ListedSandbox) -> Option<&str> {
    sandbox.error.as_ref().map(|error| error.reason.as_str())
}

#[tokio::test]
async fn every_sandbox_is_listed_and_one_that_does_not_respond_has_its_error() {
    let node = Node::boot().await;
    let image = Image::of(MIB);
    let plugged = node.host.plug(image.path(), "/dev/xvda", &[]).await.report();
    let cri = node.engine.socket.to_str().unwrap().to_owned();
    let listed = node.host.verb("list", &["--all", "--cri", &cri]).await;
    let listing = listed.listing_with_unknown_sandbox();
    let [volume] = &listing.body.volumes[..] else { panic!("{listing:?}") };
    assert_eq!((&volume.volume.id, volume.state), (&plugged.body.volumes[0].id, State::Attached));
    assert_eq!(volume.volume.pod.as_ref().unwrap().to_string(), "shop/db-0 app");
    let sandboxes: Vec<_> =
        listing.body.sandboxes.iter().map(|one| (one.id.as_str(), reason(one))).collect();
    let silent = reason(&listing.body.sandboxes[0]);
    assert!(matches!(silent, Some("timed_out" | "qmp_held")), "{silent:?}");
    assert_eq!(sandboxes, [("s0", silent), ("s1", None), ("s2", Some("not_qemu"))]);
    assert_eq!(listing.body.sandboxes[1].pod.as_ref().unwrap().to_string(), "shop/db-0");

    // Another hypervisor alone is no failure, and no name of a pod is needed.
    fs::remove_dir_all(node.host.path("vm/s0")).unwrap();
    fs::remove_dir_all(node.host.path("sbs/s0")).unwrap();
    let mut command = node.host.verb_command("list", &["--all"]);
    let endpoint = "unix:///nonexistent/cri.sock";
    let listing = run(command.env("CONTAINER_RUNTIME_ENDPOINT", endpoint)).await.listing();
    assert_eq!((listing.body.volumes.len(), listing.body.sandboxes.len()), (1, 2));
    assert_eq!(listing.body.sandboxes[0].pod, None);
}

#[tokio::test]
async fn an_engine_that_is_named_has_to_tell() {
    let host = Host::boot().await;
    let missing = host.path("missing.sock");
    let listed = host.verb("list", &["--all", "--cri", missing.to_str().unwrap()]).await;
    listed.assert_fails("cri_unreachable", 14);
}

#[tokio::test]
async fn a_node_without_sandboxes_has_no_volumes() {
    let host = Host::boot().await;
    let empty = tempfile::tempdir().unwrap();
    let directory = empty.path().to_str().unwrap();
    let listing = host.verb("list", &["--all", "--run-dir", directory]).await.listing();
    assert_eq!((listing.body.volumes, listing.body.sandboxes), (vec![], vec![]));
}

#[tokio::test]
async fn all_excludes_what_names_one_sandbox() {
    let host = Host::boot().await;
    for option in [["--sandbox", "s1"], ["--container", "c1"], ["--pod", "db-0"], ["--qmp", "q"]] {
        let options = [&["--all"], &option[..]].concat();
        host.verb("list", &options).await.assert_fails("usage", 2);
    }
}

#[tokio::test]
async fn every_sandbox_is_checked() {
    let node = Node::boot().await;
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_ecr-runtime"));
    command.args(["check", "--all", "--output", "json", "--run-dir"]).arg(node.host.path(""));
    let checked = run(&mut command).await;
    let report: CheckReport = {
        let mut document: serde_json::Value = serde_json::from_str(&checked.stdout).unwrap();
        serde_json::from_value(json!({"checks": document["checks"].take()})).unwrap()
    };
    let of = |sandbox: &str, name: &str| {
        let its = report.checks.iter().filter(|one| one.sandbox.as_deref() == Some(sandbox));
        its.clone()
            .find(|one| one.name == name)
            .unwrap_or_else(|| panic!("{sandbox} {name}: {report:?}"))
    };
    assert_eq!(of("s1", "qmp").exit_code, 0);
    assert_ne!(of("s0", "qmp").exit_code, 0);
    assert_eq!(of("s2", "qmp").exit_code, 10);
    let first = report.checks.iter().find(|one| one.exit_code != 0).unwrap();
    assert_eq!(checked.exit_code, Some(first.exit_code.into()), "{checked:?}");
}
