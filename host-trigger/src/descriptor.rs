//! What a descriptor says of the block device or file behind it: the block layer's
//! [`ioctl(2)`](https://man7.org/linux/man-pages/man2/ioctl.2.html) requests of `linux/fs.h`, and
//! leases ([`F_SETLEASE`](https://man7.org/linux/man-pages/man2/fcntl.2.html)).

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use libc::c_int;

mod request {
    use libc::{c_int, c_uint};

    nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);
    nix::ioctl_read!(blkgetdiskseq, 0x12, 128, u64);
    nix::ioctl_read_bad!(blkroget, nix::request_code_none!(0x12, 94), c_int);
    nix::ioctl_read_bad!(blksszget, nix::request_code_none!(0x12, 104), c_int);
    nix::ioctl_read_bad!(blkpbszget, nix::request_code_none!(0x12, 123), c_uint);
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
    /// The size of a block device in bytes.
    size,
    blkgetsize64,
    u64
);
get!(
    /// A number that no other disk of this boot has had; a partition has its disk's.
    disk_sequence,
    blkgetdiskseq,
    u64
);
get!(
    /// Not zero for a device that cannot be written. (Opening a read-only loop device for writing
    /// succeeds.)
    read_only,
    blkroget,
    c_int
);
get!(
    /// The smallest unit that the device can be asked for.
    logical_block_size,
    blksszget,
    c_int
);
get!(
    /// The smallest unit that the device writes in one piece.
    physical_block_size,
    blkpbszget,
    libc::c_uint
);

/// Who else has a file open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Others {
    /// Nobody at all.
    None,
    /// Somebody, and nobody for writing.
    Readers,
    /// Somebody, for writing, or this very descriptor can write and it makes no difference.
    Writers,
    /// The file system has no leases.
    Unknown,
}

/// Who else has this file open?
#[expect(unsafe_code, reason = "nix has no safe wrapper for leases")]
pub(crate) fn others(file: BorrowedFd<'_>) -> io::Result<Others> {
    let lease = |kind: c_int| {
        // SAFETY: the call takes two integers and changes nothing but the lease.
        match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    for (kind, others) in [(libc::F_WRLCK, Others::None), (libc::F_RDLCK, Others::Readers)] {
        match lease(kind) {
            Ok(()) => return lease(libc::F_UNLCK).map(|()| others),
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(Others::Unknown),
            Err(e) => return Err(e),
        }
    }
    Ok(Others::Writers)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd};

    use super::*;

    #[test]
    fn another_open_of_the_file_is_seen() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(others(file.as_fd()).unwrap(), Others::None);
        let _reader = File::open(file.path()).unwrap();
        assert_eq!(others(file.as_fd()).unwrap(), Others::Writers);
    }

    #[test]
    fn a_reader_tells_readers_from_writers() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.into_temp_path();
        let reader = File::open(&path).unwrap();
        assert_eq!(others(reader.as_fd()).unwrap(), Others::None);
        let _other_reader = File::open(&path).unwrap();
        assert_eq!(others(reader.as_fd()).unwrap(), Others::Readers);
        let _writer = File::options().write(true).open(&path).unwrap();
        assert_eq!(others(reader.as_fd()).unwrap(), Others::Writers);
    }

    #[test]
    fn what_has_no_leases_does_not_tell() {
        assert_eq!(others(File::open("/").unwrap().as_fd()).unwrap(), Others::Unknown);
    }

    #[test]
    fn a_file_answers_no_block_request() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(size(file.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }
}
