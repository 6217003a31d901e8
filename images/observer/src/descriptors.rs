//! Attacks of a hostile container on the search for the holders of a volume:
//!
//! - `observer flood PROCESSES DESCRIPTORS USER` starts processes of an unprivileged user with very
//!   many descriptors each, and returns when they are all there;
//! - `observer hide PATH` has a file open in a thread alone, whose descriptors are not those of its
//!   process ([unshare(2)](https://man7.org/linux/man-pages/man2/unshare.2.html), `CLONE_FILES`);
//!   with `alone` the process's first thread ends.
//!
//! The observer is mounted into the container.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    mem,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::resource::{Resource, getrlimit, setrlimit},
};

/// Starts `processes` processes of `user`, each with `descriptors` descriptors, and returns when
/// they have them.
///
/// # Errors
/// A process cannot be started, or may not have so many descriptors.
pub(crate) fn flood(processes: usize, descriptors: &str, user: u32) -> io::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let (mut ready, writer) = io::pipe()?;
    for _ in 0..processes {
        let mut command = Command::new("/proc/self/exe");
        command.args(["fill", descriptors]).uid(user).gid(user);
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(Stdio::null()).spawn()?;
    }
    drop(writer);
    let mut all = Vec::new();
    ready.by_ref().take(processes as u64).read_to_end(&mut all)?;
    if all.len() == processes {
        Ok(())
    } else {
        Err(io::Error::other(format!("{} of {processes} processes are there", all.len())))
    }
}

/// Opens descriptors until there are `descriptors`, says so, and does nothing any more.
///
/// # Errors
/// The limit is lower.
pub(crate) fn fill(descriptors: usize) -> io::Result<()> {
    let null = File::open("/dev/null")?;
    // Its own standard streams count, and so does the first one.
    for _ in 4..descriptors {
        mem::forget(null.try_clone()?);
    }
    io::stdout().write_all(b"x")?;
    io::stdout().flush()?;
    forever()
}

/// Opens `path` in a thread with descriptors of its own, says so, and does nothing any more.
///
/// # Errors
/// There is no such file.
pub(crate) fn hide(path: &Path, alone: bool) -> io::Result<()> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FILES)?;
            let _open = File::open(path)?;
            println!("ready");
            forever()
        });
        if alone {
            end_this_thread();
        }
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

fn forever() -> ! {
    loop {
        thread::park();
    }
}

#[expect(unsafe_code, reason = "exit(2) of one thread has no safe wrapper in libc or nix")]
fn end_this_thread() {
    // SAFETY: the main thread's stack stays until the process ends, and nothing waits for it.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
}
