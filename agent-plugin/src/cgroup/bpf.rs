//! [`bpf(2)`](https://man7.org/linux/man-pages/man2/bpf.2.html) for programs of type
//! `BPF_PROG_TYPE_CGROUP_DEVICE`: query which are attached, read their instructions, load one,
//! replace one by another. Nothing is decided here.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
};

use super::{
    bpf_attr::{
        BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI, BPF_F_QUERY_EFFECTIVE, BPF_F_REPLACE,
        BPF_LINK_GET_FD_BY_ID, BPF_LINK_GET_NEXT_ID, BPF_LINK_TYPE_CGROUP, BPF_OBJ_GET_INFO_BY_FD,
        BPF_PROG_ATTACH, BPF_PROG_GET_FD_BY_ID, BPF_PROG_LOAD, BPF_PROG_QUERY,
        BPF_PROG_TYPE_CGROUP_DEVICE, BpfAttr, BpfInfo, GetId, ObjInfo, ProgAttach, ProgLoad,
        ProgQuery,
    },
    insn::Instruction,
};

/// The kernel's limit of programs on one cgroup; with its ancestors' there may be more.
const MOST: usize = 64;

/// The name that lists of programs show.
const NAME: [u8; 16] = *b"ecrblk_devices\0\0";

fn number(fd: impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd().cast_unsigned()
}

fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

/// # Safety
/// Pointers in `attribute` must be valid for what `command` reads and writes there.
#[expect(unsafe_code, reason = "bpf(2) has no safe wrapper in libc or nix")]
unsafe fn bpf(command: libc::c_int, attribute: &mut BpfAttr) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads and writes `attribute`, of the size that is given; the caller
    // guarantees what it points to.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attribute, size_of::<BpfAttr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Returns a descriptor of the program or link `id`.
#[expect(unsafe_code, reason = "see bpf")]
fn open_id(command: libc::c_int, id: u32) -> io::Result<OwnedFd> {
    let mut attribute = BpfAttr::of_id(GetId { id, next_id: 0 });
    // SAFETY: the attributes of these commands contain no pointer.
    owned(unsafe { bpf(command, &mut attribute) }?)
}

#[expect(unsafe_code, reason = "the kernel returns a descriptor as a number")]
fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the descriptor is new, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The result of a query.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Query {
    /// In the order in which the programs run.
    pub ids: Vec<u32>,
    /// Whether a single program can be replaced (`BPF_F_ALLOW_MULTI`). The kernel reports it for a
    /// cgroup's own programs alone.
    pub multi: bool,
}

/// Queries the programs that are attached to a cgroup itself, or all `effective` ones, those of its
/// ancestors included.
///
/// # Errors
/// The kernel's error; `EINVAL` where the kernel has no such programs.
#[expect(unsafe_code, reason = "see bpf")]
pub fn query(cgroup: impl AsFd, effective: bool) -> io::Result<Query> {
    let query_flags = if effective { BPF_F_QUERY_EFFECTIVE } else { 0 };
    let mut ids = vec![0_u32; MOST];
    loop {
        let mut attribute = BpfAttr::of_query(ProgQuery {
            target_fd: number(&cgroup),
            attach_type: BPF_CGROUP_DEVICE,
            query_flags,
            attach_flags: 0,
            prog_ids: address(ids.as_mut_ptr()),
            prog_cnt: u32::try_from(ids.len()).map_err(io::Error::other)?,
            reserved: 0,
        });
        // SAFETY: the kernel writes at most `prog_cnt` numbers to `ids`, which outlives the call.
        let result = unsafe { bpf(BPF_PROG_QUERY, &mut attribute) };
        let answer = attribute.query();
        let count = answer.prog_cnt as usize;
        match result {
            // The kernel reports how many there are.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && count > ids.len() => {
                ids.resize(count, 0);
            }
            Err(error) => return Err(error),
            Ok(_) => {
                ids.truncate(count);
                return Ok(Query { ids, multi: answer.attach_flags & BPF_F_ALLOW_MULTI != 0 });
            }
        }
    }
}

/// A program in the kernel.
#[derive(Debug)]
pub struct Loaded(OwnedFd);

/// What the kernel reports of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Its id.
    pub id: u32,
    /// How many maps it uses.
    pub maps: u32,
    /// As the verifier left them; `None` where they are withheld.
    pub instructions: Option<Vec<Instruction>>,
}

impl Loaded {
    /// Opens the program of this id.
    ///
    /// # Errors
    /// The kernel's error; `ENOENT` where it is gone.
    pub fn open(id: u32) -> io::Result<Loaded> {
        open_id(BPF_PROG_GET_FD_BY_ID, id).map(Loaded)
    }

