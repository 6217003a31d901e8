//! Paths and settings of this machine, and the environment variables that change them.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `VM_HARNESS_ACCEL` | `kvm` or `tcg` | KVM where a guest boots with it, else TCG |
//! | `VM_HARNESS_QEMU` | QEMU's binary | `qemu-system-x86_64` |
//! | `VM_HARNESS_IMAGE` | directory with `vmlinux` and `initramfs.cpio` | `target/images/default` |
//! | `VM_HARNESS_AGENT` | the agent in the image, with the shared libraries that it needs | that of the image |
//! | `VM_HARNESS_POLICY` | its policy: a `.rego` or `.json` file | none |
//! | `VM_HARNESS_PLUGIN_PORT` | vsock port on which it serves the plugin, if that is not the agent's own port | 1024 |
//! | `VM_HARNESS_INITRD_EXTRA` | directory whose files are added to the guest's root, and replace those in it | none |
//! | `VM_HARNESS_KERNEL` | unpacked kernel package, or a kernel that needs no modules | that of the image |
//! | `VM_HARNESS_TIME_SCALE` | factor on every time limit | 1 with KVM, 4 with TCG |
//! | `VM_HARNESS_MACHINE` | QEMU's machine type of every guest: `q35` or `pc` | that of the test, mostly `q35` |
//! | `VM_HARNESS_CPUS` | number of CPUs of every guest | that of the test, mostly 1 |
//! | `VM_HARNESS_RESTORE` | `no`: boot every guest | restore the usual guests from files |
//! | `VM_HARNESS_CACHE` | directory of what `ci/setup` fetched | `target/cache` |
//! | `VM_HARNESS_ARTIFACTS` | directory in which a failed test leaves its console and QEMU's messages | none |
//! | `VM_HARNESS_TARGET` | Cargo's target directory with the built binaries | `target` |

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::{Error, Overrides};

/// The vsock port of the agent, in Kata and here.
pub(crate) const AGENT_PORT: u32 = 1024;
const PLUGIN_PORT: &str = "VM_HARNESS_PLUGIN_PORT";
pub(crate) const MACHINE: &str = "VM_HARNESS_MACHINE";
pub(crate) const CPUS: &str = "VM_HARNESS_CPUS";

/// Paths and settings of a build, read once.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Cargo's target directory.
    pub target: PathBuf,
    /// Directory of what `ci/setup` fetched, and of what the harness keeps between runs.
    pub cache: PathBuf,
    /// QEMU's program name or path.
    pub qemu: PathBuf,
    /// Whether a guest may be restored from a file.
    pub restore: bool,
    /// What the caller changes in the image.
    pub overrides: Overrides,
    /// QEMU's machine type of every guest, in place of the one that a test chooses.
    pub machine_type: Option<String>,
    /// The number of CPUs of every guest, in place of the one that a test chooses.
    pub cpus: Option<String>,
    /// The vsock port on which the agent of the default image serves the plugin, if that is not
    /// the agent's own port.
    pub plugin_port: Option<String>,
    /// The image that the default one is made from.
    image: Option<PathBuf>,
}

impl Environment {
    /// Reads the variables. Checks nothing: a missing path is an error of the function that needs
    /// it.
    pub fn from_variables() -> Self {
        let target = variable("VM_HARNESS_TARGET").map_or_else(default_target, PathBuf::from);
        let cache =
            variable("VM_HARNESS_CACHE").map_or_else(|| target.join("cache"), PathBuf::from);
        let path = |name| variable(name).map(PathBuf::from);
        let overrides = Overrides {
            agent: path("VM_HARNESS_AGENT"),
            policy: path("VM_HARNESS_POLICY"),
            extra: path("VM_HARNESS_INITRD_EXTRA").into_iter().collect(),
            kernel: path("VM_HARNESS_KERNEL"),
        };
        let qemu = path("VM_HARNESS_QEMU").unwrap_or_else(|| PathBuf::from("qemu-system-x86_64"));
        let restore = variable("VM_HARNESS_RESTORE").as_deref() != Some("no");
        let plugin_port = variable(PLUGIN_PORT);
        let image = path("VM_HARNESS_IMAGE");
        let (machine_type, cpus) = (variable(MACHINE), variable(CPUS));
        Self { target, cache, qemu, restore, overrides, machine_type, cpus, plugin_port, image }
    }

    /// Returns the path of `ecr-runtime` as it ships.
    ///
    /// # Errors
    /// It was not built.
    pub fn ecr_runtime(&self) -> Result<PathBuf, Error> {
        built(self.target.join("release/ecr-runtime"))
    }

    /// Returns the path of `ecr-qemu` as it ships.
    ///
    /// # Errors
    /// It was not built.
    pub fn ecr_qemu(&self) -> Result<PathBuf, Error> {
        built(self.target.join("release/ecr-qemu"))
    }

    /// Returns the path of `ecr-runtime` with its fault points.
    ///
    /// # Errors
    /// It was not built.
    pub fn ecr_runtime_with_faults(&self) -> Result<PathBuf, Error> {
        built(self.target.join("fault/release/ecr-runtime"))
    }

