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
    assert!(matches!(sandbox.agent_address(deadline).await, Err(Error::AgentUnknown { .. })));
    fs::write(
        run_dir.path().join("sbs/aa11/persist.json"),
        r#"{"AgentState":{"URL":"vsock://7:1024"}}"#,
    )
    .unwrap();
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
    assert!(matches!(sandbox.connect_qmp(deadline).await, Err(Error::NoQmpSocket { .. })));
    fs::write(
        run_dir.path().join("sbs/aa11/persist.json"),
        r#"{"HypervisorState":{"Type":"clh"}}"#,
    )
    .unwrap();
    assert!(matches!(sandbox.connect_qmp(deadline).await, Err(Error::NotQemu { .. })));
}