    /// Has the kernel verify and load a program.
    ///
    /// # Errors
    /// The kernel's error.
    #[expect(unsafe_code, reason = "see bpf")]
    pub fn load(instructions: &[Instruction]) -> io::Result<Loaded> {
        // No helper is called, so that the license does not matter to the kernel.
        let license = c"Apache-2.0";
        let mut attribute = BpfAttr::of_load(ProgLoad {
            prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
            insn_cnt: u32::try_from(instructions.len()).map_err(io::Error::other)?,
            insns: address(instructions.as_ptr()),
            license: address(license.as_ptr()),
            log_level: 0,
            log_size: 0,
            log_buf: 0,
            kern_version: 0,
            prog_flags: 0,
            prog_name: NAME,
            prog_ifindex: 0,
            expected_attach_type: BPF_CGROUP_DEVICE,
        });
        // SAFETY: the kernel reads `insn_cnt` instructions and a text that ends with zero; both
        // outlive the call.
        let fd = unsafe { bpf(BPF_PROG_LOAD, &mut attribute) }?;
        owned(fd).map(Loaded)
    }

    /// Reads what the kernel reports of it.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn info(&self) -> io::Result<Info> {
        let first = info_of(&self.0, &mut [])?.prog();
        let length = first.xlated_prog_len as usize;
        let mut instructions = vec![Instruction::default(); length / size_of::<Instruction>()];
        let second = info_of(&self.0, &mut instructions)?.prog();
        // The kernel clears the pointer where it withholds them.
        let is_given = length != 0 && second.xlated_prog_insns != 0;
        Ok(Info {
            id: first.id,
            maps: first.nr_map_ids,
            instructions: is_given.then_some(instructions),
        })
    }

    /// Attaches it to a cgroup in place of `old`, in one step: every access is decided by one of
    /// the two.
    ///
    /// # Errors
    /// The kernel's error; `ENOENT` where `old` is not attached there, or by a link.
    #[expect(unsafe_code, reason = "see bpf")]
    pub fn attach(&self, cgroup: impl AsFd, old: &Loaded) -> io::Result<()> {
        let mut attribute = BpfAttr::of_attach(ProgAttach {
            target_fd: number(cgroup),
            attach_bpf_fd: number(&self.0),
            attach_type: BPF_CGROUP_DEVICE,
            attach_flags: BPF_F_ALLOW_MULTI | BPF_F_REPLACE,
            replace_bpf_fd: number(&old.0),
        });
        // SAFETY: the attributes of this command contain no pointer.
        unsafe { bpf(BPF_PROG_ATTACH, &mut attribute) }.map(drop)
    }
}

/// `BPF_OBJ_GET_INFO_BY_FD`; of a program, with as many instructions as there is `room` for.
#[expect(unsafe_code, reason = "see bpf")]
fn info_of(fd: &OwnedFd, room: &mut [Instruction]) -> io::Result<BpfInfo> {
    let mut info = BpfInfo::empty();
    if !room.is_empty() {
        let length = u32::try_from(size_of_val(room)).map_err(io::Error::other)?;
        info = BpfInfo::with_instructions(address(room.as_mut_ptr()), length);
    }
    let mut attribute = BpfAttr::of_info(ObjInfo {
        bpf_fd: number(fd),
        info_len: size_of::<BpfInfo>() as u32,
        info: address(&raw mut info),
    });
    // SAFETY: the kernel writes at most `info_len` bytes to `info`, and at most `xlated_prog_len`
    // bytes to `room`; without a pointer in `info` it writes nothing else. All of it outlives the
    // call.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attribute) }?;
    Ok(info)
}

/// Whether a program is attached to a cgroup by a link, and only the link's owner can replace it.
/// `cgroup` is the inode number of its directory.
///
/// # Errors
/// The kernel's error.
pub fn is_linked(program: u32, cgroup: u64) -> io::Result<bool> {
    let mut last = 0;
    loop {
        let id = match next_link(last) {
            Ok(id) => id,
            // There are no more; before Linux 5.8 there are none.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        last = id;
        let link = match open_id(BPF_LINK_GET_FD_BY_ID, id) {
            Ok(link) => link,
            // It was removed in the meantime, or is just being made.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EAGAIN)) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        let info = info_of(&link, &mut [])?.link();
        if (info.kind, info.prog_id, info.cgroup_id) == (BPF_LINK_TYPE_CGROUP, program, cgroup) {
            return Ok(true);
        }
    }
}

/// The id of the link after `last`.
#[expect(unsafe_code, reason = "see bpf")]
fn next_link(last: u32) -> io::Result<u32> {
    let mut attribute = BpfAttr::of_id(GetId { id: last, next_id: 0 });
    // SAFETY: the attributes of this command contain no pointer.
    unsafe { bpf(BPF_LINK_GET_NEXT_ID, &mut attribute) }?;
    Ok(attribute.id().next_id)
}
