//! LVM on the host ([`lvm.conf(5)`](https://man7.org/linux/man-pages/man5/lvm.conf.5.html)): it
//! looks at every block device, and would activate a volume group that a guest wrote onto a volume,
//! as soon as the volume is free again. A devices file or a filter keeps it to the host's own
//! disks.

use std::{fs, path::Path};

use crate::checked::Finding;

/// Looks below `root`.
pub(super) fn look(root: &Path) -> Finding {
    let installed = ["sbin/lvm", "usr/sbin/lvm"].iter().any(|file| root.join(file).exists());
    if !installed {
        return Finding::ok("lvm", "not installed");
    }
    let configuration = ["etc/lvm/lvm.conf", "etc/lvm/lvmlocal.conf"]
        .map(|file| fs::read_to_string(root.join(file)).unwrap_or_default())
        .join("\n");
    let devices_file = root.join("etc/lvm/devices/system.devices").exists();
    match () {
        () if devices_file && setting(&configuration, "use_devicesfile") != Some("0") => {
            Finding::ok("lvm", "uses the disks of its devices file alone")
        }
        () if setting(&configuration, "global_filter").is_some_and(rejects) => {
            Finding::ok("lvm", "uses what its global_filter accepts alone")
        }
        () if setting(&configuration, "event_activation") == Some("0") => Finding::warning(
            "lvm",
            "nothing keeps it from volumes that a guest has written; event_activation = 0 leaves that to whoever calls it",
            &WAY_OUT,
        ),
        () => Finding::warning(
            "lvm",
            "it may activate what a guest wrote onto a volume: there is neither a devices file nor a global_filter",
            &WAY_OUT,
        ),
    }
}

const WAY_OUT: [&str; 4] = [
    "`lvmdevices --adddev DISK` for each disk of the host makes a devices file; or in /etc/lvm/lvm.conf:",
    "devices {",
    "    global_filter = [ \"a|^/dev/DISK-OF-THE-HOST$|\", \"r|.*|\" ]",
    "}",
];

/// The value of the last line that sets `name`.
fn setting<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let lines = text.lines().map(str::trim_start).filter(|line| !line.starts_with('#'));
    let mut values =
        lines.filter_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('='));
    values.next_back().map(str::trim)
}

fn rejects(filter: &str) -> bool {
    ["\"r|", "\"r/", "\"r:"].iter().any(|start| filter.contains(start))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::checked::Status;

    #[rstest]
    #[case(&[], Status::Ok)]
    #[case(&[("usr/sbin/lvm", "")], Status::Warning)]
    #[case(&[("usr/sbin/lvm", ""), ("etc/lvm/lvm.conf", "devices {\n # global_filter = [ \"r|.*|\" ]\n}")], Status::Warning)]
    #[case(&[("usr/sbin/lvm", ""), ("etc/lvm/lvm.conf", "devices {\n\tglobal_filter = [ \"a|/dev/sda|\", \"r|.*|\" ]\n}")], Status::Ok)]
    #[case(&[("usr/sbin/lvm", ""), ("etc/lvm/lvm.conf", "global_filter=[ \"a|.*|\" ]")], Status::Warning)]
    #[case(&[("sbin/lvm", ""), ("etc/lvm/devices/system.devices", "")], Status::Ok)]
    #[case(&[("sbin/lvm", ""), ("etc/lvm/devices/system.devices", ""), ("etc/lvm/lvm.conf", "use_devicesfile = 0")], Status::Warning)]
    #[case(&[("sbin/lvm", ""), ("etc/lvm/lvm.conf", "event_activation = 0")], Status::Warning)]
    fn what_keeps_it_from_a_guests_disks_is_found(
        #[case] files: &[(&str, &str)],
        #[case] status: Status,
    ) {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        assert_eq!(look(root.path()).status, status);
    }
}
