use std::time::Duration;

use rstest::{fixture, rstest};

use super::*;

/// Two sandboxes of the Go runtime, one of the Rust runtime.
#[fixture]
fn run_dir() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for directory in
        ["vm/aa11", "sbs/aa11/aa11", "sbs/aa11/c100", "sbs/aa11/c200", "vm/aa22", "sbs/aa22/c300", "bb11"]
    {
        fs::create_dir_all(root.path().join(directory)).unwrap();
    }
    fs::write(root.path().join("bb11/shim-monitor.sock"), "").unwrap();
    root
}

fn search(root: &tempfile::TempDir, sandbox: &str, container: &str) -> Search {
    Search {
        run_dir: Some(root.path().to_owned()),
        sandbox: (!sandbox.is_empty()).then(|| sandbox.to_owned()),
        container: container.to_owned(),
        ..Search::default()
    }
}

#[rstest]
#[case("aa11", "c100", "aa11", "c100", "vm/aa11")]
#[case("aa2", "c3", "aa22", "c300", "vm/aa22")]
#[case("", "c2", "aa11", "c200", "vm/aa11")]
#[case("bb", "anything", "bb11", "anything", "bb11")]
fn whole_ids_and_unique_prefixes_are_found(
    run_dir: tempfile::TempDir,
    #[case] sandbox: &str,
    #[case] container: &str,
    #[case] whole_sandbox: &str,
    #[case] whole_container: &str,
    #[case] lock: &str,
) {
    let place = Place::find(&search(&run_dir, sandbox, container)).unwrap();
    assert_eq!((place.sandbox.as_str(), place.container.as_str()), (whole_sandbox, whole_container));
    assert_eq!(place.lock_directory(), run_dir.path().join(lock));
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
    let error = Place::find(&search(&run_dir, sandbox, container)).unwrap_err();
    assert_eq!(error.class().reason, reason, "{error}");
}

#[rstest]
fn a_vm_directory_may_be_a_link(run_dir: tempfile::TempDir) {
    std::os::unix::fs::symlink("aa11", run_dir.path().join("vm/dd11")).unwrap();
    let place = Place::find(&search(&run_dir, "dd11", "c1")).unwrap();
    assert!(place.lock_directory().is_dir());
}

#[rstest]
fn with_both_sockets_named_nothing_need_be_on_disk(run_dir: tempfile::TempDir) {
    let named = Search {
        qmp: Some("/run/q/qmp.sock".into()),
        agent: Some("vsock://3:1024".parse().unwrap()),
        ..search(&run_dir, "cc", "c1")
    };
    assert_eq!(Place::find(&named).unwrap().lock_directory(), Path::new("/run/q"));
}

#[rstest]
#[tokio::test]
async fn the_state_file_is_the_second_source_of_the_address(run_dir: tempfile::TempDir) {
    let place = Place::find(&search(&run_dir, "aa11", "c100")).unwrap();
    let deadline = Deadline::after(Duration::from_secs(1));
    assert!(matches!(place.agent_address(deadline).await, Err(Error::AgentUnknown { .. })));
    fs::write(run_dir.path().join("sbs/aa11/persist.json"), r#"{"AgentState":{"URL":"vsock://7:1024"}}"#)
        .unwrap();
    assert_eq!(place.agent_address(deadline).await.unwrap(), AgentAddress::Vsock { cid: 7, port: 1024 });
}

#[rstest]
#[tokio::test]
async fn another_hypervisor_and_a_missing_socket_are_told_apart(run_dir: tempfile::TempDir) {
    let place = Place::find(&search(&run_dir, "aa11", "c100")).unwrap();
    let deadline = Deadline::after(Duration::from_secs(1));
    assert!(matches!(place.connect_qmp(deadline).await, Err(Error::NoQmpSocket { .. })));
    fs::write(run_dir.path().join("sbs/aa11/persist.json"), r#"{"HypervisorState":{"Type":"clh"}}"#).unwrap();
    assert!(matches!(place.connect_qmp(deadline).await, Err(Error::NotQemu { .. })));
}
