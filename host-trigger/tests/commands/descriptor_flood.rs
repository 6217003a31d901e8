//! Users of this host with very many open descriptors. The search for other users of a source does
//! not take longer than the command's time, a signal ends it at once, and a user who could not open
//! the source by its path does not delay it.

use std::{
    fs::{self, File, OpenOptions},
    os::{
        fd::AsRawFd,
        unix::{
            fs::{OpenOptionsExt, PermissionsExt},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::common::{Host, shell, volume::Loop};
use nix::{
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{Signal, kill},
    },
    unistd::Pid,
};

const MIB: u64 = 1 << 20;
/// How many processes a flood has; a search of all of them takes longer than the time of a
/// hot-plug.
const PROCESSES: usize = 40;
/// How many descriptors each of them has, as far as the limit allows.
const DESCRIPTORS: u64 = 20_000;
const NOBODY: u32 = 65534;
const ROOT: u32 = 0;

/// A process that is named like QEMU and has descriptors. It ends with its test.
struct Named(Child);

impl Named {
    /// Starts it as a user that can run what is in `directory`.
    #[expect(unsafe_code, reason = "descriptors are opened between fork and exec")]
    fn start(directory: &Path, user: u32, stdin: impl Into<Stdio>, descriptors: u64) -> Self {
        let program = directory.join("qemu-system-x86_64");
        let mut command = Command::new(program);
        command.arg("600").stdin(stdin).uid(user);
        let flood = move || {
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
            for _ in 0..descriptors.min(hard - 16) {
                // SAFETY: the call takes an integer; the new descriptor is left open on purpose.
                if unsafe { libc::dup(0) } < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        };
        // SAFETY: the closure only makes system calls that are safe after a fork.
        unsafe { command.pre_exec(flood) };
        Self(command.spawn().unwrap())
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes a directory with a program that sleeps and is named like QEMU.
fn program() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    fs::copy("/bin/sleep", directory.path().join("qemu-system-x86_64")).unwrap();
    directory
}

/// Starts processes of `user` with many descriptors of the null device.
fn flood(directory: &Path, user: u32) -> Vec<Named> {
    let null = || File::open("/dev/null").unwrap();
    (0..PROCESSES).map(|_| Named::start(directory, user, null(), DESCRIPTORS)).collect()
}

/// A volume that only root can open.
fn volume() -> Loop {
    let volume = Loop::of(MIB);
    fs::set_permissions(volume.path(), PermissionsExt::from_mode(0o600)).unwrap();
    volume
}

#[tokio::test]
async fn a_user_without_access_to_the_source_does_not_delay_a_hot_plug() {
    let host = Host::boot().await;
    let (volume, program) = (volume(), program());
    let _flood = flood(program.path(), NOBODY);
    let ran = host.plug(volume.path(), "/dev/xvda", &["--timeout", "3s"]).await;
    ran.report();
    assert!(ran.took < Duration::from_secs(3), "{:?}", ran.took);
}

#[tokio::test]
async fn a_descriptor_that_can_neither_read_nor_write_is_no_use() {
    let host = Host::boot().await;
    let (volume, program) = (volume(), program());
    // Every user can have one of a file that only root can open.
    let path = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(volume.path());
    let _holder = Named::start(program.path(), NOBODY, path.unwrap(), 0);
    host.plug(volume.path(), "/dev/xvda", &[]).await.report();
}

#[tokio::test]
async fn a_search_that_takes_too_long_is_a_timeout_that_names_the_process() {
    let mut host = Host::boot().await;
    let (volume, program) = (volume(), program());
    let before = host.snapshot().await;
    let flood = flood(program.path(), ROOT);
    for more in [&["--dry-run"][..], &[]] {
        let options = [&["--timeout", "1s"], more].concat();
        let ran = host.plug(volume.path(), "/dev/xvda", &options).await;
        ran.assert_fails("timed_out", 7);
        let message = ran.failure().message;
        let is_named = |named: &Named| {
            message.contains(&format!("process {} (qemu-system-x86) of user 0", named.0.id()))
        };
        assert!(flood.iter().any(is_named), "{message}");
        assert!(ran.took < Duration::from_secs(3), "{:?}", ran.took);
    }
    assert_eq!(host.snapshot().await, before);
    drop(flood);
    host.plug(volume.path(), "/dev/xvda", &[]).await.report();
}

/// Waits until the process searches on a thread of its own.
fn await_search(pid: Pid) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let is_search =
        |task: PathBuf| fs::read(task.join("comm")).is_ok_and(|name| name == b"source\n");
    loop {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        if tasks.filter_map(Result::ok).any(|task| is_search(task.path())) {
            return;
        }
        assert!(Instant::now() < deadline, "no search began");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn a_signal_ends_a_search_at_once() {
    let mut host = Host::boot().await;
    let (volume, program) = (volume(), program());
    let before = host.snapshot().await;
    let _flood = flood(program.path(), ROOT);
    let whole = host.plug(volume.path(), "/dev/xvda", &["--timeout", "60s", "--dry-run"]).await;
    whole.report();

    let mut command = host.command(&[(volume.path(), "/dev/xvda")], &["--timeout", "60s"]);
    let (child, pid) = shell::start(&mut command);
    tokio::task::spawn_blocking(move || await_search(pid)).await.unwrap();
    let start = Instant::now();
    kill(pid, Signal::SIGINT).unwrap();
    let output = child.wait_with_output().await.unwrap();
    let took = start.elapsed();
    assert_eq!(output.status.code(), Some(128 + Signal::SIGINT as i32), "{output:?}");
    assert!(took < whole.took / 2, "{took:?} of {:?}", whole.took);
    assert_eq!(host.snapshot().await, before);
    assert!(!volume.is_claimed());
}

#[tokio::test]
async fn a_qemu_that_got_the_device_from_another_process_is_reported() {
    let mut host = Host::boot().await;
    let (volume, program) = (volume(), program());
    let _flood = flood(program.path(), NOBODY);
    let device = OpenOptions::new().read(true).write(true).open(volume.path()).unwrap();
    assert!(device.as_raw_fd() > 2);
    let holder = Named::start(program.path(), NOBODY, device, 0);
    let before = host.snapshot().await;
    let ran = host.plug(volume.path(), "/dev/xvda", &[]).await;
    ran.assert_fails("source_held", 6);
    let message = ran.failure().message;
    assert!(message.contains(&format!("process {} (qemu-system-x86)", holder.0.id())), "{message}");
    assert_eq!(host.snapshot().await, before);
}
