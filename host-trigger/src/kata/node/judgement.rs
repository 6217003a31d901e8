//! What keeps the new sandboxes of a runtime class from taking volumes, as far as Kata's
//! configuration decides it: the monitor beside the shim's, and the controller. Running sandboxes
//! may have been started with another configuration.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use super::{
    directory::{Configuration, Directory, is_wrapper},
    runtime_class::{self, Runtime, RuntimeClass},
    settings::Setting,
};
use crate::Error;

/// The driver that volumes need.
const DRIVER: &str = "virtio-scsi";
/// The annotation by which a pod replaces QEMU's path, where that is allowed.
pub(crate) const PATH_ANNOTATION: &str = "io.katacontainers.config.hypervisor.path";

/// A runtime class of QEMU's, and what is wrong with its configuration.
#[derive(Debug)]
pub(crate) struct Judged {
    /// The class; empty for a configuration that is used by default.
    pub(crate) class: String,
    /// Its runtime.
    pub(crate) runtime: Runtime,
    /// Its configuration.
    pub(crate) file: PathBuf,
    /// None: new sandboxes take volumes.
    pub(crate) faults: Vec<Fault>,
}

/// What is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// QEMU has no monitor beside the one that the shim holds.
    NoMonitor,
    /// The same, and `node enable` refuses to change it.
    Refused { why: String, remedy: Option<&'static str> },
    /// Neither this program nor Kata can read it.
    Unreadable { why: String, remedy: Option<&'static str> },
    /// No pod starts with it.
    StopsPods(Setting),
    /// The monitor at the wrapper's place is not for QMP.
    OtherMonitor(Setting),
    /// QEMU has no controller for volumes.
    Driver(Setting),
    /// A pod may start QEMU without the wrapper.
    PathByAnnotation { file: PathBuf, wrapper: PathBuf },
}

impl Fault {
    /// Whether it is about the controller, and not about the monitor.
    pub(crate) fn is_of_controller(&self) -> bool {
        matches!(self, Self::Driver(_))
    }

    /// The exact lines that mend it for a class.
    pub(crate) fn remedy(&self, class: &str) -> Vec<String> {
        let set = |setting: &Setting, line: &str| {
            let file = setting.file.display();
            vec![format!("in {file}:"), "[hypervisor.qemu]".to_owned(), line.to_owned()]
        };
        match self {
            Self::NoMonitor => {
                let option = match class {
                    "" => String::new(),
                    class => format!(" --runtime-class {class}"),
                };
                let what = "let Kata start QEMU by ecr-qemu, for new sandboxes only";
                vec![format!("{what}: ecr-runtime node enable{option}")]
            }
            Self::Refused { remedy, .. } => {
                let status = "see `ecr-runtime node status`".to_owned();
                remedy.iter().map(|&remedy| remedy.to_owned()).chain([status]).collect()
            }
            Self::Unreadable { remedy, .. } => remedy.iter().map(|&line| line.to_owned()).collect(),
            Self::StopsPods(setting) | Self::OtherMonitor(setting) => {
                let Setting { value, file } = setting;
                let line = format!("extra_monitor_socket = {value:?}");
                vec![format!("remove this line from {}: {line}", file.display())]
            }
            Self::Driver(setting) => set(setting, &format!("block_device_driver = {DRIVER:?}")),
            Self::PathByAnnotation { file, wrapper } => vec![
                format!("take \"path\" out of enable_annotations in {},", file.display()),
                format!(
                    "or let pods choose the wrapper alone: valid_hypervisor_paths = [{wrapper:?}]"
                ),
            ],
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMonitor => f.write_str("the shim holds QEMU's only QMP socket"),
            Self::Refused { why, .. } => {
                write!(f, "the shim holds QEMU's only QMP socket, and `node enable` refuses: {why}")
            }
            Self::Unreadable { why, .. } => f.write_str(why),
            Self::StopsPods(Setting { value, .. }) => write!(
                f,
                "extra_monitor_socket = {value:?} keeps every pod of the Rust runtime from starting"
            ),
            Self::OtherMonitor(Setting { value, .. }) => {
                write!(f, "extra_monitor_socket = {value:?} takes the place of ecr-qemu's socket")
            }
            Self::Driver(Setting { value, .. }) => {
                write!(f, "block_device_driver is {value:?}, not {DRIVER:?}")
            }
            Self::PathByAnnotation { .. } => {
                write!(
                    f,
                    "a pod with the annotation {PATH_ANNOTATION} starts QEMU without ecr-qemu"
                )
            }
        }
    }
}

/// Judges the runtime classes of QEMU's on the node at `root`: all, or those of one runtime.
///
/// # Errors
/// The configuration of containerd or CRI-O cannot be read.
pub(crate) fn judge(root: &Path, runtime: Option<Runtime>) -> Result<Vec<Judged>, Error> {
    let classes = runtime_class::all(root)?;
    let mut directories: BTreeMap<&Path, Result<Directory, Fault>> = BTreeMap::new();
    let mut judged = Vec::new();
    for class in &classes {
        let Some(file) = &class.configuration else { continue };
        let Some(path) = file.parent().filter(|_| runtime.is_none_or(|one| one == class.runtime))
        else {
            continue;
        };
        let directory = directories.entry(path).or_insert_with(|| {
            let unreadable =
                |e: Error| Fault::Unreadable { why: e.message(), remedy: e.class().remedy };
            Directory::read(path).map_err(unreadable)
        });
        let faults = match directory {
            Err(unreadable) => vec![unreadable.clone()],
            Ok(directory) => {
                let of_file = directory.configurations.iter().find(|one| one.file == *file);
                let Some(qemu) = of_file.filter(|one| one.is_qemu()) else { continue };
                faults(&classes, class, directory, qemu)
            }
        };
        let (class, runtime) = (class.name.clone(), class.runtime);
        judged.push(Judged { class, runtime, file: file.clone(), faults });
    }
    Ok(judged)
}

fn faults(
    classes: &[RuntimeClass],
    class: &RuntimeClass,
    directory: &Directory,
    configuration: &Configuration,
) -> Vec<Fault> {
    let Configuration { file, settings, .. } = configuration;
    let started = directory.started(configuration);
    let wrapper = started.filter(|path| is_wrapper(path));
    // In debug mode alone.
    let monitor = settings.monitor.clone().filter(|one| settings.debug && !one.value.is_empty());
    let is_qmp = |one: &Setting| one.value.starts_with("qmp");
    let mut faults = Vec::new();
    let has_own = match (class.runtime, monitor) {
        (Runtime::Go, Some(one)) if is_qmp(&one) => true,
        (Runtime::Rust, Some(one)) if is_qmp(&one) => {
            faults.push(Fault::StopsPods(one));
            false
        }
        (Runtime::Go, Some(one)) if wrapper.is_some() => {
            faults.push(Fault::OtherMonitor(one));
            false
        }
        _ => false,
    };
    match &wrapper {
        Some(wrapper) => {
            let leads_elsewhere = |pattern: &String| !is_wrapper(Path::new(pattern));
            if settings.may_be_annotated("path")
                && settings.allowed_paths.iter().any(leads_elsewhere)
            {
                let (file, wrapper) = (file.clone(), wrapper.clone());
                faults.push(Fault::PathByAnnotation { file, wrapper });
            }
        }
        None if has_own => {}
        None => match directory.use_of(|file| runtime_class::names_of(classes, file)) {
            Ok(_) => faults.push(Fault::NoMonitor),
            Err(e) => {
                let (why, remedy) = (e.message(), e.class().remedy);
                faults.push(Fault::Refused { why, remedy });
            }
        },
    }
    let usual = || {
        let value = match class.runtime {
            Runtime::Go => DRIVER,
            Runtime::Rust => "virtio-blk-pci",
        };
        Setting { value: value.to_owned(), file: file.clone() }
    };
    let driver = settings.driver.clone().unwrap_or_else(usual);
    if driver.value != DRIVER {
        faults.push(Fault::Driver(driver));
    }
    faults
}

#[cfg(test)]
#[path = "judgement_tests.rs"]
mod tests;
