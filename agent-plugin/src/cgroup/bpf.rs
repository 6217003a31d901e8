//! [`bpf(2)`](https://man7.org/linux/man-pages/man2/bpf.2.html) for programs of type
//! `BPF_PROG_TYPE_CGROUP_DEVICE`: which are attached, what they consist of, load one, attach one in
//! the place of another. Nothing here decides anything.
//!
//! Attributes and records are passed with the size of the largest kernel that is known, zeros
//! behind the part that is used: an older kernel accepts zeros, and a newer one may write behind
//! what it documents (6.17 to 7.1 write a `revision` after a query).

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
};

use super::program::Instruction;

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
const LINK_GET_FD_BY_ID: libc::c_int = 30;
const LINK_GET_NEXT_ID: libc::c_int = 31;

const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_LINK_TYPE_CGROUP: u32 = 3;
const BPF_F_QUERY_EFFECTIVE: u32 = 1;
const BPF_F_ALLOW_MULTI: u32 = 2;
const BPF_F_REPLACE: u32 = 4;

/// The kernel's limit of programs on one cgroup; with its ancestors' there may be more.
const MOST: usize = 64;

/// `union bpf_attr`: each command has its own fields in it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Attribute([u32; 64]);

impl Attribute {
    fn new(fields: &[u32]) -> Attribute {
        let mut words = [0; 64];
        words[..fields.len()].copy_from_slice(fields);
        Attribute(words)
    }

    /// A pointer, at the word `index`, which is even.
    fn with_pointer<T>(mut self, index: usize, pointer: *const T) -> Attribute {
        let address = (pointer.expose_provenance() as u64).to_ne_bytes();
        for (word, bytes) in self.0[index..index + 2].iter_mut().zip(address.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        self
    }
}

fn number(fd: impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd().cast_unsigned()
}

/// # Safety
/// Pointers in `attribute` must be good for what `command` reads and writes there.
#[expect(unsafe_code, reason = "bpf(2) has no safe wrapper in libc or nix")]
unsafe fn bpf(command: libc::c_int, attribute: &mut Attribute) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads and writes `attribute`, of the size that is told; the caller answers
    // for what it points to.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, &raw mut *attribute, size_of::<Attribute>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// For commands whose attribute holds no pointer.
#[expect(unsafe_code, reason = "see bpf")]
fn plain(command: libc::c_int, fields: &[u32]) -> io::Result<(libc::c_long, Attribute)> {
    let mut attribute = Attribute::new(fields);
    // SAFETY: these commands take numbers alone.
    let result = unsafe { bpf(command, &mut attribute) }?;
    Ok((result, attribute))
}

#[expect(unsafe_code, reason = "a descriptor comes out of the kernel as a number")]
fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What a query tells.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attached {
    /// In the order in which they run.
    pub ids: Vec<u32>,
    /// Whether each of them can be exchanged by itself (`BPF_F_ALLOW_MULTI`); told of a cgroup's
    /// own programs alone.
    pub multi: bool,
}

/// The programs that are attached to a cgroup itself, or all that decide over it, those of its
/// ancestors included.
///
/// # Errors
/// As the kernel says; `EINVAL` where it has no such programs.
#[expect(unsafe_code, reason = "see bpf")]
pub fn query(cgroup: impl AsFd, effective: bool) -> io::Result<Attached> {
    let flags = if effective { BPF_F_QUERY_EFFECTIVE } else { 0 };
    let mut ids = vec![0_u32; MOST];
    loop {
        let room = u32::try_from(ids.len()).map_err(io::Error::other)?;
        let fields = [number(&cgroup), BPF_CGROUP_DEVICE, flags, 0, 0, 0, room];
        let mut attribute = Attribute::new(&fields).with_pointer(4, ids.as_mut_ptr());
        // SAFETY: the kernel writes at most `room` numbers to `ids`, which outlives the call.
        let result = unsafe { bpf(PROG_QUERY, &mut attribute) };
        let count = attribute.0[6] as usize;
        match result {
            // It tells how many there are.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && count > ids.len() => {
                ids.resize(count, 0);
            }
            Err(error) => return Err(error),
            Ok(_) => {
                ids.truncate(count);
                return Ok(Attached { ids, multi: attribute.0[3] & BPF_F_ALLOW_MULTI != 0 });
            }
        }
    }
}

/// A program in the kernel.
#[derive(Debug)]
pub struct Loaded(OwnedFd);