    /// Returns the path of this harness's own program.
    ///
    /// # Errors
    /// It was not built.
    pub fn vm_harness(&self) -> Result<PathBuf, Error> {
        built(self.target.join("release/vm-harness"))
    }

    /// Returns the directory of the image `name` (`default`, `fault`) with the caller's overrides:
    /// all of them in `default`; in other images only the kernel and the extra files, because
    /// these images exist for their agent.
    ///
    /// # Errors
    /// It was not built, or an override is not valid.
    pub fn image(&self, name: &str) -> Result<PathBuf, Error> {
        let default = name == "default";
        let image = match &self.image {
            Some(image) if default => image.clone(),
            _ => self.target.join("images").join(name),
        };
        let image = built(image)?;
        let overrides =
            if default { self.overrides.clone() } else { self.overrides.without_agent() };
        overrides.image(&image, &self.target.join("images"))
    }

    /// Returns the vsock port on which the agent of the image `name` serves the plugin. Images
    /// other than `default` are of this build and serve it on the agent's own port.
    pub(crate) fn plugin_port(&self, name: &str) -> Result<u32, Error> {
        match &self.plugin_port {
            Some(port) if name == "default" => port.parse().map_err(|_| Error::Variable {
                name: PLUGIN_PORT,
                value: port.clone(),
                expected: "a vsock port's number",
            }),
            _ => Ok(AGENT_PORT),
        }
    }

    /// Returns the path of `vhost-device-vsock`, the back end of the vsock device.
    ///
    /// # Errors
    /// `ci/setup` has not run.
    pub fn vhost_device_vsock(&self) -> Result<PathBuf, Error> {
        let path = self.cache.join("bin/vhost-device-vsock");
        if path.exists() { Ok(path) } else { Err(missing(&path, "run ci/setup")) }
    }

    /// Returns the path of Debian's generic kernel, for guests that need 9p or virtio-fs, which the
    /// cloud kernel does not have.
    ///
    /// # Errors
    /// `ci/setup --full` has not run.
    pub fn generic_kernel(&self) -> Result<PathBuf, Error> {
        fetched_for_full(self.cache.join("kernels/generic"))
    }

    /// Returns the directories that make systemd with udev PID 1 of a guest, for
    /// [`Overrides::extra`].
    ///
    /// # Errors
    /// `ci/setup --full` has not run.
    pub fn systemd(&self) -> Result<[PathBuf; 2], Error> {
        let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/systemd");
        Ok([fetched_for_full(self.cache.join("systemd"))?, built(units)?])
    }

    /// Returns the root directory with containerd of a Debian suite.
    ///
    /// # Errors
    /// `ci/setup --test` has not run; for other suites than bookworm `ci/setup --full`.
    pub fn containerd(&self, suite: &str) -> Result<PathBuf, Error> {
        fetched_for_full(self.cache.join("containerd").join(suite))
    }

    /// Returns the tree with libvirt of this machine's Debian suite.
    ///
    /// # Errors
    /// `ci/bench` has not run.
    pub fn libvirt(&self) -> Result<PathBuf, Error> {
        let path = self.cache.join("libvirt");
        let remedy = "run ci/bench, which unpacks libvirt of this Debian, or give --without-virsh";
        if path.exists() { Ok(path) } else { Err(missing(&path, remedy)) }
    }

    /// Returns the path of `virtiofsd`, the server of virtio-fs.
    ///
    /// # Errors
    /// `ci/setup --full` has not run.
    pub fn virtiofsd(&self) -> Result<PathBuf, Error> {
        fetched_for_full(self.cache.join("virtiofsd/virtiofsd"))
    }
}

fn fetched_for_full(path: PathBuf) -> Result<PathBuf, Error> {
    if path.exists() { Ok(path) } else { Err(missing(&path, "run ci/setup --full")) }
}

fn built(path: PathBuf) -> Result<PathBuf, Error> {
    if path.exists() { Ok(path) } else { Err(missing(&path, "run ci/setup and ci/build")) }
}

fn missing(path: &Path, remedy: &'static str) -> Error {
    Error::Missing { what: path.display().to_string(), remedy }
}

/// Returns the value of an environment variable that is set and not empty.
pub(crate) fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Returns `target` in the workspace that this crate was built in, or else the directory above the
/// one of the running program.
fn default_target() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(|root| root.join("target"));
    match workspace {
        Some(target) if target.exists() => target,
        _ => env::current_exe()
            .ok()
            .and_then(|program| program.parent()?.parent().map(Path::to_path_buf))
            .unwrap_or_else(|| PathBuf::from("target")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separate_plugin_port_is_used_for_the_default_image_only() {
        let with = |port: &str| Environment {
            plugin_port: Some(port.to_owned()).filter(|port| !port.is_empty()),
            ..Environment::from_variables()
        };
        assert_eq!(with("").plugin_port("default").unwrap(), 1024);
        assert_eq!(with("1031").plugin_port("default").unwrap(), 1031);
        assert_eq!(with("1031").plugin_port("fault").unwrap(), 1024);
        let error = with("vsock").plugin_port("default").unwrap_err().to_string();
        assert!(error.contains("VM_HARNESS_PLUGIN_PORT") && error.contains("vsock"), "{error}");
    }
}
