//! The guest's serial console, which QEMU writes to a file.

use std::path::{Path, PathBuf};

/// What a kernel prints when it reports a fault of its own.
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

/// The file with everything that the guest printed.
#[derive(Debug, Clone)]
pub struct Console {
    path: PathBuf,
}

impl Console {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns everything so far; bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> String {
        std::fs::read(&self.path)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Returns the last `lines` lines.
    pub fn tail(&self, lines: usize) -> String {
        let text = self.text();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Returns the last `lines` lines that are not the kernel's: those of the agent and of other
    /// programs in the guest.
    pub fn tail_of_programs(&self, lines: usize) -> String {
        let text = self.text();
        let programs: Vec<&str> = text.lines().filter(|line| !is_kernels(line)).collect();
        programs[programs.len().saturating_sub(lines)..].join("\n")
    }

    /// Returns the first line in which the kernel reports a fault of its own.
    pub fn splat(&self) -> Option<String> {
        splat_in(&self.text())
    }
}

/// Whether the line begins with a timestamp, as in `[    1.234567] …`.
fn is_kernels(line: &str) -> bool {
    let stamp =
        line.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(stamp, _)| stamp.trim());
    stamp.is_some_and(|stamp| stamp.parse::<f64>().is_ok())
}

/// Makes text of the guest safe for a terminal: escapes control characters except newline and tab,
/// and removes carriage returns.
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
    fn control_characters_of_a_guest_are_escaped() {
        assert_eq!(printable("a\tb\r\n\u{1b}[2J\u{9b}1mü"), "a\tb\n\\u{1b}[2J\\u{9b}1mü");
    }

    #[test]
    fn lines_of_the_kernel_and_of_programs_are_distinguished() {
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
    #[case::debug_line_of_a_container("DEBUG: nothing", false)]
    fn kernel_splats_and_ordinary_lines_are_distinguished(
        #[case] line: &str,
        #[case] expected: bool,
    ) {
        assert_eq!(splat_in(&format!("first\n{line}\nlast")).is_some(), expected);
    }
}
