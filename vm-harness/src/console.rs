//! The guest's serial console, drained to a file by QEMU.

use std::path::{Path, PathBuf};

/// What a kernel prints when something is wrong with it, whatever the test thinks.
const SPLATS: [&str; 12] = [
    "WARNING: CPU:",
    "WARNING: possible",
    " BUG: ",
    "kernel BUG at",
    "Oops:",
    "general protection fault",
    "Kernel panic",
    "soft lockup",
    "rcu: INFO: rcu_",
    "blocked for more than",
    "list_del corruption",
    "refcount_t:",
];

/// The file that holds everything that the guest printed.
#[derive(Debug, Clone)]
pub struct Console {
    path: PathBuf,
}

impl Console {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Everything so far; bytes that are no UTF-8 are replaced.
    pub fn text(&self) -> String {
        std::fs::read(&self.path)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The last `lines` lines.
    pub fn tail(&self, lines: usize) -> String {
        let text = self.text();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// The last `lines` lines that are not the kernel's: the agent's, and what else runs in the
    /// guest.
    pub fn tail_of_programs(&self, lines: usize) -> String {
        let text = self.text();
        let programs: Vec<&str> = text.lines().filter(|line| !is_kernels(line)).collect();
        programs[programs.len().saturating_sub(lines)..].join("\n")
    }

    /// The first line in which the kernel reports a fault of its own.
    pub fn splat(&self) -> Option<String> {
        splat_in(&self.text())
    }
}

/// `[    1.234567] …`, as the kernel begins its lines.
fn is_kernels(line: &str) -> bool {
    let stamp =
        line.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(stamp, _)| stamp.trim());
    stamp.is_some_and(|stamp| stamp.parse::<f64>().is_ok())
}

/// Text of the guest, fit for a terminal: no control characters but the ends of lines, and tabs.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\r' => {}
            '\n' | '\t' => shown.push(c),
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

fn splat_in(text: &str) -> Option<String> {
    text.lines().find(|line| SPLATS.iter().any(|splat| line.contains(splat))).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_prints_moves_no_cursor() {
        assert_eq!(printable("a\tb\r\n\u{1b}[2J\u{9b}1mü"), "a\tb\n\\u{1b}[2J\\u{9b}1mü");
    }

    #[test]
    fn lines_of_the_kernel_are_told_from_those_of_programs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        std::fs::write(
            &path,
            "[    0.100000] Linux\nagent: first\n[x] not the kernel's\n[   12.5] sda\nlast",
        )
        .unwrap();
        let console = Console::new(path);
        assert_eq!(console.tail_of_programs(2), "[x] not the kernel's\nlast");
        assert_eq!(console.tail(2), "[   12.5] sda\nlast");
    }

    #[rstest::rstest]
    #[case::warning("[    1.0] WARNING: CPU: 0 PID: 1 at fs/namespace.c:1 f+0x1/0x2", true)]
    #[case::panic("[    1.0] Kernel panic - not syncing: Attempted to kill init!", true)]
    #[case::lockup("[   99.0] watchdog: BUG: soft lockup - CPU#0 stuck for 22s!", true)]
    #[case::ordinary("[    1.0] sd 0:0:255:1: [sda] Attached SCSI disk", false)]
    #[case::a_container_that_says_debug("DEBUG: nothing", false)]
    fn kernel_splats_are_told_from_ordinary_lines(#[case] line: &str, #[case] expected: bool) {
        assert_eq!(splat_in(&format!("first\n{line}\nlast")).is_some(), expected);
    }
}
