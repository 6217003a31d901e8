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

/// How lines of the harness's own on the console begin. They are in no log.
pub(crate) const MARK: &str = "vm-harness: ";

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
        last(lines, self.text().lines())
    }

    /// Returns the last `lines` lines, and before them what follows the first fault of the kernel,
    /// up to `lines` lines of it: its cause is there, and a long trace may come after it.
    pub fn end_with_fault(&self, lines: usize) -> String {
        let text = self.text();
        let all: Vec<&str> = text.lines().collect();
        let end = all.len().saturating_sub(lines);
        match all.iter().position(|line| is_splat(line)) {
            Some(fault) if fault < end => {
                let until = end.min(fault + lines);
                let gap = if until < end { "\n…\n" } else { "\n" };
                format!("{}{gap}{}", all[fault..until].join("\n"), all[end..].join("\n"))
            }
            _ => all[end..].join("\n"),
        }
    }

    /// Returns the last `lines` lines that are not the kernel's: those of the agent and of other
    /// programs in the guest.
    pub fn tail_of_programs(&self, lines: usize) -> String {
        last(lines, self.text().lines().filter(|line| is_of_a_program(line)))
    }

    /// As [`Self::tail_of_programs`], of what was printed after the first `start` bytes.
    pub fn tail_of_programs_since(&self, start: usize, lines: usize) -> String {
        let bytes = std::fs::read(&self.path).unwrap_or_default();
        let text = String::from_utf8_lossy(bytes.get(start..).unwrap_or_default());
        last(lines, text.lines().filter(|line| is_of_a_program(line)))
    }

    /// Returns the last `lines` lines that are the kernel's.
    pub fn tail_of_kernel(&self, lines: usize) -> String {
        last(lines, self.text().lines().filter(|line| is_kernels(line)))
    }

    /// Returns how many bytes there are so far.
    pub fn length(&self) -> usize {
        let length = std::fs::metadata(&self.path).map_or(0, |metadata| metadata.len());
        usize::try_from(length).unwrap_or(usize::MAX)
    }

    /// Returns the first line in which the kernel reports a fault of its own.
    pub fn splat(&self) -> Option<String> {
        splat_in(&self.text())
    }
}

fn last<'a>(number: usize, lines: impl Iterator<Item = &'a str>) -> String {
    let lines: Vec<&str> = lines.collect();
    lines[lines.len().saturating_sub(number)..].join("\n")
}

fn is_of_a_program(line: &str) -> bool {
    !is_kernels(line) && !line.starts_with(MARK)
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
    text.lines().find(|line| is_splat(line)).map(str::to_owned)
}

fn is_splat(line: &str) -> bool {
    SPLATS.iter().any(|splat| line.contains(splat))
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
            "[    0.100000] Linux\nagent: first\n[x] not the kernel's\n[   12.5] sda\nvm-harness: end\nlast",
        )
        .unwrap();
        let console = Console::new(path);
        assert_eq!(console.tail_of_programs(2), "[x] not the kernel's\nlast");
        assert_eq!(console.tail_of_kernel(1), "[   12.5] sda");
        let later = console.text().find("[   12.5]").unwrap();
        assert_eq!(console.tail_of_programs_since(later, 2), "last");
        assert_eq!(console.tail_of_programs_since(console.length(), 2), "");
        assert_eq!(console.tail(2), "vm-harness: end\nlast");
    }

    #[rstest::rstest]
    #[case::none(&["a", "b", "c"], "b\nc")]
    #[case::long_ago(&["a", "Oops:", "b", "c", "d", "e"], "Oops:\nb\n…\nd\ne")]
    #[case::before(&["a", "Oops:", "b", "c"], "Oops:\nb\nc")]
    #[case::at_the_end(&["a", "b", "Oops:", "c"], "Oops:\nc")]
    #[case::nothing(&[], "")]
    fn beginning_of_a_fault_is_kept(#[case] lines: &[&str], #[case] expected: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), lines.join("\n")).unwrap();
        assert_eq!(Console::new(file.path().to_owned()).end_with_fault(2), expected);
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
