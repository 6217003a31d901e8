//! The plugin's threads. Each has a name that begins with `block-volume`
//! ([`proc_pid_comm(5)`](https://man7.org/linux/man-pages/man5/proc_pid_comm.5.html)), so that they
//! can be told from the agent's own, which come and go as its runtime needs them.

use std::thread::Builder;

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Thread {
    /// Serves a request.
    Request,
    /// Works in the mount namespace of a container.
    Namespace,
    /// Waits for a disk.
    Disk,
}

impl Thread {
    /// Returns a thread to be started.
    pub(crate) fn builder(self) -> Builder {
        Builder::new().name(self.name().to_owned())
    }

    fn name(self) -> &'static str {
        match self {
            Self::Request => "block-volume",
            Self::Namespace => "block-volume-ns",
            Self::Disk => "block-volume-io",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// `TASK_COMM_LEN` without the terminating zero: the kernel cuts what is longer.
    const LONGEST: usize = 15;

    #[test]
    fn the_kernel_shows_a_name_with_the_prefix_for_each_kind() {
        for kind in [Thread::Request, Thread::Namespace, Thread::Disk] {
            let name = kind.name();
            assert!(name.starts_with("block-volume") && name.len() <= LONGEST, "{name}");
            let own = || fs::read("/proc/thread-self/comm").unwrap();
            let shown = kind.builder().spawn(own).unwrap().join().unwrap();
            assert_eq!(shown, format!("{name}\n").into_bytes());
        }
    }

    #[test]
    fn no_other_file_starts_a_thread() {
        fn check(directory: &Path) {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    check(&path);
                    continue;
                }
                let text = String::from_utf8(fs::read(&path).unwrap()).unwrap();
                let code = text.split("#[cfg(test)]").next().unwrap_or_default();
                let is_test = path.file_name().is_some_and(|name| {
                    name == "tests.rs" || name.as_encoded_bytes().ends_with(b"_tests.rs")
                });
                let is_this = path.ends_with("src/thread.rs");
                for way in ["thread::Builder", "thread::spawn", "spawn_blocking"] {
                    let found = code
                        .lines()
                        .find(|line| line.contains(way) && !line.trim_start().starts_with("//"));
                    assert!(is_test || is_this || found.is_none(), "{}: {found:?}", path.display());
                }
            }
        }
        check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    }
}
