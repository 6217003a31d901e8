//! Sandboxes and containers, found in run directories as Kata's two runtimes lay them out.

use std::{fs, time::Duration};

use rstest::{fixture, rstest};

use super::*;

/// Two sandboxes of the Go runtime, one of the Rust runtime.
#[fixture]
fn run_dir() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for directory in [
        "vm/aa11",
        "sbs/aa11/aa11",
        "sbs/aa11/c100",
        "sbs/aa11/c200",
        "vm/aa22",
        "sbs/aa22/c300",
        "bb11",
    ] {
        fs::create_dir_all(root.path().join(directory)).unwrap();
    }
    fs::write(root.path().join("bb11/shim-monitor.sock"), "").unwrap();
    root
}

fn search(root: &tempfile::TempDir, sandbox: &str, container: &str) -> Search {
    Search {
        run_dir: Some(root.path().to_owned()),
        sandbox: (!sandbox.is_empty()).then(|| sandbox.to_owned()),
        container: Some(container.to_owned()),
        ..Search::default()
    }
}

#[rstest]
#[case("aa11", "c100", "aa11", "c100", "vm/aa11")]
#[case("aa2", "c3", "aa22", "c300", "vm/aa22")]
#[case("", "c2", "aa11", "c200", "vm/aa11")]
#[case("bb", "anything", "bb11", "anything", "bb11")]
fn full_ids_and_unique_prefixes_are_found(
    run_dir: tempfile::TempDir,
    #[case] sandbox: &str,
    #[case] container: &str,
    #[case] full_sandbox: &str,
    #[case] full_container: &str,
    #[case] lock: &str,
) {
    let sandbox = Sandbox::find(&search(&run_dir, sandbox, container)).unwrap();
    assert_eq!(sandbox.id, full_sandbox);
    assert_eq!(sandbox.container(container, &[]).unwrap(), full_container);
    assert_eq!(sandbox.lock_directory(), run_dir.path().join(lock));
}

#[rstest]
#[case("aa", "c100", "ambiguous_id")]
#[case("aa11", "c", "ambiguous_id")]
#[case("", "c", "ambiguous_id")]
#[case("aa11", "c9", "container_not_found")]
#[case("aa11", "c300", "container_not_found")]
#[case("cc", "c100", "sandbox_not_found")]
#[case("", "x", "sandbox_needed")]
#[case("aa11", "aa11", "pause_container")]
#[case("aa11", "aa", "pause_container")]
#[case("a/b", "c1", "invalid_id")]
#[case("../aa11", "c1", "invalid_id")]
#[case("a..b", "c1", "invalid_id")]
#[case("aa11", "", "invalid_id")]
#[case("aa11", "-c", "invalid_id")]
#[case("aa11", "../../etc", "invalid_id")]
fn other_ids_are_refused(
    run_dir: tempfile::TempDir,
    #[case] sandbox: &str,
    #[case] container: &str,
    #[case] reason: &str,
) {
    let found = Sandbox::find(&search(&run_dir, sandbox, container));
    let error = found.and_then(|sandbox| sandbox.container(container, &[])).unwrap_err();
    assert_eq!(error.class().reason, reason, "{error}");
}

#[rstest]
#[case("c1", &["c9"], Ok("c100"))]
#[case("c9", &["c9"], Ok("c9"))]
#[case("c90", &["c901", "c100"], Ok("c901"))]
#[case("c90", &["c901", "c902"], Err("ambiguous_id"))]
#[case("c1", &["c101"], Err("ambiguous_id"))]
#[case("c100", &["c1001"], Ok("c100"))]
#[case("c9", &["c8"], Err("container_not_found"))]
fn a_container_that_is_gone_is_found_where_it_is_recorded(
    run_dir: tempfile::TempDir,
    #[case] prefix: &str,
    #[case] recorded: &[&str],
    #[case] expected: Result<&str, &str>,
) {
    let sandbox = Sandbox::find(&search(&run_dir, "aa11", "c100")).unwrap();
    let found = sandbox.container(prefix, recorded).map_err(|e| e.class().reason);
    assert_eq!(found.as_deref().map_err(|&reason| reason), expected);
}

