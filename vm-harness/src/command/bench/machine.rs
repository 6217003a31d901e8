//! What a reader needs to compare a report with that of another machine.

use std::{fs, process::Command};

use serde::Serialize;
use vm_harness::Error;

use super::subject::Subject;

/// The machine, and the versions of all that was measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct MachineFacts {
    pub(super) date: String,
    pub(super) commit: String,
    pub(super) cpu: String,
    pub(super) cpus: usize,
    pub(super) governor: String,
    pub(super) load_average: String,
    pub(super) kernel: String,
    pub(super) guest_kernel: String,
    pub(super) qemu: String,
    pub(super) accelerator: String,
    /// Without it `virsh` was not compared.
    pub(super) libvirt: Option<String>,
}

impl MachineFacts {
    pub(super) async fn of(subject: &Subject) -> Result<Self, Error> {
        let sandbox = &subject.sandbox;
        let libvirt = match &subject.virsh {
            Some(virsh) => Some(virsh.version().await?),
            None => None,
        };
        let guest = sandbox.observer().run(&["/bin/busybox", "uname", "-r"]).await?;
        Ok(Self {
            date: printed("date", &["--utc", "+%Y-%m-%d %H:%M UTC"]),
            commit: printed("git", &["describe", "--always", "--dirty", "--abbrev=12"]),
            cpu: cpu(&read("/proc/cpuinfo")),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            governor: match read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").trim() {
                "" => "none".to_owned(),
                governor => governor.to_owned(),
            },
            load_average: load_average(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            guest_kernel: guest.stdout.trim().to_owned(),
            qemu: sandbox.qemu_version().await?,
            accelerator: sandbox.guest().accelerator().to_string(),
            libvirt,
        })
    }

    /// Returns the facts as pairs of a name and a value.
    pub(super) fn pairs(&self) -> Vec<(&'static str, String)> {
        let libvirt = self.libvirt.clone().unwrap_or_else(|| "not compared".to_owned());
        vec![
            ("date", self.date.clone()),
            ("commit", self.commit.clone()),
            ("CPU", format!("{}, {} of them", self.cpu, self.cpus)),
            ("governor", self.governor.clone()),
            ("load average before the run", self.load_average.clone()),
            ("kernel", self.kernel.clone()),
            ("kernel of the guest", self.guest_kernel.clone()),
            ("QEMU", format!("{}, accelerator {}", self.qemu, self.accelerator)),
            ("libvirt", libvirt),
        ]
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn load_average() -> String {
    read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Returns the model's name from `/proc/cpuinfo`.
fn cpu(cpuinfo: &str) -> String {
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or("unknown", |(_, name)| name).to_owned()
}

/// Returns what a program prints, or `unknown`.
fn printed(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().ok();
    let output = output.filter(|output| output.status.success());
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_of_the_processor_is_found() {
        let cpuinfo = "processor\t: 0\nmodel\t\t: 17\nmodel name\t: AMD EPYC 7: x\n";
        assert_eq!(cpu(cpuinfo), "AMD EPYC 7: x");
        assert_eq!(cpu(""), "unknown");
    }
}
