//! Device programs of a cgroup, by [`bpf(2)`](https://man7.org/linux/man-pages/man2/bpf.2.html):
//! lists the attached programs with their instructions, and attaches another one, as any process in
//! the guest could.
//!
//! It shares no code with the plugin on purpose, because it checks the plugin.

use std::{
    fmt::Write as _,
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use guest_observer::Program;

const ROOT: &str = "/sys/fs/cgroup";
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;
const MAX_PROGRAMS: usize = 64;
/// Size of an instruction in bytes.
const SIZE: usize = 8;

/// Words of `union bpf_attr` or of the kernel's reply, followed by zeros. Newer kernels write
/// behind the documented part, so this is as large as in any kernel. Kernels with a smaller union
/// accept zeros.
#[repr(C, align(8))]
struct Words([u32; 64]);

impl Words {
    fn new(words: &[u32]) -> Self {
        let mut all = [0; 64];
        all[..words.len()].copy_from_slice(words);
        Self(all)
    }

    fn pointing<T>(mut self, index: usize, pointer: *const T) -> Self {
        let address = pointer.expose_provenance() as u64;
        (self.0[index], self.0[index + 1]) = (address as u32, (address >> 32) as u32);
        self
    }
}

#[expect(unsafe_code, reason = "no safe wrapper of bpf(2) exists")]
fn bpf(command: libc::c_int, attribute: &mut Words) -> io::Result<i64> {
    // SAFETY: the attribute, and the data to which the callers below point, live until the call
    // returns. All sizes are passed.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attribute, size_of::<Words>()) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return Err(io::Error::new(error.kind(), format!("bpf({command}): {error}")));
    }
    Ok(result)
}

#[expect(unsafe_code, reason = "the kernel returns a descriptor as a number")]
fn owned(fd: i64) -> OwnedFd {
    // SAFETY: the descriptor is new, nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

fn open(cgroup: &str) -> io::Result<File> {
    let path = Path::new(ROOT).join(cgroup.trim_start_matches('/'));
    File::open(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// Returns the programs that are attached to `cgroup` itself.
pub(crate) fn attached(cgroup: &str) -> io::Result<Vec<Program>> {
    let directory = open(cgroup)?;
    let mut ids = [0u32; MAX_PROGRAMS];
    let head = [directory.as_raw_fd() as u32, BPF_CGROUP_DEVICE, 0, 0, 0, 0, MAX_PROGRAMS as u32];
    let mut query = Words::new(&head).pointing(4, ids.as_mut_ptr());
    bpf(PROG_QUERY, &mut query)?;
    let count = (query.0[6] as usize).min(MAX_PROGRAMS);
    ids[..count].iter().map(|&id| Ok(Program { id, instructions: instructions(id)? })).collect()
}

fn instructions(id: u32) -> io::Result<String> {
    let program = owned(bpf(PROG_GET_FD_BY_ID, &mut Words::new(&[id]))?);
    let mut bytes = vec![0_u8; 1 << 16];
    let mut info = Words::new(&[]).pointing(8, bytes.as_mut_ptr());
    info.0[5] = bytes.len() as u32;
    let head = [program.as_raw_fd() as u32, size_of::<Words>() as u32];
    bpf(OBJ_GET_INFO_BY_FD, &mut Words::new(&head).pointing(2, &raw mut info))?;
    bytes.truncate(info.0[5] as usize);
    Ok(bytes.iter().fold(String::new(), |mut text, byte| {
        // A write to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

/// Attaches a program to `cgroup`, in addition to the attached ones.
pub(crate) fn attach(cgroup: &str, instructions: &str) -> io::Result<()> {
    let byte = |at: usize| {
        instructions.get(at..at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok())
    };
    let bytes: Option<Vec<u8>> = (0..instructions.len()).step_by(2).map(byte).collect();
    let bytes = bytes.filter(|bytes| bytes.len() % SIZE == 0);
    let bytes =
        bytes.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a program"))?;
    let head = [BPF_PROG_TYPE_CGROUP_DEVICE, (bytes.len() / SIZE) as u32];
    let mut load = Words::new(&head).pointing(2, bytes.as_ptr()).pointing(4, c"GPL".as_ptr());
    let program = owned(bpf(PROG_LOAD, &mut load)?);
    let directory = open(cgroup)?;
    let words = [
        directory.as_raw_fd() as u32,
        program.as_raw_fd() as u32,
        BPF_CGROUP_DEVICE,
        BPF_F_ALLOW_MULTI,
    ];
    bpf(PROG_ATTACH, &mut Words::new(&words)).map(drop)
}
