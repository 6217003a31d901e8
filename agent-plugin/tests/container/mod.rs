//! A minimal container: a process with its own mount namespace, root and `/dev`. Needs root,
//! util-linux and a kernel with the loop driver.

#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses a part of it")]

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    os::{
        fd::{AsFd as _, FromRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Arc,
};

use agent_plugin::{Container, DeviceRule, namespace::Target};
use tempfile::TempDir;

/// Fails the test, with a reason, if it does not run as root.
pub(crate) fn needs_root() {
    assert!(
        nix::unistd::Uid::effective().is_root(),
        "this test mounts file systems: run it as root"
    );
}

/// A waiting process, chrooted into a bind mount of the host's root with its own tmpfs on /dev and
/// /srv.
pub(crate) struct Fixture {
    process: Child,
    pub(crate) target: Target,
    /// Dropped last: while the namespace exists, a removal of the directory detaches its mounts in
    /// one piece, and the kernel never frees a piece in which a loop device's file system is
    /// mounted beside its image.
    directory: TempDir,
}

/// Starts a fixture. The shell script `extra` runs in its namespace and can mount more than `/dev`
/// and `/srv`; `$root` is the fixture's root.
pub(crate) fn start(extra: &str) -> Fixture {
    start_in(extra, Path::new("/"), Vec::new())
}

/// Starts a fixture with a user namespace whose root is our user 100000.
pub(crate) fn start_with_user_namespace(extra: &str) -> Fixture {
    needs_root();
    // The keeper keeps the namespace alive until the fixture's own process has entered it.
    let mut keeper = Command::new("unshare")
        .args(["--user", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare of util-linux");
    keeper.stdin.as_mut().expect("piped").write_all(b"here\n").expect("its stdin");
    let mut line = String::new();
    BufReader::new(keeper.stdout.as_mut().expect("piped"))
        .read_line(&mut line)
        .expect("its answer");
    let of_keeper = |name: &str| format!("/proc/{}/{name}", keeper.id());
    for map in ["uid_map", "gid_map"] {
        std::fs::write(of_keeper(map), "0 100000 65536").expect("root may map any user");
    }
    let enter =
        ["nsenter", &format!("--user={}", of_keeper("ns/user")), "--setuid=0", "--setgid=0"]
            .map(str::to_owned);
    // The fixture's inherited mounts are locked together, and it may not mount its own proc.
    let fixture = start_by(&enter, "rbind", "true", extra, Path::new("/"), Vec::new());
    keeper.kill().expect("kill");
    keeper.wait().expect("wait");
    fixture
}

/// Starts a fixture with a cgroup and the device rules of a specification.
pub(crate) fn start_in(extra: &str, cgroup: &Path, device_rules: Vec<DeviceRule>) -> Fixture {
    start_by(&[], "bind", "mount -t proc proc $root/proc", extra, cgroup, device_rules)
}

fn start_by(
    enter: &[String],
    bind: &str,
    proc: &str,
    extra: &str,
    cgroup: &Path,
    device_rules: Vec<DeviceRule>,
) -> Fixture {
    needs_root();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let script = format!(
        "set -e; root=$1; mount --{bind} / $root; mount -t tmpfs -o mode=755 dev $root/dev; mount -t tmpfs srv $root/srv
         {proc}; mkdir $root/dev/sub; echo inside >$root/srv/inside
         {extra}
         echo ready; exec chroot $root cat"
    );
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory.path(), permissions).expect("our own directory");
    let mut words = enter.iter().map(String::as_str).chain(["unshare"]);
    let mut process = Command::new(words.next().expect("at least one"))
        .args(words)
        .args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"])
        .arg(directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .expect("unshare of util-linux");
    let init = pidfd(process.id());
    let mut line = String::new();
    let stdout = process.stdout.as_mut().expect("piped");
    BufReader::new(stdout).read_line(&mut line).expect("the container's first line");
    assert_eq!(line, "ready\n", "the container's script failed, see its error above");
    // cat replies only after the chroot.
    let stdin = process.stdin.as_mut().expect("piped");
    stdin.write_all(b"here\n").expect("the container's stdin");
    line.clear();
    BufReader::new(process.stdout.as_mut().expect("piped"))
        .read_line(&mut line)
        .expect("cat's answer");
    assert_eq!(line, "here\n");
    let namespace =
        File::open(format!("/proc/{}/ns/mnt", process.id())).expect("its mount namespace");
    let container = Container {
        init,
        mount_namespace: namespace.into(),
        user_namespace: (!enter.is_empty()).then(|| {
            File::open(format!("/proc/{}/ns/user", process.id()))
                .expect("its user namespace")
                .into()
        }),
        cgroup: cgroup.to_owned(),
        device_rules,
    };
    let target = Target { id: "c1".into(), container: Arc::new(container) };
    Fixture { process, target, directory }
}

impl Fixture {
    /// Runs a command as a process of the container; `path`s are the container's.
    pub(crate) fn run(&self, command: &[&str]) -> Output {
        let output = self.try_run(command);
        assert!(output.status.success(), "{command:?}: {output:?}");
        output
    }

    /// Runs a command that has to fail and returns its standard error.
    pub(crate) fn fails(&self, command: &[&str]) -> String {
        let output = self.try_run(command);
        assert!(!output.status.success(), "{command:?}: {output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn try_run(&self, command: &[&str]) -> Output {
        let pid = self.process.id().to_string();
        let has_users = self.target.container.user_namespace.is_some();
        let user: &[&str] = if has_users { &["--user", "--setuid=0", "--setgid=0"] } else { &[] };
        Command::new("nsenter")
            .args(["--target", &pid, "--mount", "--root", "--wd"])
            .args(user)
            .args(command)
            .output()
            .expect("nsenter of util-linux")
    }

    /// Runs `stat` in the container.
    pub(crate) fn stat(&self, format: &str, path: &str) -> String {
        let output = self.run(&["stat", "-c", format, path]);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Returns the names in a directory of the container.
    pub(crate) fn list(&self, path: &str) -> Vec<String> {
        let output = self.run(&["ls", "-A", path]);
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }

    /// Duplicates the handles, as an agent does for each request.
    pub(crate) fn handles(&self) -> Container {
        let container = &self.target.container;
        let clone = |fd: &OwnedFd| fd.try_clone().expect("dup");
        Container {
            init: clone(&container.init),
            mount_namespace: clone(&container.mount_namespace),
            user_namespace: container.user_namespace.as_ref().map(clone),
            cgroup: container.cgroup.clone(),
            device_rules: container.device_rules.clone(),
        }
    }

    /// Ends the container's process, and waits for it.
    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("kill");
        self.process.wait().expect("wait");
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().to_owned()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // Both fail only if the process has ended already. Its mounts end with its namespace.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[expect(unsafe_code, reason = "pidfd_open(2) has no safe wrapper in libc or nix")]
fn pidfd(pid: u32) -> OwnedFd {
    // SAFETY: the call takes two numbers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    assert!(fd >= 0, "pidfd_open: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new, nothing else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("a descriptor")) };
    assert!(fd.as_fd().try_clone_to_owned().is_ok());
    fd
}

/// The mount namespaces of this process's threads, without duplicates.
pub(crate) fn thread_namespaces() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = threads()
        .iter()
        .filter_map(|thread| std::fs::read_link(thread.join("ns/mnt")).ok())
        .collect();
    found.sort();
    found.dedup();
    found
}

/// The directories `/proc/self/task/*`.
pub(crate) fn threads() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/proc/self/task").expect("/proc");
    entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect()
}
