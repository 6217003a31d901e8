//! The attack of a hostile container on a volume that is unplugged: it keeps something that refers
//! to the device node, and opens it afterwards, when the number may be another volume's.
//!
//! The observer is mounted into the container and run as `observer hold KIND NODE DIRECTORY`. It
//! makes the file `held` in the directory, waits for a file `open` there, opens what it has, makes
//! the file `opened`, waits for `release`, and prints what it read.
//!
//! | kind | what refers to the node |
//! |---|---|
//! | `descriptor` | a descriptor (`O_PATH`), reopened through `/proc/self/fd` |
//! | `socket` | a descriptor in transit in a socket (`SCM_RIGHTS`) |
//! | `unmounted` | a descriptor, after the container has unmounted the node itself |
//! | `tree` | a copy of the mount that is in no namespace (`open_tree`) |
//! | `namespace` | a mount in a process's own user and mount namespace |
//! | `dead-namespace` | the same, after the end of the process; a descriptor keeps the namespace |

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, IoSlice, IoSliceMut, Read as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    process, thread,
    time::Duration,
};

use nix::{
    cmsg_space,
    errno::Errno,
    fcntl::{OFlag, open},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::{
        socket::{
            AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
            UnixAddr, recvmsg, sendmsg, socketpair,
        },
        stat::Mode,
    },
};

/// What is kept, and how it is opened.
enum Held {
    Descriptor(OwnedFd),
    Socket { _sender: OwnedFd, receiver: OwnedFd },
    Mounted(PathBuf),
    Namespaces { user: File, mount: File, node: PathBuf },
}

/// Keeps a reference to `node`, opens it when it is told to, and returns what it read.
///
/// # Errors
/// The kernel refuses the reference.
pub(crate) fn hold(kind: &str, node: &Path, directory: &Path) -> io::Result<String> {
    let held = match kind {
        "descriptor" => Held::Descriptor(open_path(node)?),
        "socket" => park(&open_path(node)?)?,
        "unmounted" => {
            let descriptor = open_path(node)?;
            umount2(node, MntFlags::MNT_DETACH)?;
            Held::Descriptor(descriptor)
        }
        "tree" => Held::Descriptor(copy(node)?),
        "namespace" => Held::Mounted(mount_privately(node, directory)?),
        "dead-namespace" => outlive(node, directory)?,
        other => return Err(io::Error::other(format!("{other} is no kind of reference"))),
    };
    fs::write(directory.join("held"), "")?;
    wait_for(&directory.join("open"));
    let read = read(&held);
    fs::write(directory.join("opened"), "")?;
    wait_for(&directory.join("release"));
    drop(held);
    Ok(match read {
        Ok(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        Err(error) => format!("error: {error}"),
    })
}

pub(crate) fn wait_for(file: &Path) {
    while !file.exists() {
        thread::sleep(Duration::from_millis(10));
    }
}

fn open_path(node: &Path) -> Result<OwnedFd, Errno> {
    open(node, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
}

/// Sends a descriptor to a socket that nobody reads yet.
fn park(descriptor: &OwnedFd) -> io::Result<Held> {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC)?;
    let sent = [descriptor.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&sent)];
    sendmsg::<UnixAddr>(
        ours.as_raw_fd(),
        &[IoSlice::new(b"x")],
        &control,
        MsgFlags::empty(),
        None,
    )?;
    Ok(Held::Socket { _sender: ours, receiver: theirs })
}

#[expect(unsafe_code, reason = "open_tree(2) has no safe wrapper in libc or nix")]
fn copy(node: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(node.as_os_str().as_bytes())?;
    let flags = libc::OPEN_TREE_CLONE | libc::O_CLOEXEC.unsigned_abs();
    // SAFETY: the path is a C string that outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = RawFd::try_from(Errno::result(fd)?).map_err(io::Error::other)?;
    // SAFETY: the descriptor is new, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Mounts the node at another place of a namespace of this process's own.
fn mount_privately(node: &Path, directory: &Path) -> io::Result<PathBuf> {
    let place = directory.join("place");
    fs::write(&place, "place")?;
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
    const NONE: Option<&str> = None;
    mount(Some(node), &place, NONE, MsFlags::MS_BIND, NONE)?;
    Ok(place)
}

/// Keeps the namespaces of a process that has ended.
fn outlive(node: &Path, directory: &Path) -> io::Result<Held> {
    let of_child = directory.join("child");
    fs::create_dir(&of_child)?;
    let mut child = process::Command::new("/proc/self/exe")
        .args(["hold", "namespace"])
        .args([node, of_child.as_path()])
        .stdout(process::Stdio::null())
        .spawn()?;
    wait_for(&of_child.join("held"));
    let namespace = |name: &str| File::open(format!("/proc/{}/ns/{name}", child.id()));
    let (user, mount) = (namespace("user")?, namespace("mnt")?);
    child.kill()?;
    child.wait()?;
    Ok(Held::Namespaces { user, mount, node: of_child.join("place") })
}

fn read(held: &Held) -> io::Result<Vec<u8>> {
    let of_descriptor = |fd: RawFd| PathBuf::from(format!("/proc/self/fd/{fd}"));
    let (received, path);
    match held {
        Held::Descriptor(descriptor) => path = of_descriptor(descriptor.as_raw_fd()),
        Held::Socket { receiver: socket, .. } => {
            received = receive(socket)?;
            path = of_descriptor(received.as_raw_fd());
        }
        Held::Mounted(place) => path = place.clone(),
        Held::Namespaces { user, mount, node } => {
            setns(user, CloneFlags::CLONE_NEWUSER)?;
            setns(mount, CloneFlags::CLONE_NEWNS)?;
            path = node.clone();
        }
    }
    let mut bytes = vec![0; 16];
    let read = File::open(path)?.read(&mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}

#[expect(unsafe_code, reason = "nix returns received descriptors as numbers")]
fn receive(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut data = [IoSliceMut::new(&mut byte)];
    let mut space = cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message =
        recvmsg::<UnixAddr>(socket.as_fd().as_raw_fd(), &mut data, Some(&mut space), flags)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control
            && let Some(&descriptor) = descriptors.first()
        {
            // SAFETY: the descriptor is new, and nothing else owns it.
            return Ok(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
    }
    Err(io::Error::other("no descriptor was received"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_read_when_it_is_asked_for() {
        for kind in ["descriptor", "socket"] {
            let directory = tempfile::tempdir().unwrap();
            let node = directory.path().join("node");
            fs::write(&node, "content").unwrap();
            fs::write(directory.path().join("open"), "").unwrap();
            fs::write(directory.path().join("release"), "").unwrap();
            assert_eq!(hold(kind, &node, directory.path()).unwrap(), "636f6e74656e74", "{kind}");
            assert!(directory.path().join("held").exists());
        }
        assert!(hold("nothing", Path::new("/"), Path::new("/")).is_err());
    }
}
