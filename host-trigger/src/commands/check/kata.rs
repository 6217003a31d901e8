//! The configuration of Kata's Go runtime: the settings for a second QMP socket and the disks'
//! controller
//! ([configuration-qemu.toml](https://github.com/kata-containers/kata-containers/blob/main/src/runtime/config/configuration-qemu.toml.in)).
//! The shim holds QEMU's first QMP socket for the lifetime of the VM.

use std::{
    fs,
    path::{Path, PathBuf},
};

use toml_edit::DocumentMut;

use crate::{host::kernel_text::entries, output::findings::Finding};

/// The files that the runtime tries, in this order. In kata-deploy's directory ([`DEPLOYED`]) every
/// file is used.
const FILES: [&str; 2] = [
    "etc/kata-containers/configuration.toml",
    "usr/share/defaults/kata-containers/configuration.toml",
];
const DEPLOYED: &str = "opt/kata/share/defaults/kata-containers";

/// The lines that enable the socket.
pub(super) const LINES: [&str; 5] = [
    "in Kata's configuration (configuration-qemu.toml, Go runtime), for new sandboxes only:",
    "[hypervisor.qemu]",
    "enable_debug = true",
    "extra_monitor_socket = \"qmp\"",
    "block_device_driver = \"virtio-scsi\"",
];

/// The settings in one file and its drop-ins.
#[derive(Debug, Default, PartialEq, Eq)]
struct Settings {
    debug: bool,
    monitor: String,
    driver: Option<String>,
}

/// Checks every file below `root` that configures QEMU.
pub(super) fn check(root: &Path) -> Finding {
    let deployed = root.join(DEPLOYED);
    let deployed = toml_files(&deployed);
    // The runtime uses the first one that exists.
    let first = FILES.iter().map(|file| root.join(file)).find(|file| file.exists());
    let files = first.into_iter().chain(deployed);
    let (mut suitable, mut unsuitable, mut read) = (Vec::new(), Vec::new(), false);
    for file in files {
        let name = file.display().to_string();
        match settings(&file) {
            Ok(None) => continue,
            Ok(Some(settings)) => match missing(&settings) {
                missing if missing.is_empty() => suitable.push(name),
                missing => unsuitable.push(format!("{name} has {}", missing.join(", "))),
            },
            Err(why) => unsuitable.push(format!("{name} cannot be read: {why}")),
        }
        read = true;
    }
    match (suitable.is_empty(), unsuitable.is_empty()) {
        (false, true) => Finding::ok(
            "kata_configuration",
            format!("{} enables a QMP socket", suitable.join(", ")),
        ),
        _ if !read => {
            let message = "no configuration of Kata's Go runtime for QEMU: it is not known whether sandboxes have a free QMP socket";
            Finding::warning("kata_configuration", message, &LINES)
        }
        _ => {
            let message = format!(
                "sandboxes may have no other QMP socket than the one that the shim holds: {}",
                unsuitable.join("; ")
            );
            Finding::warning("kata_configuration", message, &LINES)
        }
    }
}

/// Returns what keeps the settings from enabling a second socket.
fn missing(settings: &Settings) -> Vec<&'static str> {
    let monitor = matches!(settings.monitor.as_str(), "qmp" | "qmp-pretty");
    let driver = settings.driver.as_deref().is_none_or(|driver| driver == "virtio-scsi");
    let all = [
        (settings.debug, "no enable_debug"),
        (monitor, "no extra_monitor_socket \"qmp\""),
        (driver, "a block_device_driver other than \"virtio-scsi\""),
    ];
    all.into_iter().filter_map(|(is_set, what)| (!is_set).then_some(what)).collect()
}

/// Returns the files `*.toml` in `directory` in the order of their names.
fn toml_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = entries(directory).unwrap_or_default();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    files.sort_unstable();
    files
}

/// Reads the settings for QEMU from the file and its drop-ins; `None` if it configures another
/// hypervisor.
fn settings(file: &Path) -> Result<Option<Settings>, String> {
    let drop_ins = file.with_file_name("config.d");
    let more = toml_files(&drop_ins);
    let mut settings = None;
    for (index, file) in std::iter::once(file.to_owned()).chain(more).enumerate() {
        let text = fs::read(&file).map_err(|e| e.to_string())?;
        let document = str::from_utf8(&text).ok().and_then(|text| text.parse::<DocumentMut>().ok());
        let document = document.ok_or_else(|| format!("{} is not valid TOML", file.display()))?;
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
    use crate::output::findings::Status;

    fn with(files: &[(&str, &str)]) -> Finding {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        check(root.path())
    }

    const SUITABLE: &str =
        "[hypervisor.qemu]\nenable_debug = true\nextra_monitor_socket = \"qmp\"\n";

    #[rstest]
    #[case(&[], Status::Warning, "no configuration")]
    #[case(&[(FILES[0], SUITABLE)], Status::Ok, "enables a QMP socket")]
    #[case(&[(FILES[0], "[hypervisor.qemu]\n#enable_debug = true\n")], Status::Warning, "no enable_debug")]
    #[case(&[(FILES[0], "[hypervisor.qemu]\nenable_debug = true\nextra_monitor_socket = \"hmp\"")], Status::Warning, "no extra_monitor_socket")]
    #[case(&[(FILES[0], "[hypervisor.clh]\n")], Status::Warning, "no configuration")]
    #[case(&[(FILES[0], "[hypervisor")], Status::Warning, "is not valid TOML")]
    #[case(&[(FILES[0], SUITABLE), (FILES[1], "[hypervisor.qemu]\n")], Status::Ok, "etc/kata")]
    #[case(&[(FILES[0], "[hypervisor.qemu]\nenable_debug = true\n"), ("etc/kata-containers/config.d/9.toml", SUITABLE)], Status::Ok, "enables")]
    #[case(&[("opt/kata/share/defaults/kata-containers/configuration-qemu.toml", SUITABLE),
             ("opt/kata/share/defaults/kata-containers/configuration-clh.toml", "[hypervisor.clh]")], Status::Ok, "configuration-qemu")]
    #[case(&[(FILES[1], "[hypervisor.qemu]\nenable_debug = true\nextra_monitor_socket = \"qmp\"\nblock_device_driver = \"virtio-blk\"")],
        Status::Warning, "block_device_driver")]
    fn the_relevant_settings_are_found(
        #[case] files: &[(&str, &str)],
        #[case] status: Status,
        #[case] found: &str,
    ) {
        let finding = with(files);
        assert_eq!(finding.status, status, "{finding:?}");
        assert!(finding.message.contains(found), "{finding:?}");
        assert_eq!(finding.remedy.is_none(), status == Status::Ok, "{finding:?}");
    }
}
