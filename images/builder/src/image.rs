//! The three files of an image: `vmlinux`, `initramfs.cpio`, and `image.json`, which describes what
//! they were built from.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    Error,
    contents::{self, Programs},
    error::at,
    kernel::Kernel,
};

/// Name of the file with the [`Image`].
pub const DESCRIPTION: &str = "image.json";
/// Name of the kernel file.
pub const VMLINUX: &str = "vmlinux";
/// Name of the initramfs file.
pub const INITRAMFS: &str = "initramfs.cpio";

/// The host's files that an image is built from. The image of another agent uses the same recipe
/// with that agent in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// An unpacked kernel package, or a kernel that needs no modules.
    pub kernel: PathBuf,
    /// All other files.
    pub programs: Programs,
}

/// The description of an image: the contents of `image.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The files that it was built from; absolute paths.
    pub recipe: Recipe,
    /// The kernel release.
    pub kernel: String,
    /// SHA-256 of the package's `vmlinuz`, from which `vmlinux` is extracted.
    pub vmlinuz_sha256: String,
    /// SHA-256 of `initramfs.cpio`.
    pub initramfs_sha256: String,
    /// File name of the agent on the host.
    pub agent: String,
    /// SHA-256 of the agent.
    pub agent_sha256: String,
    /// Size of `vmlinux` in bytes.
    pub vmlinux_bytes: u64,
    /// Size of `initramfs.cpio` in bytes.
    pub initramfs_bytes: u64,
}

/// Builds the image in `directory`. Files that are up to date are not written again.
///
/// Returns whether anything was written.
///
/// # Errors
/// An input is missing or has the wrong type, or a file cannot be written.
pub fn build(recipe: &Recipe, directory: &Path) -> Result<bool, Error> {
    fs::create_dir_all(directory).map_err(at(directory))?;
    let Recipe { kernel, programs } = recipe;
    let kernel = Kernel::find(kernel)?;
    let initramfs = contents::initramfs(&kernel, programs)?.to_bytes()?;
    let vmlinuz = fs::read(&kernel.image).map_err(at(&kernel.image))?;
    let agent = fs::read(&programs.agent).map_err(at(&programs.agent))?;
    let mut image = Image {
        recipe: recipe.clone(),
        kernel: kernel.release.clone(),
        vmlinuz_sha256: sha256(&vmlinuz),
        initramfs_sha256: sha256(&initramfs),
        agent: programs.agent.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        agent_sha256: sha256(&agent),
        vmlinux_bytes: 0,
        initramfs_bytes: initramfs.len() as u64,
    };

    let described = read(directory);
    let size = |name: &str| fs::metadata(directory.join(name)).map(|metadata| metadata.len()).ok();
    let kernel_is_current = described.as_ref().is_some_and(|old| {
        old.vmlinuz_sha256 == image.vmlinuz_sha256 && size(VMLINUX) == Some(old.vmlinux_bytes)
    });
    let initramfs_is_current = described.as_ref().is_some_and(|old| {
        old.initramfs_sha256 == image.initramfs_sha256
            && size(INITRAMFS) == Some(old.initramfs_bytes)
    });
    if let Some(old) = described.as_ref().filter(|_| kernel_is_current) {
        image.vmlinux_bytes = old.vmlinux_bytes;
    } else {
        let vmlinux = kernel.vmlinux()?;
        image.vmlinux_bytes = vmlinux.len() as u64;
        replace(&directory.join(VMLINUX), &vmlinux)?;
    }
    if !initramfs_is_current {
        replace(&directory.join(INITRAMFS), &initramfs)?;
    }
    if described.as_ref() == Some(&image) && kernel_is_current && initramfs_is_current {
        return Ok(false);
    }
    // Last, because it states that the other two files are complete.
    let mut text = serde_json::to_vec_pretty(&image).expect("strings and numbers are always JSON");
    text.push(b'\n');
    replace(&directory.join(DESCRIPTION), &text)?;
    Ok(true)
}

/// Reads the description of the image in `directory`. Returns `None` if there is no image, or one
/// of another version of this program.
#[must_use]
pub fn read(directory: &Path) -> Option<Image> {
    serde_json::from_slice(&fs::read(directory.join(DESCRIPTION)).ok()?).ok()
}

/// Replaces a file atomically, so that a VM that boots from it meanwhile reads either the old file
/// or the new one.
fn replace(path: &Path, contents: &[u8]) -> Result<(), Error> {
    let mut new: PathBuf = path.to_owned();
    new.add_extension("new");
    fs::write(&new, contents).map_err(at(&new))?;
    fs::rename(&new, path).map_err(at(path))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_lower_case_hexadecimal() {
        assert_eq!(sha256(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn a_description_of_another_version_is_ignored() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()), None);
        fs::write(directory.path().join(DESCRIPTION), r#"{"kernel":"6.1"}"#).unwrap();
        assert_eq!(read(directory.path()), None);
    }

    #[test]
    fn a_file_is_replaced_without_a_temporary_file_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(INITRAMFS);
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
