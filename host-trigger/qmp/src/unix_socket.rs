//! Connecting to a [unix socket](https://man7.org/linux/man-pages/man7/unix.7.html) by a path of
//! any length.
//!
//! A socket's address holds 107 bytes of path. Kata's IDs have 64 characters, so a path in a deep
//! run directory is longer. The directory is then named by its descriptor.

use std::{io, os::fd::AsRawFd, os::unix::ffi::OsStrExt, os::unix::fs::OpenOptionsExt, path::Path};

use tokio::net::UnixStream;

/// The length of `sun_path` without its final NUL.
const MAX_PATH_LENGTH: usize = 107;

/// Connects to the socket at `path`.
///
/// # Errors
/// As [`connect(2)`](https://man7.org/linux/man-pages/man2/connect.2.html); `EAGAIN` if the
/// listener's queue is full.
pub async fn connect(path: &Path) -> io::Result<UnixStream> {
    if path.as_os_str().as_bytes().len() <= MAX_PATH_LENGTH {
        return UnixStream::connect(path).await;
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC)
        .open(parent)?;
    UnixStream::connect(
        Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name),
    )
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_with_a_path_beyond_the_limit_is_reached() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("d".repeat(200));
        std::fs::create_dir(&deep).unwrap();
        let directory = std::fs::File::open(&deep).unwrap();
        let short = format!("/proc/self/fd/{}/s", directory.as_raw_fd());
        let _listener = std::os::unix::net::UnixListener::bind(short).unwrap();
        connect(&deep.join("s")).await.unwrap();
    }
}
