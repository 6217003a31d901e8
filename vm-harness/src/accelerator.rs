//! Which of QEMU's accelerators to use: KVM only where it really works.
//!
//! A machine can have `/dev/kvm`, open it, create a VM, and still be unable to run a kernel in it
//! (nested hosts with `kvm_pvm`, for one). QEMU's own `-accel kvm -accel tcg` doesn't help: it
//! falls back only where KVM cannot be initialised. So KVM is taken where
//! [`/dev/kvm`](https://docs.kernel.org/virt/kvm/api.html) can be opened, the processor shows VMX
//! or SVM, the module is not `kvm_pvm`, and a trial boot of the image reached its agent.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use crate::{Error, environment::variable};

/// One of QEMU's accelerators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Hardware virtualisation.
    Kvm,
    /// QEMU's own emulation: works everywhere, several times slower.
    Tcg,
}

/// What was chosen, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The accelerator to use, or for KVM without an order: to try first.
    pub accelerator: Accelerator,
    /// One line for people.
    pub reason: String,
    /// Whether a trial boot has to confirm it.
    pub on_trial: bool,
}

impl Accelerator {
    /// The choice for this machine: `VM_HARNESS_ACCEL`, else what the machine can do.
    ///
    /// # Errors
    /// The variable holds another word.
    pub fn choose() -> Result<Choice, Error> {
        let ordered = |accelerator| Choice {
            accelerator,
            reason: "ordered by VM_HARNESS_ACCEL".to_owned(),
            on_trial: false,
        };
        match variable("VM_HARNESS_ACCEL").as_deref() {
            Some("kvm") => Ok(ordered(Self::Kvm)),
            Some("tcg") => Ok(ordered(Self::Tcg)),
            Some(other) => Err(Error::Variable {
                name: "VM_HARNESS_ACCEL",
                value: other.to_owned(),
                expected: "kvm, tcg",
            }),
            None => Ok(of_machine(Path::new("/"))),
        }
    }

    /// The factor on every time-out.
    pub fn time_scale(self) -> u32 {
        match self {
            Self::Kvm => 1,
            Self::Tcg => 4,
        }
    }

    /// The value of QEMU's `-accel`.
    pub fn option(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg,thread=multi",
        }
    }

    /// The value of QEMU's `-cpu`.
    pub fn cpu(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            Self::Tcg => "qemu64",
        }
    }
}

/// What became of KVM's trial, kept in a file so that a machine pays for a failed one once. A
/// reboot may change the answer.
#[derive(Debug)]
pub(crate) struct Trial {
    file: PathBuf,
    boot: String,
}

impl Trial {
    pub(crate) fn new(directory: &Path) -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { file: directory.join("kvm-trial-failed"), boot }
    }

    /// Whether KVM failed before, since this machine was booted.
    pub(crate) fn has_failed(&self) -> bool {
        fs::read_to_string(&self.file).is_ok_and(|boot| boot == self.boot)
    }

    /// Notes that it failed.
    pub(crate) fn failed(&self) {
        if let Err(error) = fs::write(&self.file, &self.boot) {
            tracing::warn!(%error, file = %self.file.display(), "the next boot will try KVM again");
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

fn of_machine(root: &Path) -> Choice {
    let tcg = |reason: &str| Choice {
        accelerator: Accelerator::Tcg,
        reason: reason.to_owned(),
        on_trial: false,
    };
    if fs::OpenOptions::new().read(true).write(true).open(root.join("dev/kvm")).is_err() {
        return tcg("/dev/kvm cannot be opened");
    }
    if root.join("sys/module/kvm_pvm").exists() {
        return tcg("/dev/kvm belongs to kvm_pvm, which cannot run an ordinary kernel");
    }
    let cpuinfo = fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
    if !cpuinfo.split_whitespace().any(|flag| flag == "vmx" || flag == "svm") {
        return tcg("the processor shows neither VMX nor SVM");
    }
    Choice {
        accelerator: Accelerator::Kvm,
        reason: "/dev/kvm looks usable".to_owned(),
        on_trial: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_trial_is_remembered_until_the_next_boot() {
        let directory = tempfile::tempdir().unwrap();
        let trial = Trial::new(directory.path());
        assert!(!trial.has_failed());
        trial.failed();
        assert!(Trial::new(directory.path()).has_failed());
        let rebooted = Trial { boot: "another".to_owned(), ..Trial::new(directory.path()) };
        assert!(!rebooted.has_failed());
    }

    fn machine(modules: &[&str], flags: &str, kvm: bool) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for directory in ["dev", "proc", "sys/module"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        for module in modules {
            fs::create_dir(root.path().join("sys/module").join(module)).unwrap();
        }
        fs::write(root.path().join("proc/cpuinfo"), format!("flags\t\t: fpu {flags}\n")).unwrap();
        if kvm {
            fs::write(root.path().join("dev/kvm"), "").unwrap();
        }
        root
    }

    #[rstest::rstest]
    #[case::no_device(&[], "vmx", false, Accelerator::Tcg)]
    #[case::pvm_only(&["kvm_pvm"], "vmx", true, Accelerator::Tcg)]
    #[case::no_extension(&["kvm"], "sse", true, Accelerator::Tcg)]
    #[case::intel(&["kvm_intel"], "vmx", true, Accelerator::Kvm)]
    #[case::amd(&["kvm_amd"], "svm", true, Accelerator::Kvm)]
    fn machine_decides(
        #[case] modules: &[&str],
        #[case] flags: &str,
        #[case] kvm: bool,
        #[case] expected: Accelerator,
    ) {
        let root = machine(modules, flags, kvm);
        let choice = of_machine(root.path());
        assert_eq!(choice.accelerator, expected);
        assert_eq!(
            choice.on_trial,
            expected == Accelerator::Kvm,
            "KVM is believed only after a trial boot"
        );
    }
}
