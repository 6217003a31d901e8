//! The machine's side: where things are, and the environment variables that say otherwise.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `VM_HARNESS_ACCEL` | `kvm` or `tcg` | KVM where it really works, else TCG |
//! | `VM_HARNESS_QEMU` | QEMU's binary | `qemu-system-x86_64` |
//! | `VM_HARNESS_IMAGE` | directory with `vmlinux` and `initramfs.cpio` | `target/images/default` |
//! | `VM_HARNESS_AGENT` | the agent in the image, with the shared libraries that it needs | that of the image |
//! | `VM_HARNESS_POLICY` | its policy: a `.rego` or `.json` file | none |
//! | `VM_HARNESS_PLUGIN_PORT` | vsock port on which it serves the plugin, where that is not its own server's | 1024 |
//! | `VM_HARNESS_INITRD_EXTRA` | directory that is laid over the guest's root | none |
//! | `VM_HARNESS_KERNEL` | unpacked kernel package, or a kernel that needs no modules | that of the image |
//! | `VM_HARNESS_TIME_SCALE` | factor on every time-out | 1 with KVM, 4 with TCG |
//! | `VM_HARNESS_RESTORE` | `no`: boot every guest | restore the usual guests from files |
//! | `VM_HARNESS_CACHE` | what `ci/setup` fetched | `target/cache` |
//! | `VM_HARNESS_ARTIFACTS` | where a test that fails leaves its console and QEMU's messages | nowhere |
//! | `VM_HARNESS_TARGET` | Cargo's target directory with the built binaries | `target` |

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::{Accelerator, Error, Parts, agent};

const PLUGIN_PORT: &str = "VM_HARNESS_PLUGIN_PORT";

/// Paths of a build, found once.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Cargo's target directory.
    pub target: PathBuf,
    /// What `ci/setup` fetched, and what the harness wants to keep between runs.
    pub cache: PathBuf,
    /// QEMU's program name or path.
    pub qemu: PathBuf,
    /// Whether a guest may come from a file where it can.
    pub restore: bool,
    /// What is the caller's own in the image.
    pub parts: Parts,
    /// Where the agent of the default image serves the plugin, if on a vsock port of the plugin's
    /// own.
    pub plugin_port: Option<String>,
    /// The image that the default one is made from.
    image: Option<PathBuf>,
}

impl Environment {
    /// Reads the variables. Nothing is checked yet: a path that is missing is an error where it is
    /// needed.
    pub fn from_variables() -> Self {
        let target = variable("VM_HARNESS_TARGET").map_or_else(default_target, PathBuf::from);
        let cache =
            variable("VM_HARNESS_CACHE").map_or_else(|| target.join("cache"), PathBuf::from);
        let path = |name| variable(name).map(PathBuf::from);
        let parts = Parts {
            agent: path("VM_HARNESS_AGENT"),
            policy: path("VM_HARNESS_POLICY"),
            extra: path("VM_HARNESS_INITRD_EXTRA").into_iter().collect(),
            kernel: path("VM_HARNESS_KERNEL"),
        };
        let qemu = path("VM_HARNESS_QEMU").unwrap_or_else(|| PathBuf::from("qemu-system-x86_64"));
        let restore = variable("VM_HARNESS_RESTORE").as_deref() != Some("no");
        let plugin_port = variable(PLUGIN_PORT);
        Self { target, cache, qemu, restore, parts, plugin_port, image: path("VM_HARNESS_IMAGE") }
    }

    /// `ecr-runtime` as it ships.
    ///
    /// # Errors
    /// It was not built.
    pub fn ecr_runtime(&self) -> Result<PathBuf, Error> {
        built(self.target.join("release/ecr-runtime"))
    }

    /// `ecr-runtime` with its fail points.
    ///
    /// # Errors
    /// It was not built.
    pub fn ecr_runtime_with_faults(&self) -> Result<PathBuf, Error> {
        built(self.target.join("fault/release/ecr-runtime"))
    }

    /// This harness's own program.
    ///
    /// # Errors
    /// It was not built.
    pub fn vm_harness(&self) -> Result<PathBuf, Error> {
        built(self.target.join("release/vm-harness"))
    }

    /// The directory of the image `name` (`default`, `fault`), with the caller's own parts in it:
    /// of `default` all of them, of others the kernel and the extra files, for their agent is what
    /// they are made for.
    ///
    /// # Errors
    /// It was not built, or a part is not what it should be.
    pub fn image(&self, name: &str) -> Result<PathBuf, Error> {
        let default = name == "default";
        let image = match &self.image {
            Some(image) if default => image.clone(),
            _ => self.target.join("images").join(name),
        };
        let image = built(image)?;
        let parts = if default { self.parts.clone() } else { self.parts.without_agent() };
        parts.image(&image, &self.target.join("images"))
    }

    /// The vsock port on which the agent of the image `name` serves the plugin: other images than
    /// `default` are of this build, with the plugin on the agent's own server.
    pub(crate) fn plugin_port(&self, name: &str) -> Result<u32, Error> {
        match &self.plugin_port {
            Some(port) if name == "default" => port.parse().map_err(|_| Error::Variable {
                name: PLUGIN_PORT,
                value: port.clone(),
                expected: "a vsock port's number",
            }),
            _ => Ok(agent::PORT),
        }
    }

    /// `vhost-device-vsock`, the vsock device's back end.
    ///
    /// # Errors
    /// `ci/setup` has not run.
    pub fn vhost_device_vsock(&self) -> Result<PathBuf, Error> {
        let path = self.cache.join("bin/vhost-device-vsock");
        if path.exists() { Ok(path) } else { Err(missing(&path, "run ci/setup")) }
    }

    /// Debian's generic kernel, for guests that need what the cloud kernel has not: 9p and
    /// virtio-fs.
    ///
    /// # Errors
    /// `ci/setup --full` has not run.
    pub fn generic_kernel(&self) -> Result<PathBuf, Error> {
        fetched_for_full(self.cache.join("kernels/generic"))
    }

    /// `virtiofsd`, the server of virtio-fs.
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

/// An environment variable that is set to something.
pub(crate) fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// The factor on every time-out: `VM_HARNESS_TIME_SCALE`, else the accelerator's.
pub(crate) fn time_scale(accelerator: Accelerator) -> Result<u32, Error> {
    match variable("VM_HARNESS_TIME_SCALE") {
        None => Ok(accelerator.time_scale()),
        Some(value) => match value.parse() {
            Ok(scale) if scale > 0 => Ok(scale),
            _ => Err(Error::Variable {
                name: "VM_HARNESS_TIME_SCALE",
                value,
                expected: "1, 2, 3, …",
            }),
        },
    }
}

/// `target` beside the workspace that this crate was built in, or the one that holds the running
/// program.
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
    fn a_port_of_the_plugins_own_is_that_of_the_default_images_agent_alone() {
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
