//! A rootless VMM, as Kata's two runtimes lay it out: QEMU runs as another user, its files are
//! below `/run/user/UID`, and the shim's socket stays in root's directory. QEMU is a real one,
//! started through `ecr-qemu` as that user.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::{
        fs::{MetadataExt as _, chown},
        net::UnixListener,
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Arc,
    time::Duration,
};

use crate::common::{RunOutput, fake_agent::FakeAgent, run, volume::Image};
use block_volume_qmp::{Deadline, Qmp};
use host_trigger::output::envelope::Outcome;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use rstest::rstest;
use serde_json::json;

const MIB: u64 = 1 << 20;
/// The user `nobody`.
const USER: u32 = 65534;
const LIMIT: Duration = Duration::from_secs(60);
const AGENT: &str = "/run/agent.sock";

#[derive(Debug, Clone, Copy)]
enum Runtime {
    Go,
    Rust,
}

/// The sandbox `s1` with the container `c1`. `/run` is this test's own.
struct Sandbox {
    directory: PathBuf,
    qemu: Child,
    _agent: Arc<FakeAgent>,
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        self.qemu.wait().expect("a killed child is reaped");
    }
}

impl Sandbox {
    async fn start(runtime: Runtime) -> Self {
        own_run();
        let theirs = Path::new("/run/user").join(USER.to_string());
        let (state, console, shim) = match runtime {
            Runtime::Go => ("run/vc/vm/s1", "console.sock", "/run/vc/sbs/s1"),
            Runtime::Rust => ("run/kata/s1", "root/console.sock", "/run/kata/s1"),
        };
        let directory = theirs.join(state);
        fs::create_dir_all(directory.join("root")).unwrap();
        fs::create_dir_all(theirs.join("run/vc/sbs/s1/c1")).unwrap();
        fs::create_dir_all(shim).unwrap();
        let mut given = vec![theirs.clone()];
        while let Some(path) = given.pop() {
            chown(&path, Some(USER), Some(USER)).unwrap();
            given.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        serve_shim(&Path::new(shim).join("shim-monitor.sock"));
        let agent = FakeAgent::serve(Path::new(AGENT)).await;

        let wrapper = Path::new("/run/ecr-qemu");
        fs::copy(env!("CARGO_BIN_EXE_ecr-qemu"), wrapper).unwrap();
        let console = directory.join(console);
        let qemu = Command::new(wrapper)
            .uid(USER)
            .gid(USER)
            .env("ECR_QEMU_PATH", "/usr/bin/qemu-system-x86_64")
            .args(["-name", "sandbox-s1", "-M", "q35", "-accel", "tcg", "-m", "16", "-S"])
            .args(["-display", "none", "-nodefaults", "-no-user-config"])
            .args(["-device", "virtio-scsi-pci,id=scsi0", "-chardev"])
            .arg(format!("socket,id=c,path={},server=on,wait=off", console.display()))
            .spawn()
            .unwrap();
        let sandbox = Self { directory, qemu, _agent: agent };
        match runtime {
            Runtime::Go => {
                let state = json!({
                    "AgentState": {"URL": format!("unix://{AGENT}")},
                    "HypervisorState": {"Type": "qemu", "Pid": sandbox.qemu.id()},
                });
                fs::write(theirs.join("run/vc/sbs/s1/persist.json"), state.to_string()).unwrap();
            }
            Runtime::Rust => fs::remove_dir_all(theirs.join("run/vc")).unwrap(),
        }
        sandbox.wait_for_qemu().await;
        sandbox
    }

    fn monitor(&self) -> PathBuf {
        self.directory.join("extra-monitor.sock")
    }

    /// The limits of `ecr-runtime` are not those of a machine on which QEMU starts slowly.
    async fn wait_for_qemu(&self) {
        let deadline = Deadline::after(LIMIT);
        loop {
            match Qmp::connect_within(self.monitor(), deadline, LIMIT).await {
                Ok(_) => return,
                // The wrapper has not made it yet.
                Err(e) => assert!(!deadline.remaining().is_zero(), "{e}"),
            }
            tokio::task::yield_now().await;
        }
    }

    async fn run(&self, words: &[&str]) -> RunOutput {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_ecr-runtime"));
        run(command.arg("block-volume").args(words).args(["--output", "json"])).await
    }
}

/// Gives this test's thread, and what it starts, an empty `/run`.
fn own_run() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
}

/// Answers each request with the agent's address, as a shim does.
fn serve_shim(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\nunix://{AGENT}",
            "unix://".len() + AGENT.len()
        );
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let mut request = [0; 1024];
            // The client may be gone.
            let _ = stream.read(&mut request);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
}

#[rstest]
#[case::go(Runtime::Go)]
#[case::rust(Runtime::Rust)]
#[tokio::test]
async fn a_sandbox_of_a_rootless_vmm_is_found_by_the_vmms_user(#[case] runtime: Runtime) {
    let sandbox = Sandbox::start(runtime).await;
    let socket = fs::symlink_metadata(sandbox.monitor()).unwrap();
    assert_eq!((socket.uid(), socket.mode() & 0o7777), (USER, 0o600));

    let image = Image::of(MIB);
    let named = ["--vmm-user", "65534", "--sandbox"];
    let plug = ["--container", "c1", "--device-path", "/dev/xvda", "--block-volume"];
    let plug = [&["hot-plug"], &named[..], &["s1"], &plug, &[image.path().to_str().unwrap()]];
    let plugged = sandbox.run(&plug.concat()).await.report();
    assert_eq!(plugged.result, Outcome::Attached);

    let unplug = ["hot-unplug", "--sandbox", "s1", "--device-path", "/dev/xvda"];
    let refused = sandbox.run(&unplug).await;
    assert_eq!(refused.exit_code, Some(14), "{refused:?}");
    let remedy = refused.failure().remedy.unwrap();
    assert!(remedy.contains("--vmm-user"), "{remedy}");

    // A part of the ID: the shim's directory and the VMM's are one sandbox.
    let listed = sandbox.run(&[&["list"], &named[..], &["s"]].concat()).await.listing();
    assert_eq!(listed.body.volumes.len(), 1);
    let gone = sandbox.run(&[&unplug[..], &named[..2]].concat()).await.report();
    assert_eq!(gone.result, Outcome::Detached);
}