/// What the kernel tells of a program.
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
    /// The program of this id.
    ///
    /// # Errors
    /// As the kernel says; `ENOENT` where it is gone.
    pub fn open(id: u32) -> io::Result<Loaded> {
        let (fd, _) = plain(PROG_GET_FD_BY_ID, &[id])?;
        owned(fd).map(Loaded)
    }

    /// Has the kernel verify and load a program.
    ///
    /// # Errors
    /// As the kernel says.
    #[expect(unsafe_code, reason = "see bpf")]
    pub fn load(instructions: &[Instruction]) -> io::Result<Loaded> {
        let count = u32::try_from(instructions.len()).map_err(io::Error::other)?;
        // No helper is called, so that the license opens nothing.
        let license = c"Apache-2.0";
        let mut attribute = Attribute::new(&[BPF_PROG_TYPE_CGROUP_DEVICE, count])
            .with_pointer(2, instructions.as_ptr())
            .with_pointer(4, license.as_ptr());
        // The name that lists of programs show.
        for (word, bytes) in
            attribute.0[12..16].iter_mut().zip(b"ecrblk_devices\0\0".chunks_exact(4))
        {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        attribute.0[17] = BPF_CGROUP_DEVICE;
        // SAFETY: the kernel reads `count` instructions and a text that ends with zero; both
        // outlive the call.
        let fd = unsafe { bpf(PROG_LOAD, &mut attribute) }?;
        owned(fd).map(Loaded)
    }

    /// What the kernel tells of it.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn info(&self) -> io::Result<Info> {
        let record = record_of(&self.0, &mut [])?;
        let (id, length, maps) = (record.0[1], record.0[INSTRUCTIONS_LENGTH], record.0[13]);
        let mut instructions =
            vec![Instruction::default(); length as usize / size_of::<Instruction>()];
        let record = record_of(&self.0, &mut instructions)?;
        // The kernel takes the pointer away where it gives nothing.
        let given = length != 0 && record.0[INSTRUCTIONS..INSTRUCTIONS + 2] != [0, 0];
        Ok(Info { id, maps, instructions: given.then_some(instructions) })
    }

    /// Attaches it to a cgroup in the place of `old`, in one step: no access is decided without one
    /// of both.
    ///
    /// # Errors
    /// As the kernel says; `ENOENT` where `old` is not attached there, or by a link.
    pub fn attach(&self, cgroup: impl AsFd, old: &Loaded) -> io::Result<()> {
        let flags = BPF_F_ALLOW_MULTI | BPF_F_REPLACE;
        let fields = [number(cgroup), number(&self.0), BPF_CGROUP_DEVICE, flags, number(&old.0)];
        plain(PROG_ATTACH, &fields).map(drop)
    }
}

/// Words of `struct bpf_prog_info`: the length in bytes, and where they are to go.
const INSTRUCTIONS_LENGTH: usize = 5;
const INSTRUCTIONS: usize = 8;

/// `BPF_OBJ_GET_INFO_BY_FD`; of a program it takes as many instructions as there is `room` for.
#[expect(unsafe_code, reason = "see bpf")]
fn record_of(fd: &OwnedFd, room: &mut [Instruction]) -> io::Result<Attribute> {
    let mut record = Attribute::new(&[]);
    if !room.is_empty() {
        record = record.with_pointer(INSTRUCTIONS, room.as_mut_ptr());
        record.0[INSTRUCTIONS_LENGTH] =
            u32::try_from(size_of_val(room)).map_err(io::Error::other)?;
    }
    let fields = [number(fd), size_of::<Attribute>() as u32];
    let mut attribute = Attribute::new(&fields).with_pointer(2, &raw mut record);
    // SAFETY: the kernel writes at most the size that is told to `record`, and as many bytes as
    // `room` has there; a record without a pointer has it write nothing else. All of it outlives
    // the call.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attribute) }?;
    Ok(record)
}

/// Whether a program is attached to a cgroup by a link, which alone could exchange it. `cgroup` is
/// the number of its directory's inode.
///
/// # Errors
/// As the kernel says.
pub fn is_linked(program: u32, cgroup: u64) -> io::Result<bool> {
    let mut last = 0;
    loop {
        let id = match plain(LINK_GET_NEXT_ID, &[last]) {
            Ok((_, attribute)) => attribute.0[1],
            // No more of them; before Linux 5.8 there are none.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        last = id;
        let link = match plain(LINK_GET_FD_BY_ID, &[id]) {
            Ok((fd, _)) => owned(fd)?,
            // It went in between, or is just being made.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EAGAIN)) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        let record = record_of(&link, &mut [])?;
        let [kind, _, of_program] = [record.0[0], record.0[1], record.0[2]];
        let bytes = [record.0[4].to_ne_bytes(), record.0[5].to_ne_bytes()].concat();
        let at = bytes.try_into().map(u64::from_ne_bytes);
        if (kind, of_program) == (BPF_LINK_TYPE_CGROUP, program) && at == Ok(cgroup) {
            return Ok(true);
        }
    }
}
