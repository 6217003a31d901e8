//! BPF programs of type `BPF_CGROUP_DEVICE` on cgroup v2
//! ([bpf(2)](https://man7.org/linux/man-pages/man2/bpf.2.html), [cgroup-v2](https://docs.kernel.org/admin-guide/cgroup-v2.html#device-controller)).
//! Only asks which there are.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
};

use crate::error::{Error, Result};

const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_QUERY_EFFECTIVE: u32 = 1;

/// The head of `union bpf_attr` for a query, and room for all that kernels may write behind it: 6.17 to 7.1 write a `revision`
/// whatever size they are told.
#[repr(C)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    rest: [u32; 57],
}

/// The programs that decide over a cgroup's devices, those of its ancestors included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// The first 64.
    pub ids: Vec<u32>,
    /// All.
    pub count: usize,
}

impl Programs {
    /// Asks the kernel. A kernel without such programs has none.
    ///
    /// # Errors
    /// There is no such cgroup, or no right to ask.
    pub fn of(cgroup: &Path) -> Result<Programs> {
        let directory = File::open(cgroup).map_err(Error::system("open", cgroup.display().to_string()))?;
        match query(&directory.into()) {
            Ok(programs) => Ok(programs),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                Ok(Programs { ids: Vec::new(), count: 0 })
            }
            Err(error) => Err(Error::system("bpf(BPF_PROG_QUERY)", cgroup.display().to_string())(error)),
        }
    }
}

#[expect(unsafe_code, reason = "bpf(2) has no safe wrapper in libc or nix")]
fn query(cgroup: &OwnedFd) -> io::Result<Programs> {
    let mut ids = [0_u32; 64];
    let mut query = Query {
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_type: BPF_CGROUP_DEVICE,
        query_flags: BPF_F_QUERY_EFFECTIVE,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr().expose_provenance() as u64,
        prog_cnt: 64,
        rest: [0; 57],
    };
    // SAFETY: the kernel reads and writes `query`, of the size that is passed, and at most `prog_cnt` numbers at `prog_ids`,
    // which point to `ids`; both outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    let count = query.prog_cnt as usize;
    if result < 0 {
        let error = io::Error::last_os_error();
        // More than 64: the count is right, the first ids are there.
        if error.raw_os_error() != Some(libc::ENOSPC) {
            return Err(error);
        }
    }
    Ok(Programs { ids: ids.iter().copied().take(count).collect(), count })
}
