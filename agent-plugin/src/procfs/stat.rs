//! [`/proc/PID/stat`](https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html): fields separated
//! by blanks. The second one is the command's name in parentheses. It may contain anything,
//! parentheses, blanks and bytes that are no UTF-8 included.

use crate::text::{decimal, words};

/// Whether the process is a thread of the kernel, by the field `flags`.
pub fn is_kernel_thread(stat: &[u8]) -> bool {
    const PF_KTHREAD: u64 = 0x0020_0000;
    field(stat, 9).is_some_and(|flags| flags & PF_KTHREAD != 0)
}

/// The field `starttime`: when the process began, in clock ticks since boot.
pub fn start_time(stat: &[u8]) -> Option<u64> {
    field(stat, 22)
}

/// A field behind the name, numbered from 1 as in the manual page.
fn field(stat: &[u8], number: usize) -> Option<u64> {
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    decimal(words(stat[end + 1..].trim_ascii_end()).nth(number - 3)?)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn the_start_is_read_whatever_the_name_is() {
        let stat =
            b"7 (\xff\n) 1 (b\x1b c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 4096 1\n";
        assert_eq!(start_time(stat), Some(123_456));
        assert_eq!(start_time(b"7 (a) S 1"), None);
        assert_eq!(start_time(b""), None);
    }

    #[rstest]
    #[case(b"2 (kthreadd) S 0 0 0 0 -1 2129984 0", true)]
    #[case(b"2 (a) S 0 (b) R 1 2 2 0 -1 4194560 0", false)]
    #[case(b"7 (x) S 1", false)]
    #[case(b"", false)]
    fn kernel_threads_are_recognized_by_their_flags(#[case] stat: &[u8], #[case] expected: bool) {
        assert_eq!(is_kernel_thread(stat), expected);
    }
}
