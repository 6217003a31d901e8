//! Handles on a running container, from the pid of its first process: a pidfd
//! ([pidfd_open(2)](https://man7.org/linux/man-pages/man2/pidfd_open.2.html)) and its
//! [namespaces(7)](https://man7.org/linux/man-pages/man7/namespaces.7.html).
//!
//! The pid may have been reused since the agent recorded it. So the pidfd is opened first; then the
//! process must be in the container's mount namespace, and must still be alive at the end. Then
//! everything that was read in between was its own.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use nix::errno::Errno;

use crate::{
    agent::{Container, ContainerError, DeviceRule},
    pidfd,
};

impl Container {
    /// The container whose first process is `init` and whose mount namespace `mount_namespace`
    /// leads to: a path that the agent holds open (`/proc/self/fd/N`) or, where it holds none,
    /// `/proc/PID/ns/mnt`.
    ///
    /// Does not block: an agent may call it with its lock held.
    ///
    /// # Errors
    /// [`ContainerError::Stopped`] where the process has ended, else
    /// [`ContainerError::Unreachable`].
    pub fn of_process(
        init: i32,
        mount_namespace: &Path,
        cgroup: PathBuf,
        device_rules: Vec<DeviceRule>,
    ) -> Result<Self, ContainerError> {
        let pidfd = match pidfd::open(init) {
            Ok(pidfd) => pidfd,
            Err(Errno::ESRCH) => return Err(ContainerError::Stopped),
            Err(errno) => {
                let error = io::Error::from(errno);
                return Err(ContainerError::Unreachable(format!(
                    "pidfd_open of process {init}: {error}"
                )));
            }
        };
        let opened = namespaces(init, mount_namespace);
        // The end of the process explains every error before.
        if pidfd::has_ended(&pidfd) {
            return Err(ContainerError::Stopped);
        }
        let (mount_namespace, user_namespace) = opened?;
        Ok(Self { init: pidfd, mount_namespace, user_namespace, cgroup, device_rules })
    }
}

/// Opens the mount namespace, and the user namespace where it is not ours.
fn namespaces(init: i32, mount: &Path) -> Result<(OwnedFd, Option<OwnedFd>), ContainerError> {
    let of_process = |name: &str| PathBuf::from(format!("/proc/{init}/ns/{name}"));
    let mount_namespace = open(mount)?;
    if identity(&mount_namespace, mount)? != identity(&open(&of_process("mnt"))?, mount)? {
        return Err(ContainerError::Unreachable(format!(
            "process {init} is not in the container's mount namespace: it left it, or has ended and its pid was reused"
        )));
    }
    let (user, ours) = (of_process("user"), Path::new("/proc/self/ns/user"));
    let user_namespace = open(&user)?;
    let is_ours = identity(&user_namespace, &user)? == identity(&open(ours)?, ours)?;
    Ok((mount_namespace.into(), (!is_ours).then(|| user_namespace.into())))
}

fn open(path: &Path) -> Result<File, ContainerError> {
    File::open(path).map_err(unreachable("open", path))
}

/// What distinguishes one namespace from another.
fn identity(file: &File, path: &Path) -> Result<(u64, u64), ContainerError> {
    let metadata = file.metadata().map_err(unreachable("fstat", path))?;
    Ok((metadata.dev(), metadata.ino()))
}

fn unreachable(call: &str, path: &Path) -> impl FnOnce(io::Error) -> ContainerError {
    move |error| ContainerError::Unreachable(format!("{call} of {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::{
        os::fd::AsFd as _,
        process::{Child, Command, Stdio},
    };

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn process(program: &str, arguments: &[&str]) -> (Child, i32) {
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let child = child.unwrap_or_else(|error| panic!("{program}: {error}"));
        let pid = i32::try_from(child.id()).unwrap();
        (child, pid)
    }

    fn end(mut child: Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn of(init: i32, mount_namespace: &str) -> Result<Container, ContainerError> {
        Container::of_process(init, Path::new(mount_namespace), "/pod/c1".into(), Vec::new())
    }

    #[test]
    fn a_running_process_has_handles_and_no_user_namespace_of_its_own() {
        let (child, pid) = process("cat", &[]);
        let container = of(pid, &format!("/proc/{pid}/ns/mnt")).unwrap();
        assert!(!pidfd::has_ended(&container.init));
        let ours = identity(&File::open("/proc/self/ns/mnt").unwrap(), Path::new("")).unwrap();
        assert_eq!(identity(&container.mount_namespace.into(), Path::new("")).unwrap(), ours);
        assert!(container.user_namespace.is_none());
        end(child);
        assert!(pidfd::has_ended(&container.init));
    }

    #[test]
    fn a_process_that_has_ended_is_stopped_before_and_after_it_was_waited_for() {
        let pinned = File::open("/proc/self/ns/mnt").unwrap();
        let pinned = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&pinned));
        let (mut child, pid) = process("true", &[]);
        let pidfd = pidfd::open(pid).unwrap();
        poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
        assert_eq!(of(pid, &pinned).unwrap_err(), ContainerError::Stopped);
        child.wait().unwrap();
        assert_eq!(of(pid, &format!("/proc/{pid}/ns/mnt")).unwrap_err(), ContainerError::Stopped);
    }

    #[test]
    fn a_process_in_another_namespace_is_not_taken_for_the_containers() {
        let (child, pid) = process("cat", &[]);
        // Any other namespace will do: this one is even of another kind.
        let error = of(pid, "/proc/self/ns/net").unwrap_err().to_string();
        assert!(
            error.contains(&format!("process {pid} is not in the container's mount namespace")),
            "{error}"
        );
        let error = of(pid, "/proc/self/fd/1000000").unwrap_err().to_string();
        assert!(error.contains("open of /proc/self/fd/1000000: No such file"), "{error}");
        end(child);
    }

    #[test]
    fn an_invalid_pid_is_named() {
        let error = of(0, "/proc/self/ns/mnt").unwrap_err().to_string();
        assert!(error.contains("pidfd_open of process 0: Invalid argument"), "{error}");
    }

    #[test]
    fn a_user_namespace_of_its_own_is_found() {
        let (mut child, pid) =
            process("unshare", &["--user", "--map-root-user", "sh", "-c", "echo ready; exec cat"]);
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line)
            .unwrap();
        assert_eq!(line, "ready\n", "unshare of util-linux");
        assert!(of(pid, &format!("/proc/{pid}/ns/mnt")).unwrap().user_namespace.is_some());
        end(child);
    }
}
