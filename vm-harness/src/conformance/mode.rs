//! The kinds of guests that the suite runs in, a VM each.

use std::{fs, path::Path};

use image_builder::image;
use serde::Serialize;

use crate::{Cgroup, Machine, Scan};

/// A kind of guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// cgroup v2, disks appear only on request, as with Kata's Go runtime
    V2,
    /// cgroup v1, otherwise as v2
    V1,
    /// cgroup v2, the kernel finds disks by itself, as with Kata's Rust runtime
    V2Scan,
}

impl Mode {
    /// All modes, in the order in which they run.
    pub const ALL: [Self; 3] = [Self::V2, Self::V1, Self::V2Scan];

    /// Returns its name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::V2 => "v2",
            Self::V1 => "v1",
            Self::V2Scan => "v2-scan",
        }
    }

    /// Returns its properties as text.
    pub fn description(self) -> &'static str {
        match self {
            Self::V2 => "cgroup v2, scsi_mod.scan=none",
            Self::V1 => "cgroup v1, scsi_mod.scan=none",
            Self::V2Scan => "cgroup v2, scsi_mod.scan=async",
        }
    }

    pub(super) fn machine(self, kernel_parameters: &[String]) -> Machine {
        let (cgroup, scan) = match self {
            Self::V2 => (Cgroup::V2, Scan::None),
            Self::V1 => (Cgroup::V1, Scan::None),
            Self::V2Scan => (Cgroup::V2, Scan::Async),
        };
        Machine {
            cgroup,
            scan,
            kernel_parameters: kernel_parameters.to_vec(),
            ..Machine::default()
        }
    }

    /// Returns why the kernel of the image in `directory` does not support this mode, if the
    /// configuration in its package shows it.
    pub(super) fn refused_by(self, directory: &Path) -> Option<String> {
        let image = image::read(directory)?;
        let package = &image.recipe.kernel;
        // Debian 14's packages have the configuration beside the modules.
        let candidates = [
            format!("boot/config-{}", image.kernel),
            format!("usr/lib/modules/{}/config", image.kernel),
        ];
        let config =
            candidates.iter().find_map(|path| fs::read_to_string(package.join(path)).ok())?;
        let option = self.missing_in(&config)?;
        Some(format!("kernel {} was built without {option}", image.kernel))
    }

    /// Returns an option that this mode needs and `config` has not set. Options that `config` does
    /// not mention do not exist in that kernel version.
    fn missing_in(self, config: &str) -> Option<&'static str> {
        // Since 6.11 and 6.12 a kernel may have cgroup v1 without CPUSETS_V1 and MEMCG_V1, and
        // kata-agent does not start with it.
        let needed: &[&str] = match self {
            Self::V1 => &["CONFIG_CGROUP_DEVICE", "CONFIG_CPUSETS_V1", "CONFIG_MEMCG_V1"],
            Self::V2 | Self::V2Scan => &["CONFIG_CGROUPS"],
        };
        let not_set = |option: &&&str| config.contains(&format!("# {option} is not set"));
        needed.iter().find(not_set).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case::new_kernel_without(
        "CONFIG_CGROUP_DEVICE=y\n# CONFIG_CPUSETS_V1 is not set\n",
        Some("CONFIG_CPUSETS_V1")
    )]
    #[case::old_kernel("CONFIG_CGROUP_DEVICE=y\nCONFIG_CPUSETS=y\n", None)]
    #[case::new_kernel_with(
        "CONFIG_CGROUP_DEVICE=y\nCONFIG_CPUSETS_V1=y\nCONFIG_MEMCG_V1=y\n",
        None
    )]
    fn kernel_without_cgroup_v1_does_not_support_the_mode(
        #[case] config: &str,
        #[case] expected: Option<&str>,
    ) {
        assert_eq!(Mode::V1.missing_in(config), expected);
        assert_eq!(Mode::V2.missing_in(config), None);
    }
}
