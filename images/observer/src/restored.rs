//! Updates a guest that was restored from a file: sets the clock
//! ([`clock_settime(2)`](https://man7.org/linux/man-pages/man2/clock_settime.2.html)) and reseeds
//! the kernel's random number generator (`RNDADDENTROPY` and `RNDRESEEDCRNG` of
//! [`random(4)`](https://man7.org/linux/man-pages/man4/random.4.html)).
//!
//! All guests that are restored from one file have the same generator state, and would produce the
//! same "random" IDs and seeds. Kata does the same with guests that it starts from a template
//! (`SetGuestDateTime`, `ReseedRandomDev`).

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

/// Sets the realtime clock. The monotonic clock continues from its saved value.
pub(crate) fn set_clock(seconds: i64, nanoseconds: i64) -> io::Result<()> {
    Ok(clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds, nanoseconds))?)
}

/// Adds `seed` to the kernel's generator, credits it as entropy, and reseeds the generator with it.
pub(crate) fn reseed(seed: &[u8]) -> io::Result<()> {
    let generator = OpenOptions::new().write(true).open(GENERATOR)?;
    add_entropy(&generator, seed)?;
    reseed_generator(&generator)
}

#[expect(unsafe_code, reason = "nix has no wrapper for this ioctl")]
fn add_entropy(generator: &File, seed: &[u8]) -> io::Result<()> {
    let info = pool_info(seed)?;
    // SAFETY: the kernel reads two integers and then as many bytes as the second one says, which is
    // the rest of the vector.
    unsafe { rnd_add_entropy(generator.as_raw_fd(), info.as_ptr().cast()) }?;
    Ok(())
}

#[expect(unsafe_code, reason = "nix has no wrapper for this ioctl")]
fn reseed_generator(generator: &File) -> io::Result<()> {
    // SAFETY: this ioctl takes no argument.
    unsafe { rnd_reseed(generator.as_raw_fd()) }?;
    Ok(())
}

/// Encodes `struct rand_pool_info`: the number of bits of entropy, the number of bytes, the bytes.
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
    fn the_seed_is_preceded_by_its_size_in_bits_and_bytes() {
        let info = pool_info(b"seed").unwrap();
        assert_eq!(info[..4], 32_i32.to_ne_bytes());
        assert_eq!(info[4..8], 4_i32.to_ne_bytes());
        assert_eq!(&info[HEADER..], b"seed");
    }
}
