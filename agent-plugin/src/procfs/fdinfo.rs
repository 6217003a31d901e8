//! [`/proc/PID/fdinfo/FD`](https://man7.org/linux/man-pages/man5/proc_pid_fdinfo.5.html): lines of
//! a name, a colon and a value.

use crate::text::{lines, parsed};

/// The process of a pidfd. `None` where it was reaped (-1) or is not visible from here (0).
pub fn pid(text: &[u8]) -> Option<i32> {
    field::<i32>(text, "Pid").filter(|&pid| pid > 0)
}

fn field<T: std::str::FromStr>(text: &[u8], name: &str) -> Option<T> {
    let value = |line: &'_ [u8]| {
        parsed(line.strip_prefix(name.as_bytes())?.strip_prefix(b":")?.trim_ascii())
    };
    lines(text).find_map(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = b"pos:\t0\nflags:\t02000002\nmnt_id:\t16\nino:\t1069\nPid:\t57\nNSpid:\t57\n";
        assert_eq!(pid(text), Some(57));
        assert_eq!(
            (pid(b"Pid:\t-1\n"), pid(b"Pid:\t0\n"), pid(b"NSpid:\t57\n")),
            (None, None, None)
        );
    }
}
