//! Device programs of a cgroup, by `BPF_PROG_QUERY` of [`bpf(2)`](https://man7.org/linux/man-pages/man2/bpf.2.html).
//!
//! Written apart from the product's own code on purpose: it checks it.

use std::{fs::File, io, os::fd::AsRawFd, path::Path};

const ROOT: &str = "/sys/fs/cgroup";
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_CGROUP_DEVICE: u32 = 6;
const MOST: usize = 64;

/// The `query` part of `union bpf_attr`, and then zeros: newer kernels write behind the part that they document, so that the
/// attribute has to be as large as the union of any of them. Kernels with a smaller one accept zeros.
#[repr(C)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    program_count: u32,
    rest: [u32; 57],
}

/// The ids of the programs that are attached to `cgroup` itself.
pub(crate) fn attached(cgroup: &str) -> io::Result<Vec<u32>> {
    let path = Path::new(ROOT).join(cgroup.trim_start_matches('/'));
    let directory = File::open(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    let mut ids = [0u32; MOST];
    let mut query = Query {
        target_fd: directory.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        program_ids: ids.as_mut_ptr() as u64,
        program_count: MOST as u32,
        rest: [0; 57],
    };
    #[expect(unsafe_code, reason = "no safe wrapper of bpf(2) exists")]
    // SAFETY: the attribute and the array that it points to live until the call returns, and both sizes are told.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return Err(io::Error::new(error.kind(), format!("BPF_PROG_QUERY on {}: {error}", path.display())));
    }
    Ok(ids[..(query.program_count as usize).min(MOST)].to_vec())
}
