//! Where kubelet puts the device of a claim: `KUBELET/pods/UID/volumeDevices/PLUGIN/VOLUME`, a
//! link to the device, for each block volume of the pod.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::host::Failure;

/// The directory of a pod's block volumes, for its UID as the container engine tells it.
///
/// # Errors
/// The UID is none.
pub(super) fn directory(kubelet: &Path, uid: &str) -> Result<PathBuf, Failure> {
    let is_uid = !uid.is_empty() && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    match is_uid {
        true => Ok(kubelet.join("pods").join(uid).join("volumeDevices")),
        false => Err(Failure::later("InvalidName", format!("{uid:?} is not the UID of a pod"))),
    }
}

/// The only device in the `directory` of an attachment pod.
///
/// # Errors
/// There is none, there are several, or the directory cannot be read.
pub(super) fn only(directory: &Path) -> Result<PathBuf, Failure> {
    let failed = |e: io::Error| Failure {
        reason: "DeviceNotPublished".to_owned(),
        message: format!(
            "kubelet's directory {} cannot be read: {e}; it is tried again: kubelet makes it when \
             its attachment pod runs, below --kubelet-dir of the node agent",
            directory.display()
        ),
        passes: true,
    };
    let mut found = Vec::new();
    for plugin in fs::read_dir(directory).map_err(failed)? {
        for device in fs::read_dir(plugin.map_err(failed)?.path()).map_err(failed)? {
            found.push(device.map_err(failed)?.path());
        }
    }
    match (found.pop(), found.len()) {
        (Some(only), 0) => Ok(only),
        (_, others) => {
            let count = if others == 0 { 0 } else { others + 1 };
            let message = format!(
                "kubelet has published {count} devices in {} and not 1; it is tried again: `kubectl \
                 describe` of the attachment pod says what kubelet waits for",
                directory.display()
            );
            Err(Failure { reason: "DeviceNotPublished".to_owned(), message, passes: true })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_device_is_found() {
        let kubelet = tempfile::tempdir().unwrap();
        let directory = directory(kubelet.path(), "0a1b-2c").unwrap();
        assert_eq!(only(&directory).unwrap_err().reason, "DeviceNotPublished");
        let plugin = directory.join("kubernetes.io~csi");
        fs::create_dir_all(&plugin).unwrap();
        assert!(only(&directory).unwrap_err().message.contains("0 devices"));
        std::os::unix::fs::symlink("/dev/loop0", plugin.join("pvc-1")).unwrap();
        assert_eq!(only(&directory).unwrap(), plugin.join("pvc-1"));
        fs::write(plugin.join("pvc-2"), "").unwrap();
        assert!(only(&directory).unwrap_err().message.contains("2 devices"));
    }

    #[test]
    fn a_uid_is_no_path() {
        for uid in ["", "..", "../x", "a/b"] {
            assert!(directory(Path::new("/var/lib/kubelet"), uid).is_err(), "{uid}");
        }
    }
}
