//! `ecr-qemu` with a real QEMU, started as Kata's shim starts it.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{PermissionsExt as _, symlink},
            net::{UnixListener, UnixStream},
            process::ExitStatusExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use block_volume_qmp::{Deadline, Qmp, QmpError, Server, Trust};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rstest::rstest;
use serde_json::json;

const WRAPPER: &str = env!("CARGO_BIN_EXE_ecr-qemu");
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const LIMIT: Duration = Duration::from_secs(60);

/// A sandbox's directory as the Go runtime lays it out, below a root of any length.
struct Sandbox {
    root: tempfile::TempDir,
    directory: PathBuf,
}

impl Sandbox {
    fn new() -> Self {
        Self::below("vm")
    }

    fn below(parent: &str) -> Self {
        without_syslog();
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join(parent).join("s1");
        fs::create_dir_all(&directory).unwrap();
        Self { root, directory }
    }

    fn monitor(&self) -> PathBuf {
        self.directory.join("extra-monitor.sock")
    }

    /// `program` with the arguments for a VM that never starts its CPU. Its first monitor is its
    /// standard input, which listens on `qmp.sock`.
    fn command(&self, program: &str) -> Command {
        let socket = self.root.path().join("qmp.sock");
        let _ = fs::remove_file(&socket);
        let mut command = Command::new(program);
        command
            .env("ECR_QEMU_PATH", QEMU)
            .args(["-name", "sandbox-s1", "-M", "q35", "-accel", "tcg", "-m", "16", "-S"])
            .args(["-display", "none", "-nodefaults", "-no-user-config"])
            .args(["-qmp", "unix:fd=0,server=on,wait=off", "-pidfile"])
            .arg(self.directory.join("pid"))
            .stdin(OwnedFd::from(UnixListener::bind(socket).unwrap()))
            .stderr(Stdio::piped());
        command
    }

    async fn start(&self) -> Qemu {
        self.run(&mut self.command(WRAPPER)).await
    }

    /// Starts QEMU, and waits for the greeting of its first monitor.
    async fn run(&self, command: &mut Command) -> Qemu {
        let process = command.spawn().unwrap();
        let socket = self.root.path().join("qmp.sock");
        let first = Qmp::connect_within(socket, Deadline::after(LIMIT), LIMIT).await;
        Qemu { process, first: first.unwrap() }
    }
}

/// A QEMU that ends with its owner.
struct Qemu {
    process: Child,
    first: Qmp,
}

impl Qemu {
    /// Ends it, and returns what it and the wrapper wrote to standard error.
    fn end(mut self) -> String {
        self.process.kill().unwrap();
        let mut text = String::new();
        self.process.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.process.kill();
        self.process.wait().expect("a killed child is reaped");
    }
}

/// Gives this test a mount namespace without a reader of `/dev/log`, so that lines go to standard
/// error.
fn without_syslog() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    if Path::new("/dev/log").exists() {
        mount(Some("/dev/null"), "/dev/log", none, MsFlags::MS_BIND, none).unwrap();
    }
}

fn tmpfs(path: &Path, options: &str) {
    mount(None::<&str>, path, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
}

/// Replaces `/etc` in this test's mount namespace by one with these records alone.
fn records(records: &[(&str, &str)]) {
    without_syslog();
    tmpfs(Path::new("/etc"), "mode=755");
    fs::create_dir(RECORDS).unwrap();
    for (name, path) in records {
        fs::write(Path::new(RECORDS).join(name), format!("{path}\n")).unwrap();
    }
}

const RECORDS: &str = "/etc/ecr-runtime";

async fn status(monitor: &Path) -> serde_json::Value {
    let mut qmp = Qmp::connect_within(monitor, Deadline::after(LIMIT), LIMIT).await.unwrap();
    qmp.execute("query-status", json!({})).await.unwrap()
}

#[rstest]
#[case::short("vm")]
#[case::beyond_the_limit_of_an_address(
    "a-directory-name-of-fifty-characters-is-not-so-long/a-directory-name-of-fifty-characters-is-not-so-long"
)]
#[tokio::test]
async fn qemu_has_a_second_monitor_until_it_ends(#[case] parent: &str) {
    let sandbox = Sandbox::below(parent);
    let mut qemu = sandbox.start().await;
    let monitor = sandbox.monitor();
    assert_eq!(fs::metadata(&monitor).unwrap().permissions().mode() & 0o7777, 0o600);
    let pid = i32::try_from(qemu.process.id()).unwrap();
    let recorded = fs::read_to_string(sandbox.directory.join("pid")).unwrap();
    assert_eq!(recorded.trim(), pid.to_string(), "exec keeps the process");
    let trusted = (&Trust::root(), Server::Qemu(Some(pid)));
    let limit = Deadline::after(LIMIT);
    let (second, _) = Qmp::connect_trusted(&monitor, trusted, limit, limit, &[]).await.unwrap();
    let short = Duration::from_secs(2);
    let held = Qmp::connect_within(&monitor, Deadline::after(LIMIT), short).await.unwrap_err();
    assert!(matches!(held, QmpError::Held { .. }), "{held}");
    drop(second);
    assert_eq!(status(&monitor).await["status"], "prelaunch", "a second client, after the first");
    qemu.first.execute("query-status", json!({})).await.unwrap();
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(command.starts_with(format!("{QEMU}\0-name\0").as_bytes()));

    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    let ended = qemu.process.wait().unwrap();
    assert_eq!((ended.code(), ended.signal()), (Some(0), None), "QEMU itself got the signal");
    assert!(!monitor.exists(), "QEMU removes the socket when it ends");
    let said = qemu.end();
    assert!(!said.contains("ecr-qemu") && !said.contains("extra-monitor"), "{said}");
}

