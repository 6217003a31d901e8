//! What the programs inherit from their caller, and what must not matter.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Stdio};

use crate::common::{
    Host,
    shell::{after, run_to},
    volume::{Image, Loop},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use rstest::rstest;
use tokio::process::Command;

const MIB: u64 = 1 << 20;

#[rstest]
#[case::usual("")]
#[case::removed_directory("gone=$(mktemp -d); cd \"$gone\"; rmdir \"$gone\"")]
#[case::empty_environment("exec env -i \"$0\" \"$@\"")]
#[case::odd_locale("export LC_ALL=tr_TR.ISO-8859-9 LANG=xx_XX LANGUAGE=::")]
#[case::no_programs_no_home_no_terminal("export PATH=/nonexistent TZ= COLUMNS=20; unset HOME TERM")]
#[case::no_umask("umask 000")]
#[case::strict_umask("umask 077")]
#[case::strictest_umask("umask 777")]
#[case::closed_input("exec <&-")]
#[case::closed_output("exec >&-")]
#[case::closed_error("exec 2>&-")]
#[case::closed_streams("exec <&- >&- 2>&-")]
#[tokio::test]
async fn what_the_caller_leaves_does_not_matter(#[case] prelude: &str) {
    let mut host = Host::boot().await;
    let (device, image) = (Loop::of(MIB), Image::of(MIB));
    let clean = host.snapshot().await;
    let volumes = [(device.path(), "/dev/xvda"), (image.path(), "/dev/xvdb")];
    let (status, stderr) =
        run_to(&mut after(prelude, &host.command(&volumes, &[])), Stdio::null()).await;
    assert_eq!(status, Some(0), "{stderr}");
    assert_eq!(host.agent.attached_paths(), ["/dev/xvda", "/dev/xvdb"]);
    let listed = host.verb("list", &[]).await.listing();
    for listed in &listed.body.volumes {
        let known = host.agent.attachment(&listed.volume.id).unwrap();
        assert_eq!(known.mode, 0o660, "the caller's umask is not the container's");
    }
    for path in ["/dev/xvda", "/dev/xvdb"] {
        let unplug = host.verb_command("hot-unplug", &["--device-path", path]);
        let (status, stderr) = run_to(&mut after(prelude, &unplug), Stdio::null()).await;
        assert_eq!(status, Some(0), "{stderr}");
    }
    assert_eq!(host.snapshot().await, clean);
}

/// What `sudo` leaves with `env_reset`, its default.
const SUDO: &str = "exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=xterm LANG=C HOME=/root \
                    LOGNAME=root USER=root SHELL=/bin/sh SUDO_USER=nobody SUDO_UID=65534 \
                    SUDO_GID=65534 SUDO_COMMAND=ecr-runtime \"$0\" \"$@\"";

/// They print to standard output and to standard error, as text and as JSON. `RUN` is an empty
/// state directory.
const COMMANDS: [&[&str]; 6] = [
    &["--version"],
    &["node", "status"],
    &["node", "status", "--output", "json"],
    &["--run-dir", "RUN", "check"],
    &["--run-dir", "RUN", "block-volume", "list", "--sandbox", "IİSTANBUL"],
    &["--run-dir", "RUN", "block-volume", "list", "--sandbox", "titi", "--timeout", "1500ms"],
];

#[rstest]
#[case::time_zone("export TZ=Pacific/Kiritimati")]
#[case::no_time_zone("export TZ=")]
#[case::time_zone_that_is_no_file("export TZ=:/proc/self/mem")]
#[case::turkish("export LC_ALL=tr_TR.UTF-8 LANG=tr_TR.UTF-8")]
#[case::posix("export LC_ALL=C")]
#[case::unknown_locale("export LC_ALL=xx_XX.UTF-42 LANGUAGE=xx:yy")]
#[case::dumb_terminal("export TERM=dumb")]
#[case::no_terminal("unset TERM; exec setsid -w \"$0\" \"$@\"")]
#[case::narrow_terminal("export COLUMNS=20 LINES=1")]
#[case::no_home("unset HOME USER LOGNAME SHELL")]
#[case::home_that_is_gone("export HOME=/nonexistent XDG_CONFIG_HOME=/nonexistent")]
#[case::sudo(SUDO)]
#[case::no_sbin("export PATH=/usr/bin:/bin")]
#[case::no_path("unset PATH")]
#[case::no_umask("umask 000")]
#[case::strict_umask("umask 077")]
#[case::removed_directory("gone=$(mktemp -d); cd \"$gone\"; rmdir \"$gone\"")]
#[case::logging("export RUST_LOG=trace RUST_BACKTRACE=full")]
#[case::closed_input("exec <&-")]
#[tokio::test]
async fn the_callers_habits_change_nothing(#[case] prelude: &str) {
    let run_dir = tempfile::tempdir().unwrap();
    let run_dir = run_dir.path().to_str().unwrap();
    for words in COMMANDS {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ecr-runtime"));
        command.args(words.iter().map(|&word| if word == "RUN" { run_dir } else { word }));
        let expected = after("", &command).stdin(Stdio::null()).output().await.unwrap();
        let found = after(prelude, &command).output().await.unwrap();
        assert_eq!(found, expected, "{words:?}");
    }
    let (arguments, mode) = started_by_wrapper("").await;
    assert!(arguments.contains("ecr-monitor") && mode == 0o600, "{arguments} {mode:o}");
    assert_eq!(started_by_wrapper(prelude).await, (arguments, mode));
}

/// Starts `ecr-qemu` for a sandbox. Returns the arguments that it adds for the program in QEMU's
/// place, and the mode of the socket.
async fn started_by_wrapper(prelude: &str) -> (String, u32) {
    let root = tempfile::tempdir().unwrap();
    let (qemu, sandbox) = (root.path().join("qemu"), root.path().join("s1"));
    fs::create_dir(&sandbox).unwrap();
    let shown = root.path().join("arguments");
    fs::write(&qemu, format!("#!/bin/sh\nshift 4\necho \"$@\" >'{}'\n", shown.display())).unwrap();
    fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).unwrap();
    record(&qemu);
    let mut command = Command::new(env!("CARGO_BIN_EXE_ecr-qemu"));
    command.args(["-name", "sandbox-s1", "-pidfile"]).arg(sandbox.join("pid"));
    let ran = after(prelude, &command).output().await.unwrap();
    // The shell may have something to say of its working directory.
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && !said.contains("ecr-qemu"), "{ran:?}");
    let socket = fs::metadata(sandbox.join("extra-monitor.sock")).unwrap();
    (fs::read_to_string(shown).unwrap(), socket.permissions().mode() & 0o777)
}

/// Records `qemu` for the wrapper, in an `/etc` that this test's thread has alone.
fn record(qemu: &Path) {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("tmpfs"), "/etc", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
    fs::create_dir("/etc/ecr-runtime").unwrap();
    fs::write("/etc/ecr-runtime/ecr-qemu.path", qemu.as_os_str().as_encoded_bytes()).unwrap();
}
