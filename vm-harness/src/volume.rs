//! Volumes on the host for tests: raw images and loop devices with random contents.

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    ops::Range,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use sha2::{Digest as _, Sha256};
use tempfile::{NamedTempFile, TempPath};

/// A volume on the host. It is removed when the value is dropped.
#[derive(Debug)]
pub struct Volume {
    path: PathBuf,
    image: TempPath,
    is_loop: bool,
}

/// Options of a loop device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopOptions {
    /// Logical block size in bytes.
    pub sector: u32,
    /// Whether the kernel refuses writes.
    pub read_only: bool,
}

impl Default for LoopOptions {
    fn default() -> Self {
        Self { sector: 512, read_only: false }
    }
}

impl Volume {
    /// Makes a raw image of `size` random bytes.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn image(size: u64) -> Self {
        Self::over(random_file(size))
    }

    /// Makes a raw image of `size` zero bytes that takes no space.
    ///
    /// # Panics
    /// The file cannot be made.
    pub fn sparse(size: u64) -> Self {
        Self::over(sparse_file(size))
    }

    /// Makes a volume of a file of the caller.
    pub fn over(image: TempPath) -> Self {
        Self { path: image.to_path_buf(), image, is_loop: false }
    }

    /// Makes a loop device over a raw image of `size` random bytes.
    ///
    /// # Panics
    /// `losetup` fails; the message has its reason.
    pub fn loop_device(size: u64) -> Self {
        Self::loop_device_with(size, LoopOptions::default())
    }

    /// Makes a loop device with other options.
    ///
    /// # Panics
    /// As [`Volume::loop_device`].
    pub fn loop_device_with(size: u64, options: LoopOptions) -> Self {
        Self::loop_over(random_file(size), options)
    }

    /// Makes a loop device over a file of the caller.
    ///
    /// # Panics
    /// As [`Volume::loop_device`].
    pub fn loop_over(image: TempPath, options: LoopOptions) -> Self {
        let mut command = Command::new("losetup");
        command.args(["--find", "--show", "--sector-size", &options.sector.to_string()]);
        if options.read_only {
            command.arg("--read-only");
        }
        let output = command.arg(&image).output().expect("losetup is installed (ci/setup)");
        assert!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
        let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        Self { path, image, is_loop: true }
    }

    /// Returns the path for `--block-volume`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns [`Volume::path`] as text.
    pub fn name(&self) -> &str {
        self.path.to_str().expect("the paths of the harness are UTF-8")
    }

    /// Returns the path of the image file, also for a loop device.
    pub fn image_path(&self) -> &Path {
        &self.image
    }

    /// Returns the size in bytes.
    ///
    /// # Panics
    /// The file was removed.
    pub fn size(&self) -> u64 {
        fs::metadata(&self.image).expect("the volume's file exists").len()
    }

    /// Changes the size, as an operator does on the host. Added bytes are zero.
    ///
    /// # Panics
    /// The size cannot be changed.
    pub fn resize(&self, size: u64) {
        let file =
            fs::File::options().write(true).open(&self.image).expect("the host can open the image");
        file.set_len(size).expect("the host can change the image's length");
        if self.is_loop {
            let status = Command::new("losetup").arg("--set-capacity").arg(&self.path).status();
            assert!(status.is_ok_and(|status| status.success()), "losetup --set-capacity fails");
        }
    }

    /// Checks that the host can claim it: opens it with `O_EXCL`, and closes it.
    ///
    /// # Errors
    /// It is in use.
    pub fn check_claimable(&self) -> std::io::Result<()> {
        let mut options = fs::OpenOptions::new();
        options.read(true).custom_flags(libc::O_EXCL).open(&self.path).map(drop)
    }

    /// Reads bytes of the volume on the host, from the device.
    ///
    /// # Panics
    /// They cannot be read.
    pub fn bytes(&self, range: Range<u64>) -> Vec<u8> {
        let mut file = fs::File::open(&self.path).expect("the host can open the volume");
        file.seek(SeekFrom::Start(range.start)).expect("the host can seek in the volume");
        let mut bytes = vec![
            0;
            usize::try_from(range.end - range.start)
                .expect("a test's range fits in memory")
        ];
        file.read_exact(&mut bytes).expect("the host can read the volume");
        bytes
    }

    /// Writes bytes to the volume on the host.
    ///
    /// # Panics
    /// They cannot be written.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        let file = fs::File::options().write(true).open(&self.path);
        let file = file.expect("the host can open the volume");
        file.write_all_at(bytes, offset).expect("the host can write the volume");
    }

    /// Reads the whole volume on the host, and returns its SHA-256 in hexadecimal.
    ///
    /// # Panics
    /// It cannot be read.
    pub fn checksum(&self) -> String {
        let mut file = fs::File::open(&self.path).expect("the host can open the volume");
        let (mut hash, mut chunk) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            let length = file.read(&mut chunk).expect("the host can read the volume");
            if length == 0 {
                break;
            }
            hash.update(&chunk[..length]);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.is_loop {
            // If QEMU still has it open, the kernel detaches it at the last close.
            let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
        }
    }
}

/// Returns `length` random bytes.
pub fn random_bytes(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::fill(&mut bytes);
    bytes
}

/// Makes a file of `size` random bytes, and closes it: `ecr-runtime` refuses an image that a
/// process has open.
fn random_file(size: u64) -> TempPath {
    let mut file = new_file();
    let mut left = size;
    while left > 0 {
        let chunk = left.min(1 << 20);
        file.write_all(&random_bytes(usize::try_from(chunk).expect("a chunk fits in memory")))
            .expect("space for a volume");
        left -= chunk;
    }
    file.into_temp_path()
}

/// Makes a file of `size` zero bytes that takes no space, and closes it.
pub(crate) fn sparse_file(size: u64) -> TempPath {
    let file = new_file();
    file.as_file().set_len(size).expect("a temporary file can have any length");
    file.into_temp_path()
}

fn new_file() -> NamedTempFile {
    let mut name = tempfile::Builder::new();
    name.prefix("volume-").suffix(".img").tempfile().expect("a temporary file")
}