#[tokio::test]
async fn a_client_that_never_reads_does_not_stop_qemu() {
    let sandbox = Sandbox::new();
    let mut qemu = sandbox.start().await;
    let mut silent = UnixStream::connect(sandbox.monitor()).unwrap();
    // As soon as QEMU has no room for replies, it does not read, either.
    silent.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut requests = b"{\"execute\":\"qmp_capabilities\"}\n".to_vec();
    requests.extend(b"{\"execute\":\"query-qmp-schema\"}\n".repeat(1 << 16));
    let stopped = silent.write_all(&requests).unwrap_err();
    assert_eq!(stopped.kind(), ErrorKind::WouldBlock);

    qemu.first.set_deadline(Deadline::after(LIMIT));
    for _ in 0..100 {
        qemu.first.execute("query-status", json!({})).await.unwrap();
    }
    let object = json!({"qom-type": "iothread", "id": "t1"});
    qemu.first.execute("object-add", object).await.unwrap();
    drop(silent);
    assert_eq!(status(&sandbox.monitor()).await["status"], "prelaunch");
}

#[rstest]
#[case::missing_directory(|sandbox: &Sandbox| fs::remove_dir(&sandbox.directory).unwrap(), "ENOENT")]
#[case::full_file_system(|sandbox: &Sandbox| tmpfs(&sandbox.directory, "size=4k,nr_inodes=1"), "No space left")]
#[case::read_only_file_system(|sandbox: &Sandbox| tmpfs(&sandbox.directory, "ro"), "Read-only")]
#[case::no_socket(|sandbox: &Sandbox| fs::write(sandbox.monitor(), "").unwrap(), "no socket")]
#[tokio::test]
async fn what_keeps_the_monitor_away_does_not_keep_qemu_from_starting(
    #[case] obstacle: fn(&Sandbox),
    #[case] why: &str,
) {
    let sandbox = Sandbox::new();
    obstacle(&sandbox);
    let mut command = sandbox.command(WRAPPER);
    // The sandbox's directory is known from the first pidfile, which cannot be there; QEMU takes
    // the last one.
    command.arg("-pidfile").arg(sandbox.root.path().join("pid"));
    let qemu = sandbox.run(&mut command).await;
    let arguments = fs::read(format!("/proc/{}/cmdline", qemu.process.id())).unwrap();
    assert!(!String::from_utf8(arguments).unwrap().contains("ecr-monitor"));
    let said = qemu.end();
    assert_eq!(said.matches("ecr-qemu: ").count(), 1, "{said}");
    for part in ["no second monitor for sandbox s1", sandbox.directory.to_str().unwrap(), why] {
        assert!(said.contains(part), "{said}");
    }
}

#[tokio::test]
async fn a_socket_of_a_qemu_that_was_killed_is_replaced() {
    let sandbox = Sandbox::new();
    sandbox.start().await.end();
    assert!(sandbox.monitor().exists(), "SIGKILL leaves it");
    let _qemu = sandbox.start().await;
    assert_eq!(status(&sandbox.monitor()).await["status"], "prelaunch");
}

#[tokio::test]
async fn the_monitor_of_kata_in_debug_mode_stays() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.command(WRAPPER);
    let monitor = format!("unix:path={},server=on,wait=off", sandbox.monitor().display());
    let qemu = sandbox.run(command.args(["-qmp", &monitor])).await;
    assert_eq!(status(&sandbox.monitor()).await["status"], "prelaunch");
    let arguments = fs::read(format!("/proc/{}/cmdline", qemu.process.id())).unwrap();
    assert!(!String::from_utf8(arguments).unwrap().contains("ecr-monitor"));
    let said = qemu.end();
    assert!(!said.contains("ecr-qemu"), "{said}");
}

