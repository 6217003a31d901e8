//! Chooses one of QEMU's accelerators: KVM only if a guest boots with it.
//!
//! A machine can have `/dev/kvm`, open it, create a VM, and still be unable to run a kernel in it
//! (nested hosts with `kvm_pvm`, for example). QEMU's own `-accel kvm -accel tcg` does not help: it
//! falls back only if KVM cannot be initialised. So KVM is used if
//! [`/dev/kvm`](https://docs.kernel.org/virt/kvm/api.html) can be opened, the processor has VMX or
//! SVM, the module is not `kvm_pvm`, and a trial boot of the image reached its agent.

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
    /// QEMU's emulation: works on every machine, several times slower.
    Tcg,
}

/// What was chosen, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceleratorChoice {
    /// The accelerator to use; to try first if `needs_trial`.
    pub accelerator: Accelerator,
    /// The reason, in one line.
    pub reason: String,
    /// Whether a trial boot has to confirm it.
    pub needs_trial: bool,
}

impl Accelerator {
    /// Chooses for this machine: `VM_HARNESS_ACCEL`, else what the machine can do.
    ///
    /// # Errors
    /// The variable has another value.
    pub fn choose() -> Result<AcceleratorChoice, Error> {
        let configured = |accelerator| AcceleratorChoice {
            accelerator,
            reason: "set by VM_HARNESS_ACCEL".to_owned(),
            needs_trial: false,
        };
        match variable("VM_HARNESS_ACCEL").as_deref() {
            Some("kvm") => Ok(configured(Self::Kvm)),
            Some("tcg") => Ok(configured(Self::Tcg)),
            Some(other) => Err(Error::Variable {
                name: "VM_HARNESS_ACCEL",
                value: other.to_owned(),
                expected: "kvm, tcg",
            }),
            None => Ok(of_machine(Path::new("/"))),
        }
    }

    /// Returns the default factor on every time limit.
    pub fn time_scale(self) -> u32 {
        match self {
            Self::Kvm => 1,
            Self::Tcg => 4,
        }
    }

    /// Returns the factor on every time limit: `VM_HARNESS_TIME_SCALE`, else the default.
    pub(crate) fn configured_time_scale(self) -> Result<u32, Error> {
        const NAME: &str = "VM_HARNESS_TIME_SCALE";
        let Some(value) = variable(NAME) else { return Ok(self.time_scale()) };
        match value.parse() {
            Ok(scale) if scale > 0 => Ok(scale),
            _ => Err(Error::Variable { name: NAME, value, expected: "1, 2, 3, …" }),
        }
    }

    /// Returns the value of QEMU's `-accel`.
    pub fn option(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg,thread=multi",
        }
    }

    /// Returns the value of QEMU's `-cpu`.
    pub fn cpu(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            Self::Tcg => "qemu64",
        }
    }
}

/// The result of KVM's trial boot, kept in a file so that a failed trial costs its time once. It is
/// tried again after a reboot of the host.
#[derive(Debug)]
pub(crate) struct KvmTrial {
    file: PathBuf,
    boot: String,
}

impl KvmTrial {
    pub(crate) fn new(directory: &Path) -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { file: directory.join("kvm-trial-failed"), boot }
    }

    /// Whether KVM has failed since this machine was booted.
    pub(crate) fn has_failed(&self) -> bool {
        fs::read_to_string(&self.file).is_ok_and(|boot| boot == self.boot)
    }

    /// Records that it failed.
    pub(crate) fn record_failure(&self) {
        if let Err(error) = fs::write(&self.file, &self.boot) {
            tracing::warn!(%error, file = %self.file.display(), "the next boot will try KVM again");
        }
    }
}

/// Boots with the accelerator of this machine, and with emulation where a trial of KVM fails.
pub(crate) async fn with_accelerator<T>(
    cache: &Path,
    boot: impl AsyncFn(Accelerator) -> Result<T, Error>,
) -> Result<T, Error> {
    let choice = Accelerator::choose()?;
    let trial = KvmTrial::new(cache);
    let accelerator = if choice.needs_trial && trial.has_failed() {
        Accelerator::Tcg
    } else {
        choice.accelerator
    };
    tracing::info!(%accelerator, reason = choice.reason, "accelerator");
    match boot(accelerator).await {
        Err(error) if choice.needs_trial && accelerator == Accelerator::Kvm => {
            tracing::warn!(error = error.chain(), "the trial boot with KVM failed: using TCG");
            trial.record_failure();
            boot(Accelerator::Tcg).await
        }
        result => result,
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

fn of_machine(root: &Path) -> AcceleratorChoice {
    let tcg = |reason: &str| AcceleratorChoice {
        accelerator: Accelerator::Tcg,
        reason: reason.to_owned(),
        needs_trial: false,
    };
    if fs::OpenOptions::new().read(true).write(true).open(root.join("dev/kvm")).is_err() {
        return tcg("/dev/kvm cannot be opened");
    }
    if root.join("sys/module/kvm_pvm").exists() {
        return tcg("/dev/kvm belongs to kvm_pvm, which cannot run an ordinary kernel");
    }
    let cpuinfo = fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
    if !cpuinfo.split_whitespace().any(|flag| flag == "vmx" || flag == "svm") {
        return tcg("the processor has neither VMX nor SVM");
    }
    AcceleratorChoice {
        accelerator: Accelerator::Kvm,
        reason: "/dev/kvm can be opened".to_owned(),
        needs_trial: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_trial_is_remembered_until_the_next_boot() {
        let directory = tempfile::tempdir().unwrap();
        let trial = KvmTrial::new(directory.path());
        assert!(!trial.has_failed());
        trial.record_failure();
        assert!(KvmTrial::new(directory.path()).has_failed());
        let rebooted = KvmTrial { boot: "another".to_owned(), ..KvmTrial::new(directory.path()) };
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
    fn properties_of_the_machine_decide(
        #[case] modules: &[&str],
        #[case] flags: &str,
        #[case] kvm: bool,
        #[case] expected: Accelerator,
    ) {
        let root = machine(modules, flags, kvm);
        let choice = of_machine(root.path());
        assert_eq!(choice.accelerator, expected);
        assert_eq!(
            choice.needs_trial,
            expected == Accelerator::Kvm,
            "KVM is used only after a trial boot"
        );
    }
}
