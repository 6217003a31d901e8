//! `vm-harness exec -it` as a user runs it: a real terminal on the caller's side
//! ([pty(7)](https://man7.org/linux/man-pages/man7/pty.7.html)), another one in the container, and
//! the caller's terminal has its previous settings at the end.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use rstest::rstest;
use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};
use tokio::sync::watch;
use vm_harness::{Sandbox, TerminalSize};

use super::sandbox;

/// A program with its own controlling terminal, and the user's side of this terminal.
struct Session {
    child: Child,
    keyboard: File,
    /// The output, as it arrives.
    screen: mpsc::Receiver<Vec<u8>>,
    shown: String,
    limit: Duration,
}

impl Session {
    fn start(sandbox: &Sandbox, size: (u16, u16), command: &[&str]) -> Self {
        let keyboard =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let keyboard = File::from(keyboard);
        resize(&keyboard, size);
        let name = ptsname(&keyboard, Vec::new()).unwrap().into_string().unwrap();
        let terminal = File::options().read(true).write(true).open(name).unwrap();
        let stdio = || Stdio::from(terminal.try_clone().unwrap());
        // A separate session with this controlling terminal, which is the origin of signals such as
        // SIGWINCH.
        let child = Command::new("setsid")
            .args(["--ctty", "--wait"])
            .arg(sandbox.environment().vm_harness().unwrap())
            .args(["exec", "--run-dir", sandbox.run_dir().to_str().unwrap(), "-it", "--"])
            .args(command)
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .spawn()
            .unwrap();
        let (sender, screen) = mpsc::channel();
        let mut output = keyboard.try_clone().unwrap();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                if sender.send(bytes[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        let limit = sandbox.guest().scaled(Duration::from_secs(10));
        Self { child, keyboard, screen, shown: String::new(), limit }
    }

    fn types(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until `text` is shown.
    fn shows(&mut self, text: &str) {
        while !self.shown.contains(text) {
            let bytes = self.screen.recv_timeout(self.limit);
            let bytes =
                bytes.unwrap_or_else(|_| panic!("{text:?} was never shown: {:?}", self.shown));
            self.shown.push_str(&String::from_utf8_lossy(&bytes));
        }
    }
}

fn resize(terminal: &File, (ws_row, ws_col): (u16, u16)) {
    tcsetwinsize(terminal, Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}

fn is_raw(terminal: &File) -> bool {
    !tcgetattr(terminal).unwrap().local_modes.contains(LocalModes::ECHO | LocalModes::ICANON)
}

#[rstest]
#[tokio::test]
async fn terminal_passes_size_keys_and_end_of_input_to_the_container(
    #[future(awt)] sandbox: Sandbox,
) {
    let _container = sandbox.start_container().await;
    // The shell runs a trap between two commands, no matter when the signal arrives.
    let script = "busybox tty; read a; busybox stty size; trap 'resized=1' WINCH; echo ready; until test \"$resized\"; do sleep 0.05; \
                  done; busybox stty size; while read b; do echo got $b; done; exit 7";
    let mut session = Session::start(&sandbox, (40, 100), &["sh", "-c", script]);
    session.shows("/dev/pts/");
    assert!(
        is_raw(&session.keyboard),
        "the terminal is in raw mode: every key goes to the container"
    );
    session.types("x\r");
    session.shows("40 100");
    session.shows("ready");
    resize(&session.keyboard, (50, 120));
    session.shows("50 120");
    session.types("one\r");
    session.shows("got one");
    session.types("\u{4}");
    let status = session.child.wait().unwrap();
    assert_eq!(status.code(), Some(7), "{:?}", session.shown);
    assert!(!is_raw(&session.keyboard), "the settings of the caller's terminal are restored");
}

#[rstest]
#[tokio::test]
async fn interrupt_key_reaches_the_command_and_not_the_harness(#[future(awt)] sandbox: Sandbox) {
    let _container = sandbox.start_container().await;
    let script = "trap 'echo interrupted; exit 3' INT; echo ready; while :; do read a; done";
    let mut session = Session::start(&sandbox, (24, 80), &["sh", "-c", script]);
    session.shows("ready");
    session.types("\u{3}");
    session.shows("interrupted");
    assert_eq!(session.child.wait().unwrap().code(), Some(3));
}

#[rstest]
#[tokio::test]
async fn output_of_a_terminal_is_complete(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let expected: String = (1..=20_000).map(|number| format!("{number}\r\n")).collect();
    for _ in 0..3 {
        let (_sizes, size) = watch::channel(TerminalSize { rows: 24, columns: 80 });
        let (mut shown, input) = (Vec::new(), tokio::io::empty());
        let command = ["seq", "1", "20000"];
        let status = container.exec_in_terminal(&command, size, input, &mut shown).await.unwrap();
        assert_eq!(status, 0);
        let shown = String::from_utf8(shown).unwrap();
        assert!(shown == expected, "{} of {} bytes, or others", shown.len(), expected.len());
    }
}

#[rstest]
#[tokio::test]
async fn exec_needs_a_terminal_for_t_and_passes_input_only_with_i(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let run_dir = sandbox.run_dir().to_owned();
    let program = sandbox.environment().vm_harness().unwrap();
    let exec = |flags: &[&str], command: &[&str]| {
        let mut child = Command::new(&program)
            .args(["exec", "--run-dir", run_dir.to_str().unwrap(), "--container", container.id()])
            .args(flags)
            .arg("--")
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that reads no input may have ended.
        let _ = child.stdin.take().unwrap().write_all(b"typed");
        child.wait_with_output().unwrap()
    };
    assert_eq!(exec(&["-i"], &["cat"]).stdout, b"typed");
    assert_eq!(exec(&[], &["cat"]).stdout, b"");
    let refused = exec(&["-it"], &["true"]);
    assert!(!refused.status.success());
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(message.contains("standard input"), "{message}");
    assert_ne!(exec(&[], &["test", "-t", "1"]).status.code(), Some(0));
}
