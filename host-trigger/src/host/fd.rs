//! Queries on an open descriptor of a block device or file: the block layer's
//! [`ioctl(2)`](https://man7.org/linux/man-pages/man2/ioctl.2.html) requests of `linux/fs.h`, and
//! leases ([`F_SETLEASE`](https://man7.org/linux/man-pages/man2/fcntl.2.html)).

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use libc::c_int;

mod request {
    use libc::{c_int, c_uint, c_ushort};

    nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);
    nix::ioctl_read!(blkgetdiskseq, 0x12, 128, u64);
    nix::ioctl_read_bad!(blkroget, nix::request_code_none!(0x12, 94), c_int);
    nix::ioctl_read_bad!(blksszget, nix::request_code_none!(0x12, 104), c_int);
    nix::ioctl_read_bad!(blkpbszget, nix::request_code_none!(0x12, 123), c_uint);
    nix::ioctl_read_bad!(blkiomin, nix::request_code_none!(0x12, 120), c_uint);
    nix::ioctl_read_bad!(blkioopt, nix::request_code_none!(0x12, 121), c_uint);
    nix::ioctl_read_bad!(blkrotational, nix::request_code_none!(0x12, 126), c_ushort);
}

macro_rules! get {
    ($(#[$doc:meta])* $name:ident, $request:ident, $value:ty) => {
        $(#[$doc])*
        #[expect(unsafe_code, reason = "nix has no safe wrapper for this request")]
        pub(crate) fn $name(device: BorrowedFd<'_>) -> io::Result<$value> {
            let mut value: $value = 0;
            // SAFETY: the request writes one value of this type to the address, which is valid for
            // the call.
            unsafe { request::$request(device.as_raw_fd(), &mut value) }?;
            Ok(value)
        }
    };
}

get!(
    /// Returns the size of a block device in bytes.
    size,
    blkgetsize64,
    u64
);
get!(
    /// Returns the disk's sequence number. No other disk since boot has had the same one; a
    /// partition has its disk's.
    disk_sequence,
    blkgetdiskseq,
    u64
);
get!(
    /// Returns nonzero for a device that cannot be written. (Opening a read-only loop device for
    /// writing succeeds.)
    read_only,
    blkroget,
    c_int
);
get!(
    /// Returns the smallest unit that the device can address, in bytes.
    logical_block_size,
    blksszget,
    c_int
);
get!(
    /// Returns the smallest unit that the device writes atomically, in bytes.
    physical_block_size,
    blkpbszget,
    libc::c_uint
);
get!(
    /// Returns the smallest request that the device handles well, in bytes.
    minimum_io_size,
    blkiomin,
    libc::c_uint
);
get!(
    /// Returns the size of the requests that suit the device best, in bytes; 0 if it names none.
    optimal_io_size,
    blkioopt,
    libc::c_uint
);
get!(
    /// Returns nonzero for a device that rotates, or that does not say.
    rotational,
    blkrotational,
    libc::c_ushort
);

/// Which other openings of a file there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OtherOpeners {
    /// The file has no other opening.
    None,
    /// The file is open elsewhere, and not for writing.
    Readers,
    /// The file is open elsewhere for writing. Where this descriptor can write, the kernel does not
    /// distinguish readers from writers: then this means any other opening.
    Writers,
    /// The file system does not support leases.
    Unknown,
}

/// Returns which other openings of this file there are.
#[expect(unsafe_code, reason = "nix has no safe wrapper for leases")]
pub(crate) fn other_openers(file: BorrowedFd<'_>) -> io::Result<OtherOpeners> {
    let lease = |kind: c_int| {
        // SAFETY: the call takes two integers and changes nothing but the lease.
        match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    for (kind, openers) in
        [(libc::F_WRLCK, OtherOpeners::None), (libc::F_RDLCK, OtherOpeners::Readers)]
    {
        match lease(kind) {
            Ok(()) => return lease(libc::F_UNLCK).map(|()| openers),
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(OtherOpeners::Unknown),
            Err(e) => return Err(e),
        }
    }
    Ok(OtherOpeners::Writers)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd};

    use super::*;

    #[test]
    fn another_opening_of_the_file_is_detected() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(other_openers(file.as_fd()).unwrap(), OtherOpeners::None);
        let _reader = File::open(file.path()).unwrap();
        assert_eq!(other_openers(file.as_fd()).unwrap(), OtherOpeners::Writers);
    }

    #[test]
    fn a_reader_distinguishes_readers_from_writers() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.into_temp_path();
        let reader = File::open(&path).unwrap();
        assert_eq!(other_openers(reader.as_fd()).unwrap(), OtherOpeners::None);
        let _other_reader = File::open(&path).unwrap();
        assert_eq!(other_openers(reader.as_fd()).unwrap(), OtherOpeners::Readers);
        let _writer = File::options().write(true).open(&path).unwrap();
        assert_eq!(other_openers(reader.as_fd()).unwrap(), OtherOpeners::Writers);
    }

    #[test]
    fn the_openers_of_what_has_no_leases_are_unknown() {
        assert_eq!(other_openers(File::open("/").unwrap().as_fd()).unwrap(), OtherOpeners::Unknown);
    }

    #[test]
    fn a_file_does_not_support_block_requests() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(size(file.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }
}