#[tokio::test]
async fn a_qemu_of_another_name_is_started_by_its_record() {
    let sandbox = Sandbox::new();
    let other = sandbox.root.path().join("my-emulator");
    symlink(QEMU, &other).unwrap();
    records(&[("ecr-qemu.path", other.to_str().unwrap())]);
    let qemu = sandbox.run(sandbox.command(WRAPPER).env_remove("ECR_QEMU_PATH")).await;
    assert_eq!(status(&sandbox.monitor()).await["status"], "prelaunch");
    let arguments = fs::read(format!("/proc/{}/cmdline", qemu.process.id())).unwrap();
    assert!(arguments.starts_with(other.as_os_str().as_encoded_bytes()));
    let said = qemu.end();
    assert!(!said.contains("ecr-qemu"), "{said}");
}

fn output(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}

/// What two wrappers do whose records name each other, and others without a QEMU of their own.
#[rstest]
#[case::none(&[], "No such file")]
#[case::itself(&[("ecr-qemu.path", WRAPPER)], "the wrapper itself")]
#[case::relative(&[("ecr-qemu.path", "qemu-system-x86_64")], "not one absolute path")]
fn without_a_usable_record_the_usual_qemu_is_started(
    #[case] recorded: &[(&str, &str)],
    #[case] why: &str,
) {
    records(recorded);
    let ran = output(WRAPPER, &["--version"]);
    let said = String::from_utf8(ran.stderr).unwrap();
    assert!(String::from_utf8(ran.stdout).unwrap().starts_with("QEMU emulator version"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("ecr-qemu.path") && said.contains(why), "{said}");
}

#[test]
fn a_record_that_others_can_write_is_ignored() {
    records(&[("ecr-qemu.path", "/bin/false")]);
    let record = Path::new(RECORDS).join("ecr-qemu.path");
    fs::set_permissions(&record, fs::Permissions::from_mode(0o666)).unwrap();
    let ran = output(WRAPPER, &["--version"]);
    let said = String::from_utf8(ran.stderr).unwrap();
    assert!(ran.status.success() && said.contains("mode 0666"), "{said}");
}

#[test]
fn wrappers_that_are_recorded_for_each_other_end() {
    let root = tempfile::tempdir().unwrap();
    let copy = root.path().join("ecr-qemu-copy");
    fs::copy(WRAPPER, &copy).unwrap();
    records(&[("ecr-qemu.path", copy.to_str().unwrap()), ("ecr-qemu-copy.path", WRAPPER)]);
    let ran = output(WRAPPER, &["--version"]);
    let said = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(126), "{said}");
    assert!(said.contains("was executed by ecr-qemu in place of QEMU"), "{said}");
}

#[rstest]
#[case::missing("/nonexistent/qemu", 127, "No such file or directory")]
#[case::not_executable("/etc/passwd", 126, "Permission denied")]
fn a_qemu_that_cannot_be_executed_is_named(
    #[case] qemu: &str,
    #[case] code: i32,
    #[case] why: &str,
) {
    let sandbox = Sandbox::new();
    let ran = sandbox.command(WRAPPER).env("ECR_QEMU_PATH", qemu).output().unwrap();
    let said = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(code), "{said}");
    assert!(said.contains(qemu) && said.contains(why), "{said}");
    assert!(!sandbox.monitor().exists(), "no process would serve it");
}

/// What a program inherits, started by a shell after `prelude`: signals, umask and descriptors.
fn inherited(wrapped: bool, prelude: &str, name: &[&str]) -> String {
    let shell = "grep -E '^(SigBlk|SigIgn|Umask)' /proc/self/status; ls /proc/self/fd";
    let line = format!("{prelude}\nexec \"$0\" \"$@\"");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &line]);
    // The shell is started in place of QEMU.
    command.arg(if wrapped { WRAPPER } else { "/bin/sh" }).env("ECR_QEMU_PATH", "/bin/sh");
    let ran = command.args(["-c", shell]).args(name).output().unwrap();
    String::from_utf8(ran.stdout).unwrap()
}

#[rstest]
#[case::usual("")]
#[case::ignored_signals("trap '' PIPE USR1 TERM")]
#[case::descriptors("exec 3</dev/null 5</dev/null 9</dev/null")]
#[case::closed_input("exec <&-")]
#[case::umask("umask 027")]
fn qemu_inherits_what_the_shim_left_and_the_monitor(#[case] prelude: &str) {
    let direct = inherited(false, prelude, &[]);
    assert!(direct.contains("SigIgn"), "{direct}");
    assert_eq!(inherited(true, prelude, &[]), direct, "without a sandbox nothing is added");
    let sandbox = Sandbox::new();
    let pid_file = sandbox.directory.join("pid");
    let named = ["sh", "-name", "sandbox-s1", "-pidfile", pid_file.to_str().unwrap()];
    let with_monitor = inherited(true, prelude, &named);
    assert_eq!(with_monitor.replacen("\n64\n", "\n", 1), direct, "one descriptor more");
    assert_ne!(with_monitor, direct);
}
