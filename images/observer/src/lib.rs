//! The protocol between the harness and the observer, a small program that lives beside the agent
//! in the test guest and looks at the guest without the agent's help.
//!
//! The observer listens on vsock port [`PORT`]. A request is one line of JSON, and so is its reply;
//! a connection serves any number of them, in order. It is for tests only: it runs whatever it is
//! asked to, as root.

use serde::{Deserialize, Serialize};

/// The observer's vsock port.
pub const PORT: u32 = 1030;

/// What the harness asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Runs a program in the agent's namespaces and waits until it has ended and its output is
    /// closed. A name without `/` that is no program of the image is taken as an applet of busybox.
    Run {
        /// The program and its arguments.
        argv: Vec<String>,
        /// What it reads; nothing where absent.
        stdin: Option<String>,
    },
    /// Writes `contents` to `path` with one `write(2)`, as kernel interfaces want it; makes or
    /// truncates an ordinary file.
    Write {
        /// In the guest.
        path: String,
        /// All of it.
        contents: String,
    },
    /// Reads the whole of `path`.
    Read {
        /// In the guest.
        path: String,
    },
    /// The device programs that are attached to a cgroup itself, not to its ancestors.
    Programs {
        /// Below the root of the unified hierarchy: `/pod/c1`.
        cgroup: String,
    },
    /// Attaches one more device program to a cgroup.
    AttachProgram {
        /// As for [`Request::Programs`].
        cgroup: String,
        /// In hexadecimal digits, sixteen an instruction.
        instructions: String,
    },
    /// How PID 1 looks from outside.
    AgentState,
    /// Opens a uevent socket that the later [`Request::Scan`]s of this connection use.
    OpenUevents,
    /// Scans one address and waits for its block device: the floor that the product's speed is
    /// compared with.
    Scan(Address),
    /// Removes one SCSI device.
    Delete(Address),
    /// Tells a guest that was restored from a file what it cannot know: the time, and that its
    /// random numbers are not its own.
    Restored {
        /// The time since 1970.
        seconds: i64,
        /// The part of a second.
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

/// What the observer answers.
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
    /// Where there is nothing to tell.
    Done,
    /// To [`Request::Read`].
    Contents {
        /// As UTF-8, with replacement characters.
        contents: String,
    },
    /// To [`Request::Programs`].
    Programs {
        /// In the order in which they are attached.
        programs: Vec<Program>,
    },
    /// To [`Request::AgentState`].
    AgentState(AgentState),
    /// To [`Request::Scan`].
    Block {
        /// The kernel's name: `sda`.
        name: String,
    },
    /// The request failed; nothing is promised about what it did until then.
    Error {
        /// What failed.
        message: String,
    },
}

/// A program in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its id, which no later one gets.
    pub id: u32,
    /// As the kernel has them, in hexadecimal digits.
    pub instructions: String,
}

/// PID 1, which is the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentState {
    /// In the order of their ids.
    pub threads: Vec<Thread>,
    /// What its descriptors are open on (`/proc/1/fd/*`), sorted.
    pub fds: Vec<String>,
    /// Voluntary context switches so far, summed over the threads: a count that stands still is an
    /// agent that sleeps.
    pub voluntary_switches: u64,
    /// Resident anonymous memory.
    pub rss_anon_kb: u64,
    /// Resident memory of mapped files; in an initramfs that is the binary.
    pub rss_file_kb: u64,
}

/// One thread of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    /// Thread id.
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
    fn a_scan_carries_its_address_flat() {
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
