//! The protocol between the harness and the observer, a small program that runs beside the agent in
//! the test guest and inspects the guest without the agent's help.
//!
//! The observer listens on vsock port [`PORT`]. Request and reply are one line of JSON each. A
//! connection serves any number of requests, in order. The observer is for tests only: it runs any
//! program that a request names, as root.

use serde::{Deserialize, Serialize};

/// The observer's vsock port.
pub const PORT: u32 = 1030;

/// A request of the harness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Runs a program in the agent's namespaces and waits until it has ended and its output is
    /// closed. A name without `/` that is not a program of the image runs as an applet of busybox.
    Run {
        /// The program and its arguments.
        argv: Vec<String>,
        /// Its standard input; empty if absent.
        stdin: Option<String>,
    },
    /// Writes `contents` to `path` with one `write(2)`, as kernel interfaces require. An ordinary
    /// file is created or truncated.
    Write {
        /// The path in the guest.
        path: String,
        /// The new contents.
        contents: String,
    },
    /// Reads the file `path`.
    Read {
        /// The path in the guest.
        path: String,
    },
    /// Lists the device programs that are attached to a cgroup itself, not to its ancestors.
    Programs {
        /// The path below the root of the unified hierarchy: `/pod/c1`.
        cgroup: String,
    },
    /// Attaches another device program to a cgroup.
    AttachProgram {
        /// As for [`Request::Programs`].
        cgroup: String,
        /// Hexadecimal digits, sixteen for each instruction.
        instructions: String,
    },
    /// Reads the state of the agent.
    AgentState,
    /// Opens a uevent socket for the later [`Request::Scan`]s of this connection.
    OpenUevents,
    /// Scans one address and waits for its block device: the floor with which the speed of a
    /// hot-plug is compared.
    Scan(Address),
    /// Removes one SCSI device.
    Delete(Address),
    /// As [`Request::Scan`], and mounts the disk's ext4 file system in the guest.
    Mount(Address),
    /// Unmounts that file system, and removes the SCSI device.
    Unmount(Address),
    /// Updates a guest that was restored from a file: sets its clock, and reseeds its random number
    /// generator, whose state is the same in every guest that is restored from that file.
    Restored {
        /// Seconds since 1970.
        seconds: i64,
        /// Nanoseconds of the current second.
        nanoseconds: i64,
        /// Random bytes for the kernel's generator.
        seed: Vec<u8>,
    },
}

/// A SCSI address of the guest; the channel is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Number of the SCSI host.
    pub host: u32,
    /// SCSI target.
    pub target: u32,
    /// Logical unit.
    pub lun: u32,
}

/// A reply of the observer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Run`].
    Ran {
        /// The exit status, or 128 and the number of the signal that ended it.
        status: i32,
        /// As UTF-8, with replacement characters.
        stdout: String,
        /// As UTF-8, with replacement characters.
        stderr: String,
    },
    /// The request succeeded and has no result.
    Done,
    /// To [`Request::Read`].
    Contents {
        /// As UTF-8, with replacement characters.
        contents: String,
    },
    /// To [`Request::Programs`].
    Programs {
        /// In the order of attachment.
        programs: Vec<Program>,
    },
    /// To [`Request::AgentState`].
    AgentState(AgentState),
    /// To [`Request::Scan`] and [`Request::Mount`].
    Block {
        /// The kernel's name: `sda`.
        name: String,
    },
    /// The request failed. Parts of it may have been done.
    Error {
        /// The reason.
        message: String,
    },
}

/// A BPF program in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its ID, which the kernel does not reuse.
    pub id: u32,
    /// The instructions in the kernel's format, as hexadecimal digits.
    pub instructions: String,
}

/// The state of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentState {
    /// Sorted by thread ID.
    pub threads: Vec<Thread>,
    /// The targets of its descriptors (`/proc/1/fd/*`), sorted.
    pub fds: Vec<String>,
    /// Voluntary context switches so far, summed over the threads. The count does not change while
    /// the agent sleeps.
    pub voluntary_switches: u64,
    /// Resident anonymous memory.
    pub rss_anon_kb: u64,
    /// Resident memory of mapped files. In an initramfs that is the binary.
    pub rss_file_kb: u64,
}

/// One thread of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    /// Thread ID.
    pub tid: u32,
    /// Inode number of its mount namespace.
    pub mount_namespace: u64,
    /// Its name.
    pub comm: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_line_of_json() {
        let request = Request::Write { path: "/p".into(), contents: "a\nb".into() };
        let line = serde_json::to_string(&request).unwrap();
        assert_eq!(line, r#"{"write":{"path":"/p","contents":"a\nb"}}"#);
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
    }

    #[test]
    fn the_address_of_a_scan_is_not_nested() {
        let line = r#"{"scan":{"host":0,"target":255,"lun":3}}"#;
        let request = Request::Scan(Address { host: 0, target: 255, lun: 3 });
        assert_eq!(serde_json::from_str::<Request>(line).unwrap(), request);
    }

    #[test]
    fn a_request_without_fields_is_its_name() {
        assert_eq!(
            serde_json::from_str::<Request>(r#""agent_state""#).unwrap(),
            Request::AgentState
        );
    }
}
