//! [`/proc/PID/fdinfo/FD`](https://man7.org/linux/man-pages/man5/proc_pid_fdinfo.5.html): lines of
//! a name, a colon and a value.

/// The process of a pidfd. `None` where it was reaped (-1) or is not visible from here (0).
pub fn pid(text: &str) -> Option<i32> {
    field::<i32>(text, "Pid").filter(|&pid| pid > 0)
}

/// The id of the mount that the file is on.
pub fn mount_id(text: &str) -> Option<u32> {
    field(text, "mnt_id")
}

fn field<T: std::str::FromStr>(text: &str, name: &str) -> Option<T> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "pos:\t0\nflags:\t02000002\nmnt_id:\t16\nino:\t1069\nPid:\t57\nNSpid:\t57\n";
        assert_eq!((pid(text), mount_id(text)), (Some(57), Some(16)));
        assert_eq!((pid("Pid:\t-1\n"), pid("Pid:\t0\n"), pid("NSpid:\t57\n")), (None, None, None));
    }
}
