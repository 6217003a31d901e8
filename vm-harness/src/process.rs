//! A child process of the harness that cannot outlive it.
//!
//! The kernel kills it when the harness dies
//! ([`PR_SET_PDEATHSIG`](https://man7.org/linux/man-pages/man2/pr_set_pdeathsig.2const.html)),
//! dropping the value kills and reaps it, and a
//! [pidfd](https://man7.org/linux/man-pages/man2/pidfd_open.2.html) reports its end without
//! polling.

use std::{
    fs::File,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Mutex,
    time::Duration,
};

use tokio::io::{Interest, unix::AsyncFd};

use crate::{Error, ProcessStat};

/// A running program of the harness.
#[derive(Debug)]
pub struct Process {
    program: &'static str,
    command: String,
    stderr: PathBuf,
    child: Mutex<Child>,
    end: AsyncFd<OwnedFd>,
}

impl Process {
    /// Starts `command`; its standard error goes to the file `stderr`.
    ///
    /// # Errors
    /// The program cannot be started, or the file cannot be created.
    pub fn start(
        program: &'static str,
        mut command: Command,
        stderr: &Path,
    ) -> Result<Self, Error> {
        let log = File::create(stderr).map_err(Error::file("create", stderr))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        die_with_parent(&mut command);
        let shown = shell_quoted(&command);
        let spawn = |source| Error::Spawn { program: program.to_owned(), source };
        let child = command.spawn().map_err(spawn)?;
        let end = watch(pidfd(child.id()).map_err(spawn)?).map_err(spawn)?;
        Ok(Self {
            program,
            command: shown,
            stderr: stderr.to_owned(),
            child: Mutex::new(child),
            end,
        })
    }

    /// Returns its name, for messages.
    pub fn program(&self) -> &'static str {
        self.program
    }

    /// Returns its process ID.
    pub fn id(&self) -> u32 {
        self.child().id()
    }

    /// Returns the processor time that it used so far, in user and kernel mode; `None` once it was
    /// reaped.
    pub fn processor_time(&self) -> Option<Duration> {
        ProcessStat::of(self.id())?.processor_time()
    }

    /// Returns the command line, quoted for a shell.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// Returns what it wrote to its standard error so far.
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Waits until it has ended, and returns its exit status.
    pub async fn ended(&self) -> ExitStatus {
        let _ready = self.end.readable().await.expect("a pidfd can always be watched");
        self.child().wait().expect("a child can be waited for by its parent")
    }

    /// Returns its exit status if it has ended.
    pub fn status(&self) -> Option<ExitStatus> {
        self.child().try_wait().expect("a child can be waited for by its parent")
    }

    /// Kills and reaps it.
    pub fn kill(&self) {
        let mut child = self.child();
        // An error means that it has ended already.
        let _ = child.kill();
        let _ = child.wait();
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts a server, and waits until its socket exists.
///
/// # Errors
/// It cannot be started, or ends, or does not listen in time.
pub(crate) async fn start_server(
    program: &'static str,
    command: Command,
    socket: &Path,
    stderr: &Path,
) -> Result<Process, Error> {
    let process = Process::start(program, command, stderr)?;
    let limit = Duration::from_secs(10);
    let listening = async {
        // The socket file appears when the server listens. No event reports that.
        while !socket.exists() && process.status().is_none() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let in_time = tokio::time::timeout(limit, listening).await.is_ok();
    match process.status() {
        None if in_time => Ok(process),
        None => Err(Error::TimedOut {
            awaited: format!("the socket {} of {program}", socket.display()),
            limit,
            report: process.stderr(),
        }),
        Some(status) => Err(Error::Ended {
            program,
            status: status.to_string(),
            awaited: "its socket".to_owned(),
            report: format!("{}\n{}", process.stderr(), process.command()),
        }),
    }
}

/// Makes the kernel kill the command's process when the thread that starts it ends.
#[expect(unsafe_code, reason = "std offers no safe way to run a system call in the child")]
pub(crate) fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec and makes one async-signal-safe system call.
    unsafe {
        command.pre_exec(|| {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)
                .map_err(std::io::Error::from)
        });
    }
}

#[expect(unsafe_code, reason = "neither std nor nix wraps pidfd_open")]
pub(crate) fn pidfd(process: u32) -> std::io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) };
    let descriptor = i32::try_from(descriptor).unwrap_or(-1);
    if descriptor < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Kills a process that is not a child of the harness, unless it has ended.
#[expect(unsafe_code, reason = "neither std nor nix wraps pidfd_send_signal")]
pub(crate) fn kill_process(process: &OwnedFd) {
    let no_details = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open for as long as it is borrowed, and no structure is read.
    unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            libc::SIGKILL,
            no_details,
            0,
        );
    }
}

#[expect(
    unsafe_code,
    reason = "tokio cannot know that a type returns the same descriptor every time"
)]
fn watch(descriptor: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the OwnedFd moves into the AsyncFd, which keeps it open, and it always returns the
    // same descriptor.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    watched.map_err(std::io::Error::from)
}

fn shell_quoted(command: &Command) -> String {
    let set = command.get_envs().filter_map(|(name, value)| {
        Some(format!("{}={}", name.to_string_lossy(), value?.to_string_lossy()))
    });
    let set: Vec<_> = set.collect();
    let env = (!set.is_empty()).then(|| "env".to_owned());
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words = words.map(|word| word.to_string_lossy().into_owned());
    let quoted = env.into_iter().chain(set).chain(words).map(|word| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+,./:@%".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn end_is_reported_and_standard_error_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo broken >&2; exit 3"]);
        let process = Process::start("sh", command, &directory.path().join("stderr")).unwrap();
        assert_eq!(process.ended().await.code(), Some(3));
        assert_eq!(process.stderr(), "broken\n");
        assert_eq!(process.command(), "sh -c 'echo broken >&2; exit 3'");
    }

    #[tokio::test]
    async fn processor_time_counts_work_and_not_sleep() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo done >&2; exec sleep 1000",
        ]);
        let process = Process::start("sh", command, &directory.path().join("stderr")).unwrap();
        while process.stderr().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let worked = process.processor_time().unwrap();
        assert!(worked > Duration::ZERO);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(process.processor_time().unwrap() < worked + Duration::from_millis(200));
    }

    #[tokio::test]
    async fn drop_kills_and_reaps() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("1000");
        let process = Process::start("sleep", command, &directory.path().join("stderr")).unwrap();
        let id = process.id();
        assert!(process.status().is_none());
        drop(process);
        assert!(
            !Path::new(&format!("/proc/{id}")).exists(),
            "the process is gone and no zombie is left"
        );
    }
}
