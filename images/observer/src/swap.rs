//! The attack of a hostile container while a volume is attached: it exchanges two names as fast as
//! it can ([renameat2(2)](https://man7.org/linux/man-pages/man2/renameat2.2.html),
//! `RENAME_EXCHANGE`).
//!
//! The observer is mounted into the container and run as `observer swap DIRECTORY A B`.

use std::{fs::File, io, path::Path};

use nix::fcntl::{RenameFlags, renameat2};

/// The attack ends when a file of this name appears in the directory.
const STOP: &str = "stop";

/// Exchanges `first` and `second` in `directory` until the file `stop` appears, and returns the
/// number of exchanges.
///
/// # Errors
/// The directory does not exist, or an exchange fails.
pub(crate) fn swap(directory: &Path, first: &str, second: &str) -> io::Result<u64> {
    let open = File::open(directory)?;
    let mut exchanges = 0_u64;
    while !exchanges.is_multiple_of(64) || !directory.join(STOP).exists() {
        renameat2(&open, first, &open, second, RenameFlags::RENAME_EXCHANGE)?;
        exchanges += 1;
    }
    Ok(exchanges)
}

#[cfg(test)]
mod tests {
    use std::{fs, thread, time::Duration};

    use super::*;

    #[test]
    fn two_names_are_exchanged_until_the_file_appears() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a"), "a").unwrap();
        fs::create_dir(directory.path().join("b")).unwrap();
        let exchanges = thread::scope(|scope| {
            let running = scope.spawn(|| swap(directory.path(), "a", "b").unwrap());
            thread::sleep(Duration::from_millis(20));
            fs::write(directory.path().join(STOP), "").unwrap();
            running.join().unwrap()
        });
        assert!(exchanges > 0 && exchanges % 64 == 0, "{exchanges}");
        assert!(directory.path().join("a").is_file() && directory.path().join("b").is_dir());
        assert!(swap(directory.path(), "a", "none").is_ok(), "it stops before the first exchange");
    }
}
