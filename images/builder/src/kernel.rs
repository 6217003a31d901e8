//! The guest's kernel: an unpacked kernel package (`dpkg -x`) with the `vmlinux` inside its
//! `vmlinuz`, or a single file with everything that the guest needs built in, as Kata's kernels
//! are.
//!
//! A `vmlinuz` is a bzImage: a setup part, whose header ([boot
//! protocol](https://docs.kernel.org/arch/x86/boot.html), `payload_offset`, `payload_length`) gives
//! the position of the compressed kernel. QEMU boots the ELF file directly (PVH). That saves the
//! guest the decompression: one or two seconds of every boot without KVM.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use crate::{Error, error::at};

const ELF: &[u8] = b"\x7fELF";

/// A kernel for the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The release, such as `6.1.0-50-cloud-amd64`; for a single file, its name.
    pub release: String,
    /// A bzImage, or a `vmlinux`.
    pub image: PathBuf,
    /// `lib/modules/RELEASE`; `None` if everything is built in.
    pub modules: Option<PathBuf>,
}

impl Kernel {
    /// Finds the kernel below the directory `path`; a `path` to a file is the kernel itself.
    ///
    /// # Errors
    /// There is none, there are several, or its modules are missing.
    pub fn find(path: &Path) -> Result<Self, Error> {
        if fs::metadata(path).map_err(at(path))?.is_file() {
            let release = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Ok(Self { release, image: path.to_owned(), modules: None });
        }
        Self::in_package(path)
    }

    fn in_package(directory: &Path) -> Result<Self, Error> {
        let mut found = in_boot(&directory.join("boot"))?;
        // Debian 14's packages have the kernel beside its modules.
        found.extend(beside_modules(&directory.join("usr/lib/modules"))?);
        if found.len() != 1 {
            return Err(Error::Kernel { path: directory.to_owned(), found: found.len() });
        }
        let (release, image) = found.remove(0);
        // Since the merge of /usr, Debian's packages have the modules in usr/lib.
        let modules = [directory.join("lib/modules"), directory.join("usr/lib/modules")]
            .map(|parent| parent.join(&release))
            .into_iter()
            .find(|path| path.is_dir())
            .ok_or_else(|| Error::NoModule {
                release: release.clone(),
                module: "directory".into(),
            })?;
        Ok(Self { release, image, modules: Some(modules) })
    }

    /// Returns the kernel as an ELF file, decompressed if necessary.
    ///
    /// # Errors
    /// The file is not a kernel, or its compression is none of lz4, zstd and xz.
    pub fn vmlinux(&self) -> Result<Vec<u8>, Error> {
        let image = fs::read(&self.image).map_err(at(&self.image))?;
        if image.starts_with(ELF) {
            return Ok(image);
        }
        let payload =
            payload(&image).map_err(|what| Error::NotAKernel { path: self.image.clone(), what })?;
        let vmlinux = decompress(payload)
            .map_err(|what| Error::Decompress { path: self.image.clone(), what })?;
        if !vmlinux.starts_with(ELF) {
            return Err(Error::NotAKernel {
                path: self.image.clone(),
                what: "its payload is not an ELF file",
            });
        }
        Ok(vmlinux)
    }
}

/// Returns the release and path of each `boot/vmlinuz-RELEASE`.
fn in_boot(boot: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let kernels = entries(boot)?.into_iter().filter_map(|(name, path)| {
        let release = name.strip_prefix("vmlinuz-")?;
        Some((release.to_owned(), path))
    });
    Ok(kernels.collect())
}

/// Returns the release and path of each `RELEASE/vmlinuz` in a directory of modules.
fn beside_modules(modules: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let kernels =
        entries(modules)?.into_iter().map(|(release, path)| (release, path.join("vmlinuz")));
    Ok(kernels.filter(|(_, vmlinuz)| vmlinuz.exists()).collect())
}

/// Returns the names and paths in a directory; none if the directory does not exist.
fn entries(directory: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(at(directory))?,
    };
    let named = entries.map(|entry| {
        let entry = entry.map_err(at(directory))?;
        Ok((entry.file_name().to_string_lossy().into_owned(), entry.path()))
    });
    named.collect()
}

/// Returns the compressed kernel in a bzImage.
fn payload(image: &[u8]) -> Result<&[u8], &'static str> {
    let word = |at: usize| {
        let bytes = image.get(at..at + 4).ok_or("too short")?;
        Ok::<_, &str>(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    };
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err("no HdrS header");
    }
    // A count of 0 means 4, for historical reasons. The count excludes the boot sector.
    let setup_sectors = match image[0x1f1] {
        0 => 4,
        count => usize::from(count),
    };
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    image.get(start..start + word(0x24c)?).ok_or("the payload reaches beyond the file")
}

/// Decompresses a payload: the compressed stream, then four bytes with the decompressed size.
fn decompress(payload: &[u8]) -> Result<Vec<u8>, String> {
    let (stream, size) = payload.split_last_chunk::<4>().ok_or("no payload")?;
    let size = u32::from_le_bytes(*size) as usize;
    let contents = match stream {
        [0x02, 0x21, 0x4c, 0x18, blocks @ ..] => lz4_legacy(blocks, size)?,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => zstd(stream)?,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => xz(stream)?,
        _ => return Err("its compression is none of lz4, zstd and xz".into()),
    };
    if contents.len() != size {
        return Err(format!("decompressed to {} bytes instead of {size}", contents.len()));
    }
    Ok(contents)
}

