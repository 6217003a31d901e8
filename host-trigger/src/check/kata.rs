//! Kata's configuration of its Go runtime, as far as a second QMP socket and the disks' controller
//! depend on it
//! ([configuration-qemu.toml](https://github.com/kata-containers/kata-containers/blob/main/src/runtime/config/configuration-qemu.toml.in)).
//! The shim holds QEMU's first socket for as long as the VM lives.

use std::{
    fs,
    path::{Path, PathBuf},
};

use toml_edit::DocumentMut;

use crate::{block_sysfs::names, checked::Finding};

/// Where the runtime looks, the first first; of kata-deploy's directories every file counts.
const FILES: [&str; 2] = [
    "etc/kata-containers/configuration.toml",
    "usr/share/defaults/kata-containers/configuration.toml",
];
const DEPLOYED: &str = "opt/kata/share/defaults/kata-containers";

/// The lines that make the socket.
pub(super) const LINES: [&str; 5] = [
    "in Kata's configuration (configuration-qemu.toml, Go runtime), and for new sandboxes only:",
    "[hypervisor.qemu]",
    "enable_debug = true",
    "extra_monitor_socket = \"qmp\"",
    "block_device_driver = \"virtio-scsi\"",
];

/// What a file says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Settings {
    debug: bool,
    monitor: String,
    driver: Option<String>,
}

/// Looks at every file below `root` that configures QEMU.
pub(super) fn look(root: &Path) -> Finding {
    let deployed = root.join(DEPLOYED);
    let mut deployed_names: Vec<_> =
        names(&deployed).filter(|name| name.ends_with(".toml")).collect();
    deployed_names.sort_unstable();
    // The runtime takes the first one that is there.
    let first = FILES.iter().map(|file| root.join(file)).find(|file| file.exists());
    let files = first.into_iter().chain(deployed_names.iter().map(|name| deployed.join(name)));
    let (mut fit, mut unfit, mut read) = (Vec::new(), Vec::new(), false);
    for file in files {
        let name = file.display().to_string();
        match settings(&file) {
            Ok(None) => continue,
            Ok(Some(settings)) => match missing(&settings) {
                missing if missing.is_empty() => fit.push(name),
                missing => unfit.push(format!("{name} has {}", missing.join(", "))),
            },
            Err(why) => unfit.push(format!("{name} cannot be read: {why}")),
        }
        read = true;
    }
    match (fit.is_empty(), unfit.is_empty()) {
        (false, true) => {
            Finding::ok("kata-configuration", format!("{} makes a QMP socket", fit.join(", ")))
        }
        _ if !read => {
            let found = "no configuration of Kata's Go runtime for QEMU: whether sandboxes have a free QMP socket is not known";
            Finding::warning("kata-configuration", found, &LINES)
        }
        _ => {
            let found = format!(
                "sandboxes may have no QMP socket but the one that the shim holds: {}",
                unfit.join("; ")
            );
            Finding::warning("kata-configuration", found, &LINES)
        }
    }
}

fn missing(settings: &Settings) -> Vec<&'static str> {
    let monitor = matches!(settings.monitor.as_str(), "qmp" | "qmp-pretty");
    let driver = settings.driver.as_deref().is_none_or(|driver| driver == "virtio-scsi");
    let all = [
        (settings.debug, "no enable_debug"),
        (monitor, "no extra_monitor_socket \"qmp\""),
        (driver, "another block_device_driver than \"virtio-scsi\""),
    ];
    all.into_iter().filter_map(|(there, what)| (!there).then_some(what)).collect()
}

/// What the file and its drop-ins say of QEMU; `None` if it is for another hypervisor.
fn settings(file: &Path) -> Result<Option<Settings>, String> {
    let drop_ins = file.with_file_name("config.d");
    let mut more: Vec<PathBuf> = names(&drop_ins)
        .filter(|name| name.ends_with(".toml"))
        .map(|name| drop_ins.join(name))
        .collect();
    more.sort_unstable();
    let mut settings = None;
    for (index, file) in std::iter::once(file.to_owned()).chain(more).enumerate() {
        let text = fs::read_to_string(&file).map_err(|e| e.to_string())?;
        let document =
            text.parse::<DocumentMut>().map_err(|_| format!("{} is no TOML", file.display()))?;
        let qemu = document.get("hypervisor").and_then(|hypervisor| hypervisor.get("qemu"));
        let Some(qemu) = qemu else { if index == 0 { return Ok(None) } else { continue } };
        let settings = settings.get_or_insert_with(Settings::default);
        if let Some(debug) = qemu.get("enable_debug").and_then(toml_edit::Item::as_bool) {
            settings.debug = debug;
        }
        if let Some(monitor) = qemu.get("extra_monitor_socket").and_then(toml_edit::Item::as_str) {
            settings.monitor = monitor.to_owned();
        }
        if let Some(driver) = qemu.get("block_device_driver").and_then(toml_edit::Item::as_str) {
            settings.driver = Some(driver.to_owned());
        }
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::checked::Status;

    fn with(files: &[(&str, &str)]) -> Finding {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        look(root.path())
    }

    const FIT: &str = "[hypervisor.qemu]\nenable_debug = true\nextra_monitor_socket = \"qmp\"\n";

    #[rstest]
    #[case(&[], Status::Warning, "no configuration")]
    #[case(&[(FILES[0], FIT)], Status::Ok, "makes a QMP socket")]
    #[case(&[(FILES[0], "[hypervisor.qemu]\n#enable_debug = true\n")], Status::Warning, "no enable_debug")]
    #[case(&[(FILES[0], "[hypervisor.qemu]\nenable_debug = true\nextra_monitor_socket = \"hmp\"")], Status::Warning, "no extra_monitor_socket")]
    #[case(&[(FILES[0], "[hypervisor.clh]\n")], Status::Warning, "no configuration")]
    #[case(&[(FILES[0], "[hypervisor")], Status::Warning, "is no TOML")]
    #[case(&[(FILES[0], FIT), (FILES[1], "[hypervisor.qemu]\n")], Status::Ok, "etc/kata")]
    #[case(&[(FILES[0], "[hypervisor.qemu]\nenable_debug = true\n"), ("etc/kata-containers/config.d/9.toml", FIT)], Status::Ok, "makes")]
    #[case(&[("opt/kata/share/defaults/kata-containers/configuration-qemu.toml", FIT),
             ("opt/kata/share/defaults/kata-containers/configuration-clh.toml", "[hypervisor.clh]")], Status::Ok, "configuration-qemu")]
    #[case(&[(FILES[1], "[hypervisor.qemu]\nenable_debug = true\nextra_monitor_socket = \"qmp\"\nblock_device_driver = \"virtio-blk\"")],
        Status::Warning, "block_device_driver")]
    fn the_settings_that_matter_are_found(
        #[case] files: &[(&str, &str)],
        #[case] status: Status,
        #[case] found: &str,
    ) {
        let finding = with(files);
        assert_eq!(finding.status, status, "{finding:?}");
        assert!(finding.found.contains(found), "{finding:?}");
        assert_eq!(finding.way_out.is_empty(), status == Status::Ok, "{finding:?}");
    }
}
