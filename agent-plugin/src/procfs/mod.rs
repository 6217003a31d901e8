//! Parsers of files of [`/proc`](https://man7.org/linux/man-pages/man5/proc.5.html), which
//! take bytes and read no file; and the numbers that it has as names.
//!
//! | module | file |
//! |---|---|
//! | [`cgroup`] | `/proc/PID/cgroup`, `/proc/cgroups` |
//! | [`fdinfo`] | `/proc/PID/fdinfo/FD` |
//! | [`mountinfo`] | `/proc/PID/mountinfo` |
//! | [`stat`] | `/proc/PID/stat` |

pub mod cgroup;
pub mod fdinfo;
pub mod mountinfo;
pub mod stat;

use std::{fs, io, os::unix::ffi::OsStrExt as _};

use crate::text::decimal;

/// The numbers among the names in a directory: processes, threads, descriptors.
pub(crate) fn numbers(directory: &str) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory)? {
        if let Some(number) = decimal(entry?.file_name().as_bytes()) {
            numbers.push(number);
        }
    }
    Ok(numbers)
}