/// Decompresses lz4's legacy frame format: blocks of 8 MiB, each preceded by its compressed size.
fn lz4_legacy(mut blocks: &[u8], size: usize) -> Result<Vec<u8>, String> {
    const BLOCK: usize = 8 << 20;
    let mut contents = Vec::with_capacity(size);
    while let Some((length, rest)) = blocks.split_first_chunk::<4>() {
        let (block, rest) = rest
            .split_at_checked(u32::from_le_bytes(*length) as usize)
            .ok_or("an lz4 block reaches beyond the end")?;
        let start = contents.len();
        contents.resize(start + BLOCK.min(size.saturating_sub(start)), 0);
        let length = lz4_flex::block::decompress_into(block, &mut contents[start..])
            .map_err(|e| e.to_string())?;
        contents.truncate(start + length);
        blocks = rest;
    }
    Ok(contents)
}

/// Decompresses an xz stream, including its filters for machine code.
pub(crate) fn xz(stream: &[u8]) -> Result<Vec<u8>, String> {
    let mut contents = Vec::new();
    lzma_rust2::XzReader::new(stream, false)
        .read_to_end(&mut contents)
        .map_err(|error| error.to_string())?;
    Ok(contents)
}

/// Decompresses a zstd stream.
pub(crate) fn zstd(stream: &[u8]) -> Result<Vec<u8>, String> {
    let mut contents = Vec::new();
    let mut decoder =
        ruzstd::decoding::StreamingDecoder::new(stream).map_err(|error| error.to_string())?;
    decoder.read_to_end(&mut contents).map_err(|error| error.to_string())?;
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage with one setup sector, `gap` bytes before the payload, and some bytes after it.
    fn image(payload: &[u8], gap: usize) -> Vec<u8> {
        let mut image = vec![0; 1024 + gap];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&(gap as u32).to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image.extend_from_slice(b"code");
        image
    }

    /// An lz4 block of literals only: a token, the rest of the length in steps of 255, the bytes.
    fn lz4_literals(bytes: &[u8]) -> Vec<u8> {
        assert!(bytes.len() >= 15);
        let mut block = vec![0xf0];
        let mut rest = bytes.len() - 15;
        while rest >= 255 {
            block.push(255);
            rest -= 255;
        }
        block.push(rest as u8);
        block.extend_from_slice(bytes);
        block
    }

    fn legacy_payload(parts: &[&[u8]], size: u32) -> Vec<u8> {
        let mut payload = vec![0x02, 0x21, 0x4c, 0x18];
        for part in parts {
            let block = lz4_literals(part);
            payload.extend_from_slice(&(block.len() as u32).to_le_bytes());
            payload.extend_from_slice(&block);
        }
        payload.extend_from_slice(&size.to_le_bytes());
        payload
    }

    #[test]
    fn a_single_uncompressed_kernel_file_is_accepted() {
        let file = tempfile::NamedTempFile::with_prefix("vmlinux-").unwrap();
        fs::write(file.path(), b"\x7fELF and the rest").unwrap();
        let kernel = Kernel::find(file.path()).unwrap();
        assert!(kernel.release.starts_with("vmlinux-") && kernel.modules.is_none(), "{kernel:?}");
        assert_eq!(kernel.vmlinux().unwrap(), b"\x7fELF and the rest");
        fs::write(file.path(), image(b"PAYLOAD", 7)).unwrap();
        let error = kernel.vmlinux().unwrap_err().to_string();
        assert!(error.contains("cannot decompress"), "{error}");
    }

    #[test]
    fn the_payload_is_found_by_the_header() {
        assert_eq!(payload(&image(b"PAYLOAD", 7)).unwrap(), b"PAYLOAD");
        let mut short = image(b"PAYLOAD", 0);
        short.truncate(1026);
        assert!(payload(&short).unwrap_err().contains("beyond the file"));
        assert!(payload(b"\x7fELF").unwrap_err().contains("HdrS"));
    }

    #[test]
    fn legacy_lz4_may_have_several_blocks_and_its_size_is_checked() {
        let (one, two) = ([b'a'; 300], [b'b'; 20]);
        let contents = decompress(&legacy_payload(&[&one, &two], 320)).unwrap();
        assert_eq!(contents, [one.as_slice(), two.as_slice()].concat());
        assert!(
            decompress(&legacy_payload(&[&one, &two], 321)).unwrap_err().contains("instead of 321")
        );
    }

    #[test]
    fn an_unknown_compression_is_an_error() {
        assert!(
            decompress(b"\x1f\x8b gzip is not among them")
                .unwrap_err()
                .contains("none of lz4, zstd and xz")
        );
    }

    #[test]
    fn a_kernel_may_be_beside_its_modules() {
        let directory = tempfile::tempdir().unwrap();
        let modules = directory.path().join("usr/lib/modules/7.2");
        fs::create_dir_all(&modules).unwrap();
        fs::write(modules.join("vmlinuz"), "").unwrap();
        let kernel = Kernel::find(directory.path()).unwrap();
        assert_eq!((kernel.release.as_str(), &kernel.image), ("7.2", &modules.join("vmlinuz")));
        assert_eq!(kernel.modules, Some(modules));
    }

    #[test]
    fn a_directory_with_two_kernels_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("boot")).unwrap();
        assert!(matches!(Kernel::find(directory.path()), Err(Error::Kernel { found: 0, .. })));
        for release in ["6.1", "6.12"] {
            fs::write(directory.path().join(format!("boot/vmlinuz-{release}")), "").unwrap();
        }
        assert!(matches!(Kernel::find(directory.path()), Err(Error::Kernel { found: 2, .. })));
    }
}
