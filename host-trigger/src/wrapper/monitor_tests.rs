//! Sockets in directories as they may be when QEMU starts. The umask is the process's, so the tests
//! of modes run in one test.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        net::UnixStream,
    },
};

use super::*;

fn listen(directories: &[&Path]) -> Result<Monitor, NoMonitor> {
    let directories: Vec<_> = directories.iter().map(|path| path.to_path_buf()).collect();
    Monitor::listen("s1", &directories)
}

/// What the socket of `monitor` is bound to.
fn address(monitor: &Monitor) -> PathBuf {
    let bound = nix::sys::socket::getsockname::<UnixAddr>(monitor.descriptor).unwrap();
    bound.path().unwrap().to_owned()
}

#[test]
fn the_socket_is_in_the_first_directory_that_exists_and_only_its_owners() {
    let root = tempfile::tempdir().unwrap();
    let (missing, link) = (root.path().join("missing"), root.path().join("sid"));
    fs::create_dir(root.path().join("vmid")).unwrap();
    symlink("vmid", &link).unwrap();
    let monitor = listen(&[&missing, &link, root.path()]).unwrap();
    let socket = root.path().join("vmid").join(SOCKET);
    assert_eq!(address(&monitor), socket, "QEMU removes it by this address");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(monitor.descriptor >= FIRST_DESCRIPTOR);
    UnixStream::connect(&socket).unwrap();
    monitor.remove();
    assert!(!socket.exists());
}

#[test]
fn a_path_beyond_the_limit_of_an_address_is_no_obstacle() {
    let root = tempfile::tempdir().unwrap();
    let deep = root.path().join("d".repeat(200));
    fs::create_dir(&deep).unwrap();
    let monitor = listen(&[&deep]).unwrap();
    assert!(address(&monitor).starts_with("/proc/self/fd"));
    assert!(deep.join(SOCKET).exists());
    monitor.remove();
    assert!(!deep.join(SOCKET).exists(), "the directory's descriptor is still open");
}

#[test]
fn a_stale_socket_is_replaced_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let socket = root.path().join(SOCKET);
    drop(UnixListener::bind(&socket).unwrap());
    listen(&[root.path()]).unwrap();
    UnixStream::connect(&socket).unwrap();

    let served = listen(&[root.path()]).unwrap_err().to_string();
    assert!(served.contains("another process serves it"), "{served}");
    UnixStream::connect(&socket).unwrap();

    fs::remove_file(&socket).unwrap();
    for make in [|path: &Path| fs::write(path, "x"), |path: &Path| symlink("/etc/passwd", path)] {
        make(&socket).unwrap();
        let other = listen(&[root.path()]).unwrap_err().to_string();
        assert!(other.contains("a file that is no socket"), "{other}");
        fs::remove_file(&socket).unwrap();
    }
}

#[test]
fn without_a_directory_each_one_that_was_tried_is_named() {
    let said = listen(&[Path::new("/nonexistent/s1"), Path::new("/etc/passwd")]).unwrap_err();
    let said = said.to_string();
    for part in ["sandbox s1", "/nonexistent/s1", "ENOENT", "/etc/passwd", "ENOTDIR"] {
        assert!(said.contains(part), "{said}");
    }
}
