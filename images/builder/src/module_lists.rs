//! Which kernel modules an image has, and the lists by which `init` loads them, in `/etc`.
//!
//! | list | loaded |
//! |---|---|
//! | `modules.list` | at every boot |
//! | `modules-on-demand/NAME` | at boot, if the kernel command line names it |
//! | `modules-on-request/NAME` | when the kernel asks for it |

use crate::{
    Error,
    cpio::Archive,
    kernel::Kernel,
    module::{Module, Modules},
};

/// Modules that are loaded at every boot, in this order, each after its dependencies.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_scsi", "sd_mod", "vmw_vsock_virtio_transport"];
/// Modules that are loaded only if the kernel command line lists them (`guest.modules=ata_piix`).
/// The image leaves out those that the kernel does not have (Debian's cloud kernels have no `ahci`,
/// no 9p and no virtio-fs), and has nothing to load for those that are built in (Debian 13's
/// virtio-fs). They provide other kinds of SCSI hosts, devices on top of a disk, file systems for a
/// container's paths, and vsock within the guest.
const ON_DEMAND: [&str; 12] = [
    "9p",
    "9pnet_virtio",
    "ahci",
    "ata_piix",
    "dm_mod",
    "fuse",
    "loop",
    "overlay",
    "raid1",
    "virtiofs",
    "vmw_pvscsi",
    "vsock_loopback",
];
/// Modules that the kernel loads when it needs them, because `init` is its modprobe: file systems,
/// and the character sets of FAT's names. Debian's kernels have ext4 built in.
const ON_REQUEST: [&str; 8] =
    ["btrfs", "erofs", "ext4", "nls_ascii", "nls_cp437", "squashfs", "vfat", "xfs"];

/// Adds the modules and their lists.
///
/// # Errors
/// The kernel lacks a module that every guest needs, or one cannot be read.
pub(crate) fn add(archive: &mut Archive, kernel: &Kernel) -> Result<(), Error> {
    let Some(directory) = &kernel.modules else {
        archive.file("etc/modules.list", 0o644, "");
        return Ok(());
    };
    let modules = Modules::of(&kernel.release, directory)?;
    module_list(archive, kernel, "etc/modules.list", modules.in_load_order(&MODULES)?);
    for name in ON_DEMAND.into_iter().filter(|name| modules.has(name)) {
        let list = format!("etc/modules-on-demand/{name}");
        module_list(archive, kernel, &list, modules.in_load_order(&[name])?);
    }
    for name in ON_REQUEST.into_iter().filter(|name| modules.has(name)) {
        let list = format!("etc/modules-on-request/{name}");
        let modules = modules.in_load_order(&[name])?;
        // The last one is the module itself; if it is built in, nothing is asked for.
        let aliases = modules.last().map(|module| module.aliases.clone()).unwrap_or_default();
        module_list(archive, kernel, &list, modules);
        for alias in aliases.iter().filter(|alias| alias.starts_with("fs-")) {
            archive.link(&format!("etc/modules-on-request/{alias}"), name);
        }
    }
    Ok(())
}

fn module_list(archive: &mut Archive, kernel: &Kernel, list: &str, modules: Vec<Module>) {
    let mut lines = String::new();
    for module in modules {
        let path = format!("/lib/modules/{}/{}", kernel.release, module.path);
        lines.push_str(&path);
        lines.push('\n');
        archive.file(&path, 0o644, module.contents);
    }
    archive.file(list, 0o644, lines);
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;

    #[test]
    fn module_that_is_built_in_can_be_named_on_the_command_line() {
        let directory = tempfile::tempdir().unwrap();
        let built_in = MODULES.iter().chain(&["virtiofs"]);
        let lines: String = built_in.map(|name| format!("kernel/{name}.ko\n")).collect();
        fs::create_dir(directory.path().join("kernel")).unwrap();
        fs::write(directory.path().join("modules.builtin"), lines).unwrap();
        let modules = Some(directory.path().to_owned());
        let kernel = Kernel { release: "6".to_owned(), image: PathBuf::new(), modules };
        let (mut built, mut expected) = (Archive::default(), Archive::default());
        add(&mut built, &kernel).unwrap();
        for list in ["etc/modules.list", "etc/modules-on-demand/virtiofs"] {
            expected.file(list, 0o644, "");
        }
        assert_eq!(built.to_bytes().unwrap(), expected.to_bytes().unwrap());
    }
}
