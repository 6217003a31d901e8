//! Paths that lead through what somebody else could have made.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt, chown, symlink},
        net::UnixListener,
    },
};

use rstest::{fixture, rstest};

use super::*;

/// The user `nobody`.
const USER: u32 = 65534;

/// A run directory of root's, with a socket.
#[fixture]
fn root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("vm/s1")).unwrap();
    UnixListener::bind(root.path().join("vm/s1/qmp.sock")).unwrap();
    root
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn give(path: &Path) {
    std::os::unix::fs::lchown(path, Some(USER), None).unwrap();
}

/// What is wrong with `path`, and why.
#[track_caller]
fn untrusted(trust: &Trust, path: &Path) -> (PathBuf, &'static str) {
    match trust.locate(path) {
        Err(PathError::Untrusted(Untrusted::Path { path, why, .. })) => (path, why),
        other => panic!("{other:?}"),
    }
}

#[rstest]
#[tokio::test]
async fn what_root_owns_below_tmp_is_trusted(root: tempfile::TempDir) {
    let path = root.path().join("vm/s1/qmp.sock");
    fs::remove_file(&path).unwrap();
    let _listener = UnixListener::bind(&path).unwrap();
    let located = Trust::root().locate(&path).unwrap();
    assert_eq!(located.path(), path.canonicalize().unwrap());
    located.connect().await.unwrap();
}

#[rstest]
fn a_directory_of_another_user_is_refused_wherever_it_is_on_the_way(
    root: tempfile::TempDir,
    #[values("", "vm", "vm/s1")] directory: &str,
) {
    let directory = root.path().join(directory);
    let directory = directory.components().as_path();
    chown(directory, Some(USER), None).unwrap();
    let (path, why) = untrusted(&Trust::root(), &root.path().join("vm/s1/qmp.sock"));
    assert_eq!((&*path, why), (directory, "belongs to another user than root"));
}

#[rstest]
#[case(0o777, false)]
#[case(0o775, false)]
#[case(0o1777, true)]
#[case(0o750, true)]
#[case(0o755, true)]
fn a_directory_that_others_can_write_needs_the_sticky_bit(
    root: tempfile::TempDir,
    #[case] bits: u32,
    #[case] trusted: bool,
) {
    mode(&root.path().join("vm"), bits);
    let path = root.path().join("vm/s1/qmp.sock");
    match trusted {
        true => drop(Trust::root().locate(&path).unwrap()),
        false => assert_eq!(
            untrusted(&Trust::root(), &path),
            (root.path().join("vm"), "can be written by others than its owner")
        ),
    }
}

#[rstest]
#[case::directory("vm/s1")]
#[case::socket("vm/s1/qmp.sock")]
#[case::link("vm/s1/link")]
fn with_the_sticky_bit_only_what_root_owns_is_trusted(
    root: tempfile::TempDir,
    #[case] given: &str,
) {
    let given = root.path().join(given);
    symlink("qmp.sock", root.path().join("vm/s1/link")).unwrap();
    mode(given.parent().unwrap(), 0o1777);
    give(&given);
    let path = root.path().join("vm/s1/link");
    assert_eq!(untrusted(&Trust::root(), &path).0, given);
}

/// Nobody but root could have put it there, and QEMU of another user may own its socket.
#[rstest]
fn the_owner_of_a_socket_in_a_directory_of_roots_does_not_matter(root: tempfile::TempDir) {
    let path = root.path().join("vm/s1/qmp.sock");
    give(&path);
    Trust::root().locate(&path).unwrap();
}

#[rstest]
fn a_link_is_followed_and_what_it_leads_through_is_checked(root: tempfile::TempDir) {
    let users = tempfile::tempdir().unwrap();
    UnixListener::bind(users.path().join("qmp.sock")).unwrap();
    let link = root.path().join("vm/s2");
    symlink(users.path(), &link).unwrap();
    let located = Trust::root().locate(&link.join("qmp.sock")).unwrap();
    assert_eq!(located.path(), users.path().join("qmp.sock"));
    give(users.path());
    assert_eq!(untrusted(&Trust::root(), &link.join("qmp.sock")).0, users.path());
    // So is the way back, and a link as the last component.
    let way = format!("{}/../{}", users.path().display(), "x");
    assert_eq!(untrusted(&Trust::root(), Path::new(&way)).0, users.path());
    symlink(users.path().join("qmp.sock"), root.path().join("vm/s1/last")).unwrap();
    assert_eq!(untrusted(&Trust::root(), &root.path().join("vm/s1/last")).0, users.path());
}