/// The bundles of two sandboxes of the Rust runtime, the second of which is not of Kata, and of a
/// container of the Go runtime that has ended.
fn with_bundles(root: &tempfile::TempDir, sandbox: &str, container: &str) -> Search {
    let parent = root.path().join("task/k8s.io");
    for (id, of) in
        [("bb11", "bb11"), ("b100", "bb11"), ("b200", "bb11"), ("r100", "runc1"), ("c400", "aa11")]
    {
        fs::create_dir_all(parent.join(id)).unwrap();
        let config = format!(r#"{{"annotations":{{"io.kubernetes.cri.sandbox-id":"{of}"}}}}"#);
        fs::write(parent.join(id).join("config.json"), config).unwrap();
    }
    let bundles = Bundles { containerd: vec![root.path().join("task")], crio: Vec::new() };
    Search { bundles, ..search(root, sandbox, container) }
}

#[rstest]
#[case("bb11", "b1", Ok("b100"))]
#[case("", "b2", Ok("b200"))]
#[case("", "b100", Ok("b100"))]
#[case("", "c1", Ok("c100"))]
#[case("", "b", Err("ambiguous_id"))]
#[case("bb11", "b9", Err("container_not_found"))]
#[case("bb11", "c100", Err("container_not_found"))]
#[case("bb11", "bb11", Err("pause_container"))]
#[case("", "r100", Err("sandbox_needed"))]
#[case("", "c400", Err("sandbox_needed"))]
fn containers_of_the_rust_runtime_are_found_by_their_bundles(
    run_dir: tempfile::TempDir,
    #[case] sandbox: &str,
    #[case] container: &str,
    #[case] expected: Result<&str, &str>,
) {
    let found = Sandbox::find(&with_bundles(&run_dir, sandbox, container));
    let found = found.and_then(|sandbox| sandbox.container(container, &[]));
    let found = found.as_deref().map_err(|e| e.class().reason);
    assert_eq!(found, expected);
}

#[rstest]
fn the_pause_container_is_not_listed(run_dir: tempfile::TempDir) {
    let sandbox = Sandbox::find(&with_bundles(&run_dir, "bb11", "b100")).unwrap();
    assert_eq!(sandbox.containers().unwrap(), ["b100", "b200"]);
}

#[rstest]
#[tokio::test]
async fn the_socket_of_the_rust_runtime_is_in_the_sandboxs_directory(run_dir: tempfile::TempDir) {
    let sandbox = Sandbox::find(&search(&run_dir, "bb11", "b100")).unwrap();
    let socket = run_dir.path().join("bb11/extra-monitor.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    fs::write(run_dir.path().join("bb11/state.json"), "{}").unwrap();
    let failed = sandbox.connect_qmp(Deadline::after(Duration::from_secs(1))).await.unwrap_err();
    let Error::Qmp(QmpError::Connect { path, .. }) = failed else { panic!("{failed}") };
    assert_eq!(path, socket);
}

#[rstest]
fn neither_a_sandbox_nor_a_container_is_not_enough(run_dir: tempfile::TempDir) {
    let nothing = Search { container: None, ..search(&run_dir, "", "") };
    assert_eq!(Sandbox::find(&nothing).unwrap_err().class().exit_status.code(), 2);
}

#[rstest]
fn a_vm_directory_may_be_a_link(run_dir: tempfile::TempDir) {
    std::os::unix::fs::symlink("aa11", run_dir.path().join("vm/dd11")).unwrap();
    let sandbox = Sandbox::find(&search(&run_dir, "dd11", "c1")).unwrap();
    assert!(sandbox.lock_directory().is_dir());
}

#[rstest]
fn with_both_sockets_named_nothing_need_be_on_disk(run_dir: tempfile::TempDir) {
    let named = Search {
        qmp: Some("/run/q/qmp.sock".into()),
        agent: Some("vsock://3:1024".parse().unwrap()),
        ..search(&run_dir, "cc", "c1")
    };
    assert_eq!(Sandbox::find(&named).unwrap().lock_directory(), Path::new("/run/q"));
}

#[rstest]
#[tokio::test]
async fn the_state_file_is_the_second_source_of_the_address(run_dir: tempfile::TempDir) {
    let sandbox = Sandbox::find(&search(&run_dir, "aa11", "c100")).unwrap();
    let deadline = Deadline::after(Duration::from_secs(1));
    let state = run_dir.path().join("sbs/aa11/persist.json");
    fs::write(&state, "{}").unwrap();
    assert!(matches!(sandbox.agent_address(deadline).await, Err(Error::AgentUnknown { .. })));
    fs::write(state, r#"{"AgentState":{"URL":"vsock://7:1024"}}"#).unwrap();
    assert_eq!(
        sandbox.agent_address(deadline).await.unwrap(),
        AgentAddress::Vsock { cid: 7, port: 1024 }
    );
}

#[rstest]
#[tokio::test]
async fn another_hypervisor_and_a_missing_socket_are_distinguished(run_dir: tempfile::TempDir) {
    let sandbox = Sandbox::find(&search(&run_dir, "aa11", "c100")).unwrap();
    let deadline = Deadline::after(Duration::from_secs(1));
    let state = run_dir.path().join("sbs/aa11/persist.json");
    fs::write(&state, "{}").unwrap();
    assert!(matches!(sandbox.connect_qmp(deadline).await, Err(Error::NoQmpSocket { .. })));
    fs::write(state, r#"{"HypervisorState":{"Type":"clh"}}"#).unwrap();
    assert!(matches!(sandbox.connect_qmp(deadline).await, Err(Error::NotQemu { .. })));
}

#[rstest]
#[case::go("aa11", "sbs/aa11/persist.json", "vm/aa11/qmp.sock")]
#[case::rust("bb11", "bb11/state.json", "bb11/extra-monitor.sock")]
#[tokio::test]
async fn a_sandbox_without_a_state_is_still_starting(
    run_dir: tempfile::TempDir,
    #[case] id: &str,
    #[case] state: &str,
    #[case] monitor: &str,
) {
    let sandbox = Sandbox::find(&search(&run_dir, id, "c100")).unwrap();
    let deadline = Deadline::after(Duration::from_secs(1));
    let reasons = async || {
        let agent = sandbox.agent_address(deadline).await.unwrap_err().class().reason;
        let qmp = sandbox.connect_qmp(deadline).await.unwrap_err().class().reason;
        let unreachable = Error::AgentNotResponding { address: "vsock://3:1024".into() };
        (agent, qmp, sandbox.or_starting(unreachable).class().reason)
    };
    let starting = ("sandbox_starting", "sandbox_starting", "sandbox_starting");
    assert_eq!(reasons().await, starting);
    // A process that was killed left it, or the shim is about to connect to it.
    drop(std::os::unix::net::UnixListener::bind(run_dir.path().join(monitor)).unwrap());
    assert_eq!(reasons().await, starting);
    fs::write(run_dir.path().join(state), "{}").unwrap();
    assert_eq!(reasons().await, ("agent_unknown", "qmp_unreachable", "timed_out"));
}

#[rstest]
#[tokio::test]
async fn the_shims_socket_of_a_starting_sandbox_is_left_alone(run_dir: tempfile::TempDir) {
    let sandbox = Sandbox::find(&search(&run_dir, "aa11", "c100")).unwrap();
    let listener =
        std::os::unix::net::UnixListener::bind(run_dir.path().join("vm/aa11/qmp.sock")).unwrap();
    listener.set_nonblocking(true).unwrap();
    sandbox.connect_qmp(Deadline::after(Duration::from_secs(1))).await.unwrap_err();
    assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[rstest]
#[tokio::test]
async fn a_sandbox_that_is_gone_is_not_starting(run_dir: tempfile::TempDir) {
    let sandbox = Sandbox::find(&search(&run_dir, "aa11", "c100")).unwrap();
    fs::remove_dir(run_dir.path().join("vm/aa11")).unwrap();
    let failed = sandbox.connect_qmp(Deadline::after(Duration::from_secs(1))).await.unwrap_err();
    assert!(matches!(failed, Error::NoQmpSocket { .. }), "{failed}");
}

#[rstest]
#[tokio::test]
async fn sockets_that_were_named_are_blamed_themselves(run_dir: tempfile::TempDir) {
    let named = Search {
        qmp: Some(run_dir.path().join("none.sock")),
        agent: Some("vsock://3:1024".parse().unwrap()),
        ..search(&run_dir, "aa11", "c100")
    };
    let sandbox = Sandbox::find(&named).unwrap();
    let unreachable = Error::AgentNotResponding { address: "vsock://3:1024".into() };
    assert_eq!(sandbox.or_starting(unreachable).class().reason, "timed_out");
    let failed = sandbox.connect_qmp(Deadline::after(Duration::from_secs(1))).await.unwrap_err();
    assert_eq!(failed.class().reason, "qmp_unreachable");
}

#[rstest]
fn a_sandbox_of_the_go_runtime_is_found_while_it_starts(run_dir: tempfile::TempDir) {
    fs::create_dir(run_dir.path().join("vm/ee11")).unwrap();
    assert_eq!(Sandbox::find(&search(&run_dir, "ee", "c1")).unwrap().id, "ee11");
}
