//! Sources on the host: raw images and loop devices over them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// A raw image.
pub struct Image(tempfile::TempPath);

impl Image {
    pub fn of(size: u64) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        Self(file.into_temp_path())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn size(&self) -> u64 {
        std::fs::metadata(&self.0).unwrap().len()
    }

    /// Changes its size without QEMU.
    pub fn resize(&self, size: u64) {
        std::fs::OpenOptions::new().write(true).open(&self.0).unwrap().set_len(size).unwrap();
    }
}

/// Attaches a loop device to `backing`.
fn attach(backing: &Path, options: &[&str]) -> PathBuf {
    let out = Command::new("losetup")
        .args(["--find", "--show"])
        .args(options)
        .arg(backing)
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    String::from_utf8(out.stdout).unwrap().trim_end().into()
}

/// A loop device. It is detached when it is dropped.
pub struct Loop {
    device: PathBuf,
    image: Option<Image>,
}

impl Loop {
    pub fn of(size: u64) -> Self {
        Self::with(size, &[])
    }

    pub fn with(size: u64, options: &[&str]) -> Self {
        let image = Image::of(size);
        Self { device: attach(image.path(), options), image: Some(image) }
    }

    /// Makes a loop device over another device.
    pub fn over(device: &Path) -> Self {
        Self::over_with(device, &[])
    }

    /// Takes over an existing loop device.
    pub fn at(device: PathBuf) -> Self {
        Self { device, image: None }
    }

    /// Makes a loop device over another device or an image, with options of `losetup`.
    pub fn over_with(backing: &Path, options: &[&str]) -> Self {
        Self::at(attach(backing, options))
    }

    /// Makes a loop device with two partitions of 1 MiB each. They are added by `addpart`, because
    /// not every kernel can read partition tables.
    pub fn partitioned(size: u64) -> Self {
        let disk = Self::with(size, &["--partscan"]);
        for (number, first) in [("1", "2048"), ("2", "4096")] {
            let added =
                Command::new("addpart").arg(disk.path()).args([number, first, "2048"]).status();
            assert!(added.is_ok_and(|status| status.success()), "addpart failed");
        }
        disk
    }

    fn image_of(&self) -> &Image {
        self.image.as_ref().expect("the loop device is over an image")
    }

    /// Returns the path of the image.
    pub fn image(&self) -> &Path {
        self.image_of().path()
    }

    pub fn path(&self) -> &Path {
        &self.device
    }

    /// Changes its size, as an operator does.
    pub fn resize(&self, size: u64) {
        self.image_of().resize(size);
        let resized =
            Command::new("losetup").arg("--set-capacity").arg(&self.device).status().unwrap();
        assert!(resized.success());
    }

    /// Whether a process has claimed it.
    pub fn is_claimed(&self) -> bool {
        use std::os::unix::fs::OpenOptionsExt;
        let open =
            std::fs::OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&self.device);
        match open {
            Ok(_) => false,
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::EBUSY));
                true
            }
        }
    }

    /// Detaches it and waits until it is detached. While a process has it open, as every hot-plug
    /// does for a moment, the kernel defers the detach to the last close.
    pub fn detach(self) {
        let name = self.device.file_name().unwrap().to_owned();
        drop(self);
        let bound = Path::new("/sys/block").join(name).join("loop");
        let deadline = Instant::now() + Duration::from_secs(10);
        while bound.exists() {
            assert!(Instant::now() < deadline, "{} is still there", bound.display());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}

/// A file system of 8 KiB, unmounted when this is dropped.
pub struct Small(PathBuf);

impl Small {
    pub fn mount(at: PathBuf) -> Self {
        fs::create_dir(&at).unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=8k", "tmpfs"])
            .arg(&at)
            .status();
        assert!(mounted.unwrap().success());
        Self(at)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}
