//! Tests of how the glue finds a container's cgroup.

use std::fs;
use std::io;
use std::panic::catch_unwind;
use std::path::Path;
use std::sync::Arc;

use agent_plugin::Agent;
use nix::mount::{mount, umount2, MntFlags, MsFlags};
use nix::sched::{unshare, CloneFlags};
use rstest::rstest;
use runtime_spec::ContainerState;
use rustjail::container::{FsManager, Manager};

use crate::tests::{agent, Process};

/// A manager that returns this path, or an error if there is none.
#[derive(Debug)]
struct Fixed(Option<&'static str>);

impl Manager for Fixed {
    fn get_cgroup_path(&self, _: &str) -> io::Result<String> {
        self.0
            .map(str::to_owned)
            .ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
    }
}

#[rstest]
#[case(Fixed(None), "its cgroup: unsupported")]
#[case(
    Fixed(Some("/elsewhere/pod/c1")),
    "its cgroup: /elsewhere/pod/c1 is in none of [\"/"
)]
#[tokio::test]
async fn a_container_without_a_cgroup_cannot_be_reached(
    #[case] manager: Fixed,
    #[case] expected: &str,
) {
    let process = Process::start();
    let mut container = process.container(ContainerState::Running, None);
    container.cgroup_manager = Arc::new(manager);
    let error = agent(container)
        .container("c1")
        .await
        .unwrap_err()
        .to_string();
    let expected = format!("the agent cannot reach the container: {}", expected);
    assert!(error.starts_with(&expected), "{}", error);
}

/// Gives this thread a mount namespace without cgroups, as in a guest whose kernel has no devices
/// controller.
fn leave_cgroups() {
    unshare(CloneFlags::CLONE_NEWNS).expect("needs root");
    let nothing: Option<&Path> = None;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(nothing, "/", nothing, private, nothing).unwrap();
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    for line in mounts
        .lines()
        .rev()
        .filter(|line| line.contains(" - cgroup"))
    {
        umount2(line.split(' ').nth(4).unwrap(), MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn without_a_devices_controller_the_manager_is_not_asked() {
    let container = std::thread::spawn(|| {
        leave_cgroups();
        let asked = catch_unwind(|| FsManager::new("/pod/c1").get_cgroup_path("devices"));
        assert!(asked.is_err(), "the stub panics as kata-agent does");
        let process = Process::start();
        let agent = agent(process.container(ContainerState::Running, None));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let container = runtime.block_on(agent.container("c1"));
        assert!(agent.sandbox.try_lock().is_ok());
        container
    });
    assert_eq!(container.join().unwrap().unwrap().cgroup, Path::new("/"));
}