#[rstest]
fn relative_links_and_dots_are_followed(root: tempfile::TempDir) {
    symlink("../vm/./s1", root.path().join("vm/s2")).unwrap();
    let located = Trust::root().locate(&root.path().join("vm/s2/../s2/qmp.sock")).unwrap();
    assert_eq!(located.path(), root.path().join("vm/s1/qmp.sock"));
    symlink("loop", root.path().join("loop")).unwrap();
    let looped = Trust::root().locate(&root.path().join("loop")).unwrap_err();
    assert!(matches!(looped, PathError::Io(e) if e.raw_os_error() == Some(libc::ELOOP)));
    let missing = Trust::root().locate(&root.path().join("vm/s9/qmp.sock")).unwrap_err();
    assert!(matches!(missing, PathError::Io(e) if e.kind() == io::ErrorKind::NotFound));
    let no_directory = Trust::root().locate(&root.path().join("vm/s1/qmp.sock/x")).unwrap_err();
    assert!(matches!(no_directory, PathError::Io(e) if e.kind() == io::ErrorKind::NotADirectory));
}

/// The directory is exchanged after it was checked.
#[rstest]
#[tokio::test]
async fn what_was_checked_is_what_is_connected(root: tempfile::TempDir) {
    let (good, bad) = (root.path().join("vm/s1"), root.path().join("vm/bad"));
    fs::remove_file(good.join("qmp.sock")).unwrap();
    let checked = UnixListener::bind(good.join("qmp.sock")).unwrap();
    fs::create_dir(&bad).unwrap();
    let other = UnixListener::bind(bad.join("qmp.sock")).unwrap();
    other.set_nonblocking(true).unwrap();
    let located = Trust::root().locate(&good.join("qmp.sock")).unwrap();
    fs::rename(&good, root.path().join("vm/away")).unwrap();
    fs::rename(&bad, &good).unwrap();
    let _stream = located.connect().await.unwrap();
    checked.accept().unwrap();
    assert_eq!(other.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[rstest]
fn a_file_that_others_can_write_is_not_opened(root: tempfile::TempDir) {
    let path = root.path().join("persist.json");
    fs::write(&path, "{}").unwrap();
    let open = || Trust::root().locate(&path).unwrap().open_file();
    open().unwrap();
    mode(&path, 0o664);
    assert!(matches!(open(), Err(PathError::Untrusted(_))));
    mode(&path, 0o600);
    give(&path);
    assert!(matches!(open(), Err(PathError::Untrusted(_))));
    let directory = Trust::root().locate(root.path()).unwrap();
    assert!(matches!(directory.open_file(), Err(PathError::Io(_))));
}

#[rstest]
fn the_vmms_user_is_trusted_in_its_own_run_directory(root: tempfile::TempDir) {
    let theirs = root.path().join(USER.to_string());
    fs::rename(root.path().join("vm"), &theirs).unwrap();
    fs::create_dir(root.path().join("vm")).unwrap();
    for path in [theirs.clone(), theirs.join("s1"), root.path().join("vm")] {
        give(&path);
    }
    let trust = |user| Trust { vmm_user: user, user_run_dirs: root.path().to_owned() };
    let socket = theirs.join("s1/qmp.sock");
    trust(Some(USER)).locate(&socket).unwrap();
    assert_eq!(untrusted(&trust(None), &socket).1, "belongs to another user than root");
    assert_eq!(untrusted(&trust(Some(1)), &socket).1, "belongs to another user than root");
    let (path, why) = untrusted(&trust(Some(USER)), &root.path().join("vm/x"));
    assert_eq!((path, why.contains("not below")), (root.path().join("vm"), true));
    // A link in it does not make anything else trusted.
    symlink(root.path().join("vm"), theirs.join("link")).unwrap();
    assert_eq!(untrusted(&trust(Some(USER)), &theirs.join("link/x")).0, root.path().join("vm"));
    mode(&theirs, 0o777);
    assert!(untrusted(&trust(Some(USER)), &socket).1.contains("written"));
}

#[rstest]
#[tokio::test]
async fn the_server_is_the_process_that_was_recorded(root: tempfile::TempDir) {
    let path = root.path().join("q");
    let _listener = UnixListener::bind(&path).unwrap();
    let stream = Trust::root().locate(&path).unwrap().connect().await.unwrap();
    let own = i32::try_from(std::process::id()).unwrap();
    let check = |server: crate::Server, user| {
        server.check(&stream, &path, &Trust::with_vmm_user(user)).is_ok()
    };
    use crate::Server::{Qemu, Runtime};
    assert!(check(Qemu(None), None) && check(Qemu(Some(own)), None) && check(Runtime, None));
    assert!(!check(Qemu(Some(1)), None));
    assert!(check(Qemu(Some(own)), Some(0)));
    assert!(!check(Qemu(Some(own)), Some(USER)) && !check(Qemu(None), Some(USER)));
    assert!(check(Runtime, Some(USER)), "the shim of a rootless VMM is root's");
}
