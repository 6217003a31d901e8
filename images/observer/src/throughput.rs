//! Reads or writes a disk for a while, past the page cache: `observer throughput NODE read|write
//! BLOCK DEPTH MILLISECONDS` prints how many bytes it moved in a second.
//!
//! As many threads as DEPTH says have one request each under way, at random places
//! ([open(2)](https://man7.org/linux/man-pages/man2/open.2.html), `O_DIRECT`). The same program runs
//! in the container and outside of it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek as _, SeekFrom},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// The alignment that every disk accepts.
const ALIGNMENT: usize = 4096;

/// What to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) writes: bool,
    pub(crate) block: usize,
    pub(crate) depth: u64,
    pub(crate) time: Duration,
}

/// Returns the bytes that were moved in a second.
///
/// # Errors
/// The disk is smaller than a block, or a request fails.
pub(crate) fn run(node: &Path, load: Load) -> io::Result<u64> {
    let mut options = OpenOptions::new();
    options.read(true).write(load.writes).custom_flags(libc::O_DIRECT);
    let mut disk = options.open(node)?;
    let blocks = disk.seek(SeekFrom::End(0))? / load.block as u64;
    if blocks == 0 {
        return Err(io::Error::other(format!("{} is too small", node.display())));
    }
    // What started the program (crun, the agent) may still be busy: as long a time is not measured.
    let start = Instant::now() + load.time;
    let requests = thread::scope(|scope| {
        let disk = &disk;
        let threads: Vec<_> = (1..=load.depth)
            .map(|seed| scope.spawn(move || work(disk, blocks, seed, start, load)))
            .collect();
        threads.into_iter().try_fold(0, |sum, thread| {
            let requests = thread.join().map_err(|_| io::Error::other("a thread panicked"))??;
            Ok::<u64, io::Error>(sum + requests)
        })
    })?;
    let bytes = u128::from(requests) * load.block as u128;
    Ok(u64::try_from(bytes * 1_000_000 / start.elapsed().as_micros().max(1)).unwrap_or(u64::MAX))
}

/// Returns the number of requests that one thread began since `start` and completed.
fn work(disk: &File, blocks: u64, seed: u64, start: Instant, load: Load) -> io::Result<u64> {
    let mut memory = vec![0; load.block + ALIGNMENT];
    let offset = memory.as_ptr().align_offset(ALIGNMENT);
    let buffer = &mut memory[offset..offset + load.block];
    let (mut place, mut requests) = (seed, 0);
    // At least one, however long the start of the threads took.
    while requests == 0 || start.elapsed() < load.time {
        let begins = Instant::now();
        // A linear congruential generator: its high bits are random enough for a place.
        place =
            place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = (place >> 33) % blocks * load.block as u64;
        if load.writes {
            disk.write_all_at(buffer, at)?;
        } else {
            disk.read_exact_at(buffer, at)?;
        }
        if begins >= start {
            requests += 1;
        }
    }
    Ok(requests)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_moved_by_all_threads_until_the_time_is_over() {
        let file = tempfile::NamedTempFile::new_in(".").unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let time = Duration::from_millis(20);
        for writes in [false, true] {
            let load = Load { writes, block: 4096, depth: 4, time };
            let start = Instant::now();
            let rate = run(file.path(), load).unwrap();
            assert!(rate > 0 && start.elapsed() >= 2 * time, "{rate}");
        }
        let load = Load { writes: false, block: 2 << 20, depth: 1, time };
        assert!(run(file.path(), load).unwrap_err().to_string().contains("too small"));
    }
}
