//! LVM on the host ([`lvm.conf(5)`](https://man7.org/linux/man-pages/man5/lvm.conf.5.html)). It
//! scans every block device, and activates a volume group that a guest wrote to a volume as soon as
//! the volume is free again. A devices file or a filter limits it to the host's own disks.

use std::{fs, path::Path};

use crate::output::findings::Finding;

/// Checks LVM's configuration below `root`.
pub(super) fn check(root: &Path) -> Finding {
    let installed = ["sbin/lvm", "usr/sbin/lvm"].iter().any(|file| root.join(file).exists());
    if !installed {
        return Finding::ok("lvm", "not installed");
    }
    let configuration = ["etc/lvm/lvm.conf", "etc/lvm/lvmlocal.conf"]
        .map(|file| fs::read(root.join(file)).unwrap_or_default())
        .map(|text| String::from_utf8_lossy(&text).into_owned())
        .join("\n");
    let devices_file = root.join("etc/lvm/devices/system.devices").exists();
    match () {
        () if devices_file && setting(&configuration, "use_devicesfile") != Some("0") => {
            Finding::ok("lvm", "uses only the disks in its devices file")
        }
        () if setting(&configuration, "global_filter").is_some_and(rejects) => {
            Finding::ok("lvm", "uses only what its global_filter accepts")
        }
        () if setting(&configuration, "event_activation") == Some("0") => Finding::warning(
            "lvm",
            "nothing keeps it away from volumes that a guest wrote to; with event_activation = 0 it activates them only when it is called",
            &REMEDY,
        ),
        () => Finding::warning(
            "lvm",
            "it may activate what a guest wrote to a volume: there is neither a devices file nor a global_filter",
            &REMEDY,
        ),
    }
}

const REMEDY: [&str; 4] = [
    "run `lvmdevices --adddev DISK` for each disk of the host, which creates a devices file; or in /etc/lvm/lvm.conf:",
    "devices {",
    "    global_filter = [ \"a|^/dev/DISK-OF-THE-HOST$|\", \"r|.*|\" ]",
    "}",
];

/// Returns the value of the last line that sets `name`.
fn setting<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let lines = text.lines().map(str::trim_start).filter(|line| !line.starts_with('#'));
    let mut values =
        lines.filter_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('='));
    values.next_back().map(str::trim)
}

/// Whether the filter rejects anything.
fn rejects(filter: &str) -> bool {
    ["\"r|", "\"r/", "\"r:"].iter().any(|start| filter.contains(start))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::output::findings::Status;

    #[rstest]
    #[case(&[], Status::Ok)]
    #[case(&[("usr/sbin/lvm", "")], Status::Warning)]
    #[case(&[("usr/sbin/lvm", ""), ("etc/lvm/lvm.conf", "devices {\n # global_filter = [ \"r|.*|\" ]\n}")], Status::Warning)]
    #[case(&[("usr/sbin/lvm", ""), ("etc/lvm/lvm.conf", "devices {\n\tglobal_filter = [ \"a|/dev/sda|\", \"r|.*|\" ]\n}")], Status::Ok)]
    #[case(&[("usr/sbin/lvm", ""), ("etc/lvm/lvm.conf", "global_filter=[ \"a|.*|\" ]")], Status::Warning)]
    #[case(&[("sbin/lvm", ""), ("etc/lvm/devices/system.devices", "")], Status::Ok)]
    #[case(&[("sbin/lvm", ""), ("etc/lvm/devices/system.devices", ""), ("etc/lvm/lvm.conf", "use_devicesfile = 0")], Status::Warning)]
    #[case(&[("sbin/lvm", ""), ("etc/lvm/lvm.conf", "event_activation = 0")], Status::Warning)]
    fn settings_that_keep_lvm_off_a_guests_disks_are_found(
        #[case] files: &[(&str, &str)],
        #[case] status: Status,
    ) {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        assert_eq!(check(root.path()).status, status);
    }
}
