//! The state of the agent, from [`proc(5)`](https://man7.org/linux/man-pages/man5/proc.5.html).

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use guest_observer::{AgentState, Thread};

const AGENT: &str = "/usr/bin/agent";

/// Reads the state of the agent. Threads and descriptors that end meanwhile are left out.
pub(crate) fn read() -> io::Result<AgentState> {
    read_of(&agent()?)
}

/// The agent's directory in `/proc`. It is PID 1 where there is no init system.
fn agent() -> io::Result<PathBuf> {
    let is_agent = |process: &PathBuf| {
        let program = fs::read_link(process.join("exe"));
        program.is_ok_and(|program| program == Path::new(AGENT))
    };
    if !Path::new("/sbin/init").exists() {
        return Ok(PathBuf::from("/proc/1"));
    }
    let mut processes = fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
    processes.find(is_agent).ok_or_else(|| {
        io::Error::new(ErrorKind::NotFound, format!("the init system runs no {AGENT}"))
    })
}

fn read_of(process: &Path) -> io::Result<AgentState> {
    let mut threads = Vec::new();
    let mut voluntary_switches = 0;
    for entry in fs::read_dir(process.join("task"))? {
        let path = entry?.path();
        let Some((thread, switches)) = unless_gone(read_thread(&path))? else { continue };
        threads.push(thread);
        voluntary_switches += switches;
    }
    threads.sort_by_key(|thread| thread.tid);
    let mut fds = Vec::new();
    for entry in fs::read_dir(process.join("fd"))? {
        if let Some(target) = unless_gone(fs::read_link(entry?.path()))? {
            fds.push(target.to_string_lossy().into_owned());
        }
    }
    fds.sort();
    // Not the sums in the status file: the kernel adds the counts of each thread late.
    let memory = fs::read_to_string(process.join("smaps_rollup"))?;
    let rss_anon_kb = number(&memory, "Anonymous")?;
    Ok(AgentState {
        threads,
        fds,
        voluntary_switches,
        rss_anon_kb,
        rss_file_kb: number(&memory, "Rss")?.saturating_sub(rss_anon_kb),
    })
}

fn read_thread(path: &Path) -> io::Result<(Thread, u64)> {
    let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
    let thread = Thread {
        tid: name.ok_or_else(|| {
            io::Error::new(ErrorKind::InvalidData, format!("{} is not a thread", path.display()))
        })?,
        mount_namespace: fs::metadata(path.join("ns/mnt"))?.ino(),
        comm: fs::read_to_string(path.join("comm"))?.trim_end().to_owned(),
    };
    let status = fs::read_to_string(path.join("status"))?;
    Ok((thread, number(&status, "voluntary_ctxt_switches")?))
}

/// `NotFound` comes from an open, `ESRCH` from a read after the process or thread has ended.
fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Returns the number in the line `key:\tNUMBER [kB]`.
fn number(text: &str, key: &str) -> io::Result<u64> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.split_whitespace().next()?.parse().ok())
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, format!("no line {key}")))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn the_state_has_threads_descriptors_and_memory() {
        // A thread sets its name itself: it has the name once it sends its message.
        let ((runs, running), (end, ended)) = (mpsc::channel::<()>(), mpsc::channel::<()>());
        let observed = move || {
            runs.send(()).unwrap();
            ended.recv()
        };
        let thread = std::thread::Builder::new().name("observed".into()).spawn(observed).unwrap();
        running.recv().unwrap();
        let marker = tempfile::NamedTempFile::new().unwrap();
        let state = read_of(Path::new("/proc/self")).unwrap();
        drop(end);
        assert!(thread.join().unwrap().is_err());
        let own = fs::metadata("/proc/self/ns/mnt").unwrap().ino();
        assert!(
            state
                .threads
                .iter()
                .any(|thread| thread.comm == "observed" && thread.mount_namespace == own)
        );
        assert!(state.fds.contains(&marker.path().display().to_string()), "{:?}", state.fds);
        assert!(state.voluntary_switches > 0 && state.rss_anon_kb > 0 && state.rss_file_kb > 0);
    }

    #[test]
    fn a_missing_key_is_an_error() {
        assert_eq!(number("Rss:   12 kB\n", "Rss").unwrap(), 12);
        assert!(number("RssAnon:\t12 kB\n", "Rss").unwrap_err().to_string().contains("Rss"));
    }
}
