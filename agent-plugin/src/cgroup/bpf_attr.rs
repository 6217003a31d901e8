//! `union bpf_attr` and the records of `BPF_OBJ_GET_INFO_BY_FD`, as `linux/bpf.h` has them: the
//! fields that are used here.
//!
//! Both are passed with the size of the largest kernel that is known, with zeros behind the fields
//! that are used: an older kernel accepts zeros, and a newer one may write behind the fields that
//! it documents (6.17 to 7.1 write a `revision` after a query).

pub(super) const BPF_PROG_LOAD: libc::c_int = 5;
pub(super) const BPF_PROG_ATTACH: libc::c_int = 8;
pub(super) const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
pub(super) const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
pub(super) const BPF_PROG_QUERY: libc::c_int = 16;
pub(super) const BPF_LINK_GET_FD_BY_ID: libc::c_int = 30;
pub(super) const BPF_LINK_GET_NEXT_ID: libc::c_int = 31;

pub(super) const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
pub(super) const BPF_CGROUP_DEVICE: u32 = 6;
pub(super) const BPF_LINK_TYPE_CGROUP: u32 = 3;
pub(super) const BPF_F_QUERY_EFFECTIVE: u32 = 1;
pub(super) const BPF_F_ALLOW_MULTI: u32 = 2;
pub(super) const BPF_F_REPLACE: u32 = 4;

/// The size of attributes and records, in words of 64 bits.
const WORDS: usize = 32;

/// Of `BPF_PROG_LOAD`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct ProgLoad {
    pub(super) prog_type: u32,
    pub(super) insn_cnt: u32,
    pub(super) insns: u64,
    pub(super) license: u64,
    pub(super) log_level: u32,
    pub(super) log_size: u32,
    pub(super) log_buf: u64,
    pub(super) kern_version: u32,
    pub(super) prog_flags: u32,
    pub(super) prog_name: [u8; 16],
    pub(super) prog_ifindex: u32,
    pub(super) expected_attach_type: u32,
}

/// Of `BPF_PROG_ATTACH`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct ProgAttach {
    pub(super) target_fd: u32,
    pub(super) attach_bpf_fd: u32,
    pub(super) attach_type: u32,
    pub(super) attach_flags: u32,
    pub(super) replace_bpf_fd: u32,
}

/// Of `BPF_*_GET_FD_BY_ID` and `BPF_*_GET_NEXT_ID`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct GetId {
    /// `start_id`, `prog_id` or `link_id`.
    pub(super) id: u32,
    pub(super) next_id: u32,
}

/// Of `BPF_OBJ_GET_INFO_BY_FD`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct ObjInfo {
    pub(super) bpf_fd: u32,
    pub(super) info_len: u32,
    pub(super) info: u64,
}

/// Of `BPF_PROG_QUERY`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct ProgQuery {
    pub(super) target_fd: u32,
    pub(super) attach_type: u32,
    pub(super) query_flags: u32,
    pub(super) attach_flags: u32,
    pub(super) prog_ids: u64,
    pub(super) prog_cnt: u32,
    /// No padding, so that every byte is initialized.
    pub(super) reserved: u32,
}

/// `union bpf_attr`
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) union BpfAttr {
    words: [u64; WORDS],
    prog_load: ProgLoad,
    prog_attach: ProgAttach,
    get_id: GetId,
    obj_info: ObjInfo,
    query: ProgQuery,
}

/// `struct bpf_prog_info`
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct ProgInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) tag: [u8; 8],
    pub(super) jited_prog_len: u32,
    /// In bytes.
    pub(super) xlated_prog_len: u32,
    pub(super) jited_prog_insns: u64,
    pub(super) xlated_prog_insns: u64,
    pub(super) load_time: u64,
    pub(super) created_by_uid: u32,
    pub(super) nr_map_ids: u32,
}

/// `struct bpf_link_info`, of a link to a cgroup.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct LinkInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) prog_id: u32,
    /// In C this is padding.
    pub(super) reserved: u32,
    pub(super) cgroup_id: u64,
}

/// A record of `BPF_OBJ_GET_INFO_BY_FD`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) union BpfInfo {
    words: [u64; WORDS],
    prog: ProgInfo,
    link: LinkInfo,
}

const _: () = assert!(size_of::<BpfAttr>() == 256 && size_of::<BpfInfo>() == 256);
const _: () = assert!(size_of::<ProgLoad>() == 72 && size_of::<ProgQuery>() == 32);
const _: () = assert!(size_of::<ProgInfo>() == 56 && size_of::<LinkInfo>() == 24);

/// Attributes of one command, with zeros behind its fields.
macro_rules! attribute {
    ($name:ident, $field:ident, $fields:ty) => {
        pub(super) fn $name(fields: $fields) -> BpfAttr {
            let mut attribute = BpfAttr { words: [0; WORDS] };
            attribute.$field = fields;
            attribute
        }
    };
}

impl BpfAttr {
    attribute!(of_load, prog_load, ProgLoad);
    attribute!(of_attach, prog_attach, ProgAttach);
    attribute!(of_id, get_id, GetId);
    attribute!(of_info, obj_info, ObjInfo);
    attribute!(of_query, query, ProgQuery);

    /// The fields of a query, as the kernel left them.
    #[expect(unsafe_code, reason = "a field of a union is read")]
    pub(super) fn query(&self) -> ProgQuery {
        // SAFETY: all 256 bytes are initialized, and every field is a number.
        unsafe { self.query }
    }

    /// The fields of a command about ids, as the kernel left them.
    #[expect(unsafe_code, reason = "a field of a union is read")]
    pub(super) fn id(&self) -> GetId {
        // SAFETY: all 256 bytes are initialized, and every field is a number.
        unsafe { self.get_id }
    }
}

impl BpfInfo {
    /// A record of zeros, into which the kernel writes.
    pub(super) fn empty() -> BpfInfo {
        BpfInfo { words: [0; WORDS] }
    }

    /// A record that has the kernel write instructions of `length` bytes to `address`.
    pub(super) fn with_instructions(address: u64, length: u32) -> BpfInfo {
        let mut info = BpfInfo::empty();
        info.prog = ProgInfo {
            kind: 0,
            id: 0,
            tag: [0; 8],
            jited_prog_len: 0,
            xlated_prog_len: length,
            jited_prog_insns: 0,
            xlated_prog_insns: address,
            load_time: 0,
            created_by_uid: 0,
            nr_map_ids: 0,
        };
        info
    }

    /// Of a program.
    #[expect(unsafe_code, reason = "a field of a union is read")]
    pub(super) fn prog(&self) -> ProgInfo {
        // SAFETY: all 256 bytes are initialized, and every field is a number.
        unsafe { self.prog }
    }

    /// Of a link.
    #[expect(unsafe_code, reason = "a field of a union is read")]
    pub(super) fn link(&self) -> LinkInfo {
        // SAFETY: all 256 bytes are initialized, and every field is a number.
        unsafe { self.link }
    }
}
