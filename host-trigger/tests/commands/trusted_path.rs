//! A descriptor of root's goes to whoever listens on QEMU's socket: nobody but root can have put
//! the socket there, and the process that listens is QEMU.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::Path,
    process::Command,
};

use crate::common::{
    Host, RunOutput,
    scripted_qemu::{ScriptedQemu, reply},
    volume::Image,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use rstest::rstest;

const MIB: u64 = 1 << 20;
/// The user `nobody`.
const USER: u32 = 65534;
const DEVICES: [&str; 2] = ["-device", "virtio-scsi-pci,id=scsi0"];

/// Refused with the exit status 11, a message that names `named`, and nothing changed.
#[track_caller]
fn assert_untrusted(ran: &RunOutput, reason: &str, named: &[&str]) {
    ran.assert_fails(reason, 11);
    let error = ran.failure();
    for name in named {
        assert!(error.message.contains(name), "{name}: {error:?}");
    }
    assert!(error.remedy.as_ref().unwrap().contains("--vmm-user"), "{error:?}");
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Takes every descriptor, as QEMU would.
fn accomplice(socket: &Path) -> ScriptedQemu {
    ScriptedQemu::listen(socket, |name, id, stream| {
        let value = match name {
            "add-fd" => "{\"fdset-id\": 0, \"fd\": 9}",
            "query-fdsets" | "qom-list" | "query-named-block-nodes" | "query-pci" => "[]",
            "qom-get" => "\"virtio-scsi-pci\"",
            _ => "{}",
        };
        reply(stream, value, id);
    })
}

/// The accomplice would get the descriptor: the tests below prove something.
#[tokio::test]
async fn a_program_that_answers_as_qemu_gets_the_descriptor_where_it_is_trusted() {
    let host = Host::boot().await;
    let peer = accomplice(&host.path("vm/s1/extra-monitor.sock"));
    host.record_pid(std::process::id());
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &[]).await;
    assert!(!peer.received().descriptors.is_empty(), "{:?}", peer.received());
}

#[rstest]
#[case::another_users("vm/s1", USER, 0o755, "owner 65534, mode 0755")]
#[case::above_it("vm", USER, 0o700, "owner 65534, mode 0700")]
#[case::the_run_directory("", USER, 0o700, "owner 65534, mode 0700")]
#[case::everybody_writes("vm/s1", 0, 0o777, "owner 0, mode 0777")]
#[case::a_group_writes("vm/s1", 0, 0o775, "owner 0, mode 0775")]
#[case::of_the_state("sbs/s1", USER, 0o755, "owner 65534, mode 0755")]
#[tokio::test]
async fn a_run_directory_that_others_can_change_is_refused_with_nothing_sent(
    #[case] directory: &str,
    #[case] owner: u32,
    #[case] bits: u32,
    #[case] named: &str,
) {
    let mut host = Host::boot().await;
    let peer = accomplice(&host.path("vm/s1/extra-monitor.sock"));
    let before = host.snapshot().await;
    let directory = host.path(directory).components().collect::<std::path::PathBuf>();
    chown(&directory, Some(owner), None).unwrap();
    mode(&directory, bits);
    let image = Image::of(MIB);
    let ran = host.plug(image.path(), "/dev/xvda", &[]).await;
    assert_untrusted(&ran, "untrusted_path", &[directory.to_str().unwrap(), named]);
    for verb in ["list", "stats", "repair"] {
        host.verb(verb, &[]).await.assert_fails("untrusted_path", 11);
    }
    assert_eq!(peer.received().connections, 0);
    assert_eq!((host.snapshot().await, host.changes().len()), (before, 0));
}

#[rstest]
#[case::by_link(false)]
#[case::by_hand(true)]
#[tokio::test]
async fn a_socket_in_a_users_directory_gets_no_descriptor(#[case] by_hand: bool) {
    let host = Host::boot().await;
    let users = tempfile::tempdir().unwrap();
    let peer = accomplice(&users.path().join("qmp.sock"));
    chown(users.path(), Some(USER), None).unwrap();
    host.record_pid(0);
    let socket = users.path().join("qmp.sock");
    let more = ["--qmp", socket.to_str().unwrap()];
    if !by_hand {
        symlink(&socket, host.path("vm/s1/extra-monitor.sock")).unwrap();
    }
    let image = Image::of(MIB);
    let ran = host.plug(image.path(), "/dev/xvda", if by_hand { &more } else { &[] }).await;
    assert_untrusted(&ran, "untrusted_path", &[users.path().to_str().unwrap(), "owner 65534"]);
    assert_eq!(peer.received().connections, 0);
}

/// A socket in a directory of root's, but another program listens.
#[rstest]
#[case::in_the_state_file(true, false)]
#[case::in_the_pidfile(false, false)]
#[case::by_hand(true, true)]
#[tokio::test]
async fn another_process_than_the_recorded_one_gets_no_descriptor(
    #[case] in_state: bool,
    #[case] by_hand: bool,
) {
    let host = Host::boot().await;
    let socket = host.path(if by_hand { "other.sock" } else { "vm/s1/extra-monitor.sock" });
    let peer = accomplice(&socket);
    if !in_state {
        host.record_pid(0);
        fs::write(host.path("vm/s1/pid"), format!("{}\n", host.qemu.id())).unwrap();
    }
    let more = ["--qmp", socket.to_str().unwrap()];
    let image = Image::of(MIB);
    let ran = host.plug(image.path(), "/dev/xvda", if by_hand { &more } else { &[] }).await;
    let (own, qemu) = (std::process::id(), host.qemu.id());
    let named = [format!("process {own} "), format!("process {qemu} ")];
    assert_untrusted(&ran, "untrusted_server", &[&named[0], &named[1], socket.to_str().unwrap()]);
    let received = peer.received();
    assert_eq!((received.commands.len(), received.descriptors.len()), (0, 0));
}

/// What else is read of a run directory: the agent's address and its sockets.
#[rstest]
#[case::state_file("sbs/s1/persist.json")]
#[case::pidfile("vm/s1/pid")]
#[tokio::test]
async fn a_file_that_others_can_write_is_refused(#[case] file: &str) {
    let host = Host::boot().await;
    if file == "vm/s1/pid" {
        host.record_pid(0);
        fs::write(host.path(file), host.qemu.id().to_string()).unwrap();
    }
    mode(&host.path(file), 0o666);
    let ran = host.verb("list", &[]).await;
    assert_untrusted(&ran, "untrusted_path", &[file, "mode 0666"]);
}

#[rstest]
#[case::agent(false)]
#[case::shim(true)]
#[tokio::test]
async fn an_agent_or_shim_in_a_users_directory_is_not_asked(#[case] shim: bool) {
    let mut host = Host::boot().await;
    let users = tempfile::tempdir().unwrap();
    let socket = users.path().join("agent.sock");
    fs::hard_link(host.path("agent.sock"), &socket).unwrap();
    chown(users.path(), Some(USER), None).unwrap();
    let address = format!("unix://{}", socket.display());
    if shim {
        symlink(&socket, host.path("sbs/s1/shim-monitor.sock")).unwrap();
    }
    let before = host.snapshot().await;
    let image = Image::of(MIB);
    let more = ["--agent", &*address];
    let ran = host.plug(image.path(), "/dev/xvda", if shim { &[] } else { &more }).await;
    assert_untrusted(&ran, "untrusted_path", &[users.path().to_str().unwrap()]);
    assert_eq!(host.snapshot().await, before);
}

/// A run directory below `/run/user/65534`, and QEMU of that user, in a mount namespace of the
/// test's own.
async fn rootless() -> Host {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
    let theirs = Path::new("/run/user").join(USER.to_string());
    fs::create_dir_all(&theirs).unwrap();
    chown(&theirs, Some(USER), Some(USER)).unwrap();
    let directory = tempfile::tempdir_in(theirs).unwrap();
    Host::boot_in(directory, Some(USER), &DEVICES).await
}

#[tokio::test]
async fn a_rootless_vmm_is_used_if_its_user_is_named() {
    let mut host = rootless().await;
    let image = Image::of(MIB);
    let ran = host.plug(image.path(), "/dev/xvda", &[]).await;
    assert_untrusted(&ran, "untrusted_path", &["/run/user/65534\"", "owner 65534"]);
    let ran = host.plug(image.path(), "/dev/xvda", &["--vmm-user", "65533"]).await;
    assert_untrusted(&ran, "untrusted_path", &["/run/user/65534\"", "owner 65534"]);
    assert!(host.changes().is_empty());
    host.plug(image.path(), "/dev/xvda", &["--vmm-user", "65534"]).await.report();
    assert!(!crate::common::records(&host.snapshot().await).is_empty());
}

#[tokio::test]
async fn a_server_of_another_user_than_the_named_one_is_refused() {
    let host = rootless().await;
    let peer = accomplice(&host.path("vm/s1/extra-monitor.sock"));
    host.record_pid(std::process::id());
    let image = Image::of(MIB);
    let ran = host.plug(image.path(), "/dev/xvda", &["--vmm-user", "65534"]).await;
    assert_untrusted(&ran, "untrusted_server", &["of user 0", "a process of user 65534"]);
    assert!(peer.received().descriptors.is_empty());
}

#[tokio::test]
async fn the_vmms_user_is_trusted_only_below_its_run_directory() {
    let host = Host::boot().await;
    chown(host.path("vm/s1"), Some(USER), None).unwrap();
    let ran = host.verb("list", &["--vmm-user", "65534"]).await;
    assert_untrusted(&ran, "untrusted_path", &["vm/s1", "not below /run/user/UID"]);
}

#[tokio::test]
async fn check_reports_a_directory_that_is_not_trusted() {
    let host = Host::boot().await;
    mode(&host.path("vm/s1"), 0o777);
    let mut check = Command::new(env!("CARGO_BIN_EXE_ecr-runtime"));
    check.arg("--run-dir").arg(host.path("")).args(["check", "--sandbox", "s1"]);
    let output = check.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(11), "{text}");
    assert!(text.contains("vm/s1") && text.contains("mode 0777"), "{text}");
}
