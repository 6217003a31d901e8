//! Host volumes for tests: raw images and loop devices, filled with bytes that nobody can guess.

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
};

use rand::{RngCore as _, SeedableRng as _, rngs::SmallRng};
use sha2::{Digest as _, Sha256};
use tempfile::TempPath;

/// A volume on the host; removed when dropped.
#[derive(Debug)]
pub struct Volume {
    path: PathBuf,
    image: TempPath,
    is_loop: bool,
}

/// What a loop device is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopOptions {
    /// Logical block size in bytes.
    pub sector: u32,
    /// The kernel refuses writes.
    pub read_only: bool,
}

impl Default for LoopOptions {
    fn default() -> Self {
        Self { sector: 512, read_only: false }
    }
}

impl Volume {
    /// A raw image of `size` bytes, filled with random ones.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn image(size: u64) -> Self {
        let image = random_file(size);
        Self { path: image.to_path_buf(), image, is_loop: false }
    }

    /// A loop device over a raw image of `size` random bytes.
    ///
    /// # Panics
    /// The machine has no loop device to give; `losetup` says why.
    pub fn loop_device(size: u64) -> Self {
        Self::loop_device_with(size, LoopOptions::default())
    }

    /// A loop device with other options.
    ///
    /// # Panics
    /// As [`Volume::loop_device`].
    pub fn loop_device_with(size: u64, options: LoopOptions) -> Self {
        Self::loop_over(random_file(size), options)
    }

    /// A loop device over a file of the caller's.
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

    /// What to name in `--block-volume`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same as text.
    pub fn name(&self) -> &str {
        self.path.to_str().expect("the paths of the harness are UTF-8")
    }

    /// The file with the bytes.
    pub fn image_path(&self) -> &Path {
        &self.image
    }

    /// Size in bytes.
    ///
    /// # Panics
    /// The file is gone.
    pub fn size(&self) -> u64 {
        fs::metadata(&self.image).expect("the volume's file exists").len()
    }

    /// Gives it another size, as an operator does on the host; what is new is zeros.
    ///
    /// # Panics
    /// The host refuses.
    pub fn resize(&self, size: u64) {
        let file =
            fs::File::options().write(true).open(&self.image).expect("the host can open the image");
        file.set_len(size).expect("the host can change the image's length");
        if self.is_loop {
            let status = Command::new("losetup").arg("--set-capacity").arg(&self.path).status();
            assert!(status.is_ok_and(|status| status.success()), "losetup --set-capacity fails");
        }
    }

    /// Bytes of the volume as the host reads them from the device now.
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

    /// SHA-256 of the whole volume as the host reads it now, in hex.
    ///
    /// # Panics
    /// It cannot be read.
    pub fn checksum(&self) -> String {
        let mut file = fs::File::open(&self.path).expect("the host can open the volume");
        let mut hash = Sha256::new();
        std::io::copy(&mut file, &mut hash).expect("the host can read the volume");
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.is_loop {
            // QEMU may still hold it: the kernel then detaches it at its last close.
            let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
        }
    }
}

/// `length` bytes that nobody can guess.
pub fn random_bytes(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    SmallRng::from_os_rng().fill_bytes(&mut bytes);
    bytes
}

/// Closed again: `ecr-runtime` refuses an image that somebody has open.
fn random_file(size: u64) -> TempPath {
    let mut file = tempfile::Builder::new()
        .prefix("volume-")
        .suffix(".img")
        .tempfile()
        .expect("a temporary file");
    let mut left = size;
    while left > 0 {
        let chunk = left.min(1 << 20);
        file.write_all(&random_bytes(usize::try_from(chunk).expect("a chunk fits in memory")))
            .expect("space for a volume");
        left -= chunk;
    }
    file.into_temp_path()
}
