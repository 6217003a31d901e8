//! Parsers of files of [`/proc`](https://man7.org/linux/man-pages/man5/proc.5.html). They take
//! bytes and read no file.
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
