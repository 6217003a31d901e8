//! What a guest has to be told after it was restored from a file: the time
//! ([`clock_settime(2)`](https://man7.org/linux/man-pages/man2/clock_settime.2.html)) and new
//! random numbers (`RNDADDENTROPY` and `RNDRESEEDCRNG` of
//! [`random(4)`](https://man7.org/linux/man-pages/man4/random.4.html)).
//!
//! Every guest that is restored from one file has the same state of the kernel's generator, and
//! would give the same "random" ids and seeds. Kata does the same with guests that it starts from a
//! template (`SetGuestDateTime`, `ReseedRandomDev`).

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::AsRawFd as _,
};

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_settime},
};

const GENERATOR: &str = "/dev/urandom";

/// `RNDADDENTROPY` takes `struct rand_pool_info`: two integers, then the bytes.
const HEADER: usize = 8;

// `_IOW('R', 0x03, int[2])` and `_IO('R', 0x07)` of <linux/random.h>.
nix::ioctl_write_ptr!(rnd_add_entropy, b'R', 3, [libc::c_int; 2]);
nix::ioctl_none!(rnd_reseed, b'R', 7);

/// Sets the clock that people read; the monotonic one goes on where it stood.
pub(crate) fn set_clock(seconds: i64, nanoseconds: i64) -> io::Result<()> {
    Ok(clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds, nanoseconds))?)
}

/// Mixes `seed` into the kernel's generator, counts it as entropy, and has the generator begin anew
/// with it.
pub(crate) fn reseed(seed: &[u8]) -> io::Result<()> {
    let generator = OpenOptions::new().write(true).open(GENERATOR)?;
    add_entropy(&generator, seed)?;
    begin_anew(&generator)
}

#[expect(unsafe_code, reason = "nix has no wrapper for this ioctl")]
fn add_entropy(generator: &File, seed: &[u8]) -> io::Result<()> {
    let info = pool_info(seed)?;
    // SAFETY: the kernel reads two integers and as many bytes behind them as the second says, which
    // is the vector's rest.
    unsafe { rnd_add_entropy(generator.as_raw_fd(), info.as_ptr().cast()) }?;
    Ok(())
}

#[expect(unsafe_code, reason = "nix has no wrapper for this ioctl")]
fn begin_anew(generator: &File) -> io::Result<()> {
    // SAFETY: this ioctl takes no argument.
    unsafe { rnd_reseed(generator.as_raw_fd()) }?;
    Ok(())
}

/// `struct rand_pool_info`: how many bits of entropy, how many bytes, the bytes.
fn pool_info(seed: &[u8]) -> io::Result<Vec<u8>> {
    let size = i32::try_from(seed.len()).map_err(io::Error::other)?;
    let bits = size.checked_mul(8).ok_or_else(|| io::Error::other("too many bytes"))?;
    let mut info = Vec::with_capacity(HEADER + seed.len());
    info.extend_from_slice(&bits.to_ne_bytes());
    info.extend_from_slice(&size.to_ne_bytes());
    info.extend_from_slice(seed);
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_is_preceded_by_its_bits_and_bytes() {
        let info = pool_info(b"seed").unwrap();
        assert_eq!(info[..4], 32_i32.to_ne_bytes());
        assert_eq!(info[4..8], 4_i32.to_ne_bytes());
        assert_eq!(&info[HEADER..], b"seed");
    }
}
