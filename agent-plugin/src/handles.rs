//! Handles on a running container, from the pid of its first process: a pidfd
//! ([pidfd_open(2)](https://man7.org/linux/man-pages/man2/pidfd_open.2.html)) and its
//! [namespaces(7)](https://man7.org/linux/man-pages/man7/namespaces.7.html).
//!
//! The pid may have been reused since the agent recorded it, and the process may have left the
//! namespace that the agent pinned: a container may do that by itself. Neither is a reason to
//! refuse a detach, so the handles are opened all the same. What needs the process itself checks
//! that it is in the pinned namespace.
//!
//! An agent that pins no namespace has the present one of the process. So the pidfd is opened
//! first, and the process must still be alive at the end: then what was opened in between was its
//! own.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    process,
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
        let opened = namespaces(mount_namespace);
        // The end of the process explains every error before.
        if pidfd::has_ended(&pidfd) {
            return Err(ContainerError::Stopped);
        }
        let (mount_namespace, user_namespace) = opened?;
        Ok(Self { init: pidfd, mount_namespace, user_namespace, cgroup, device_rules })
    }

    /// What remains of a container whose first process has ended, for
    /// [`Agent::remains`](crate::Agent::remains): its mount namespace, by a path of a descriptor
    /// that the agent holds open (`/proc/self/fd/N`), and its cgroup.
    ///
    /// # Errors
    /// [`ContainerError::Unreachable`]: the namespace cannot be opened, or the path is another one.
    /// `/proc/PID/ns/mnt` of a process that has ended would be the namespace of another process
    /// that has its pid now.
    pub fn remains(
        mount_namespace: &Path,
        cgroup: PathBuf,
        device_rules: Vec<DeviceRule>,
    ) -> Result<Self, ContainerError> {
        let own = [PathBuf::from("/proc/self/fd"), format!("/proc/{}/fd", process::id()).into()];
        if !mount_namespace.parent().is_some_and(|parent| own.iter().any(|own| own == parent)) {
            let path = mount_namespace.display();
            let reason = format!("{path} is no descriptor of the agent, and its process has ended");
            return Err(ContainerError::Unreachable(reason));
        }
        let (mount_namespace, user_namespace) = namespaces(mount_namespace)?;
        // Readable at once, as the pidfd of a process that has ended is.
        let init = open(Path::new("/dev/null"))?.into();
        Ok(Self { init, mount_namespace, user_namespace, cgroup, device_rules })
    }
}

/// Opens the mount namespace, and the user namespace that owns it where that is not ours.
fn namespaces(mount: &Path) -> Result<(OwnedFd, Option<OwnedFd>), ContainerError> {
    let mount_namespace = open(mount)?;
    let ours = Path::new("/proc/self/ns/user");
    // A kernel without user namespaces (CONFIG_USER_NS) has no such file, and no owner to tell.
    if fs::symlink_metadata(ours).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok((mount_namespace.into(), None));
    }
    let owner = owner(&mount_namespace)
        .map_err(|errno| unreachable("ioctl(NS_GET_USERNS)", mount)(errno.into()))?;
    let is_ours = identity(&owner, mount)? == identity(&open(ours)?, ours)?;
    Ok((mount_namespace.into(), (!is_ours).then(|| owner.into())))
}

/// The user namespace that owns a namespace
/// ([ioctl_nsfs(2)](https://man7.org/linux/man-pages/man2/ioctl_nsfs.2.html)): not the present one
/// of the process, which may have made another since.
#[expect(unsafe_code, reason = "NS_GET_USERNS has no safe wrapper in libc or nix")]
fn owner(namespace: &File) -> Result<File, Errno> {
    const NS_GET_USERNS: libc::c_ulong = 0xb701;
    // SAFETY: the call takes a descriptor and a number, and returns a new descriptor or -1.
    let fd = Errno::result(unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS as _) })?;
    // SAFETY: the descriptor is new, and nothing else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
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
    use crate::namespace::Target;

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

    fn target(container: Container) -> Target {
        Target { id: "c1".into(), container: container.into() }
    }

    #[test]
    fn a_process_in_another_namespace_is_not_taken_for_the_containers() {
        let (child, pid) = process("cat", &[]);
        let inside = target(of(pid, "/proc/self/ns/mnt").unwrap());
        inside.check_inside().unwrap();
        // Any other namespace will do: this one is even of another kind.
        let outside = target(of(pid, "/proc/self/ns/net").unwrap());
        let error = outside.check_inside().unwrap_err().message();
        assert!(error.contains("is not in the container's mount namespace"), "{error}");
        let error = of(pid, "/proc/self/fd/1000000").unwrap_err().to_string();
        assert!(error.contains("open of /proc/self/fd/1000000: No such file"), "{error}");
        end(child);
        assert!(matches!(
            inside.check_inside().as_ref().map_err(|error| &**error),
            Err(crate::Error::ContainerEnded { .. })
        ));
    }

    #[test]
    fn what_remains_of_a_container_is_found_by_the_agents_own_descriptor_alone() {
        let remains = |path: &str| Container::remains(Path::new(path), "/c1".into(), Vec::new());
        let pinned = File::open("/proc/self/ns/mnt").unwrap();
        let number = pinned.as_raw_fd();
        for own in ["self".to_owned(), process::id().to_string()] {
            let container = remains(&format!("/proc/{own}/fd/{number}")).unwrap();
            assert!(pidfd::has_ended(&container.init) && container.user_namespace.is_none());
            let (found, path) = (container.mount_namespace.into(), Path::new(""));
            assert_eq!(identity(&found, path).unwrap(), identity(&pinned, path).unwrap());
        }
        let error = remains(&format!("/proc/{}/ns/mnt", process::id())).unwrap_err().to_string();
        assert!(error.contains("is no descriptor of the agent"), "{error}");
    }

    #[test]
    fn an_invalid_pid_is_named() {
        let error = of(0, "/proc/self/ns/mnt").unwrap_err().to_string();
        assert!(error.contains("pidfd_open of process 0: Invalid argument"), "{error}");
    }

    #[test]
    fn the_user_namespace_is_that_of_the_mount_namespace_wherever_the_process_is() {
        let script = "unshare --user --map-root-user --mount sh -c 'echo ready; exec cat'";
        let (mut child, pid) = process("sh", &["-c", &format!("read line; exec {script}")]);
        let pinned = File::open(format!("/proc/{pid}/ns/mnt")).unwrap();
        let ours = format!("/proc/self/fd/{}", pinned.as_raw_fd());
        io::Write::write_all(child.stdin.as_mut().unwrap(), b"go\n").unwrap();
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line)
            .unwrap();
        assert_eq!(line, "ready\n", "unshare of util-linux");
        assert!(of(pid, &format!("/proc/{pid}/ns/mnt")).unwrap().user_namespace.is_some());
        assert!(of(pid, &ours).unwrap().user_namespace.is_none());
        end(child);
    }
}
