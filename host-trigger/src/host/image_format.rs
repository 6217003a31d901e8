//! The formats of disk images that are not raw, by what their files begin or end with. QEMU gets
//! every source as a raw disk and never probes it, so a guest would see the format's own structures
//! instead of the disk: mostly a mistake of who names the file.

use std::{fs::File, io, os::unix::fs::FileExt};

/// How much of the begin and of the end of a file is read.
const LENGTH: usize = 512;

/// Where a format has its signature.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// At this offset from the begin.
    Begin(usize),
    /// At the begin of the last 512 bytes.
    End,
}

/// A format, and how its files are recognised.
struct Format(&'static str, Place, &'static [u8]);

#[rustfmt::skip]
const FORMATS: &[Format] = &[
    // QEMU, docs/interop/qcow2.rst, and the version byte of it and of its predecessor.
    Format("qcow2", Place::Begin(0), b"QFI\xfb"),
    // QEMU, docs/interop/qed_spec.rst.
    Format("QED", Place::Begin(0), b"QED\0"),
    // VMware, Virtual Disk Format 5.0: sparse extents of hosted products and of ESX, descriptors.
    Format("VMDK", Place::Begin(0), b"KDMV"),
    Format("VMDK", Place::Begin(0), b"COWD"),
    Format("VMDK", Place::Begin(0), b"# Disk DescriptorFile"),
    // Microsoft, [MS-VHDX] 2.2.1, and Virtual Hard Disk Image Format Specification: the footer, of
    // which dynamic disks have a copy at the begin.
    Format("VHDX", Place::Begin(0), b"vhdxfile"),
    Format("VHD", Place::Begin(0), b"conectix"),
    Format("VHD", Place::End, b"conectix"),
    // QEMU, block/vdi.c (VDI_SIGNATURE, little-endian).
    Format("VDI", Place::Begin(0x40), b"\x7f\x10\xda\xbe"),
    // cryptsetup, LUKS1 and LUKS2 On-Disk Format Specification.
    Format("LUKS", Place::Begin(0), b"LUKS\xba\xbe"),
    // QEMU, docs/interop/parallels.rst.
    Format("Parallels", Place::Begin(0), b"WithoutFreeSpace"),
    Format("Parallels", Place::Begin(0), b"WithouFreSpacExt"),
];

/// Returns the format that the image `file` of `size` bytes seems to have; `None` for a raw one.
pub(super) fn of(file: &File, size: u64) -> io::Result<Option<&'static str>> {
    let begin = read(file, 0)?;
    let end = read(file, size.saturating_sub(LENGTH as u64))?;
    Ok(recognise(&begin, &end))
}

fn recognise(begin: &[u8], end: &[u8]) -> Option<&'static str> {
    let has = |&&Format(_, place, signature): &&Format| match place {
        Place::Begin(offset) => {
            begin.get(offset..).is_some_and(|bytes| bytes.starts_with(signature))
        }
        Place::End => end.starts_with(signature),
    };
    FORMATS.iter().find(has).map(|format| format.0)
}

/// Reads up to [`LENGTH`] bytes: no less unless the file ends.
fn read(file: &File, offset: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; LENGTH];
    let mut length = 0;
    while length < LENGTH {
        match file.read_at(&mut bytes[length..], offset + length as u64) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{io::Write, process::Command};

    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("qcow2", Some("qcow2"))]
    #[case("qed", Some("QED"))]
    #[case("vmdk", Some("VMDK"))]
    #[case("vhdx", Some("VHDX"))]
    #[case("vpc", Some("VHD"))]
    #[case("vpc -o subformat=fixed", Some("VHD"))]
    #[case("vdi", Some("VDI"))]
    #[case("parallels", Some("Parallels"))]
    #[case("raw", None)]
    fn an_image_that_qemu_makes_is_recognised(
        #[case] options: &str,
        #[case] expected: Option<&str>,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f"])
            .args(options.split(' '))
            .arg(&path)
            .arg("4M")
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let file = File::open(&path).unwrap();
        assert_eq!(of(&file, file.metadata().unwrap().len()).unwrap(), expected);
    }

    #[test]
    fn a_luks_header_and_a_vmdk_descriptor_are_recognised() {
        assert_eq!(recognise(b"LUKS\xba\xbe\0\x02", b""), Some("LUKS"));
        assert_eq!(recognise(b"# Disk DescriptorFile\nversion=1", b""), Some("VMDK"));
    }

    #[test]
    fn a_signature_elsewhere_is_none() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b" QFI\xfb").unwrap();
        file.set_len(1 << 20).unwrap();
        assert_eq!(of(&file, 1 << 20).unwrap(), None);
        assert_eq!(recognise(b"", b""), None);
    }
}
