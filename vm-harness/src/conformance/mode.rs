//! What the guest is like: a VM each.

use std::{fs, path::Path};

use image_builder::image;
use serde::Serialize;

use crate::{Cgroup, Machine, Scan};

/// A kind of guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// cgroup v2, disks appear only when they are asked for, as with Kata's Go runtime
    V2,
    /// cgroup v1, else the same
    V1,
    /// cgroup v2, and the kernel finds disks by itself, as with Kata's Rust runtime
    V2Scan,
}

impl Mode {
    /// In the order in which they run.
    pub const ALL: [Self; 3] = [Self::V2, Self::V1, Self::V2Scan];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::V2 => "v2",
            Self::V1 => "v1",
            Self::V2Scan => "v2-scan",
        }
    }

    /// For people.
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

    /// Why the kernel of the image in `directory` has no such mode, where its package tells.
    pub(super) fn refused_by(self, directory: &Path) -> Option<String> {
        let image = image::read(directory)?;
        let package = &image.recipe.kernel;
        // Debian 14's packages have it beside the modules.
        let places = [
            format!("boot/config-{}", image.kernel),
            format!("usr/lib/modules/{}/config", image.kernel),
        ];
        let config =
            places.iter().find_map(|place| fs::read_to_string(package.join(place)).ok())?;
        let option = self.missing_in(&config)?;
        Some(format!("kernel {} was built without {option}", image.kernel))
    }

    /// The option that this mode needs and `config` says no to. An option that it does not name is
    /// of another version's.
    fn missing_in(self, config: &str) -> Option<&'static str> {
        // Since 6.11 and 6.12 a kernel may have cgroup v1 without these two, and kata-agent does
        // not start there.
        let needed: &[&str] = match self {
            Self::V1 => &["CONFIG_CGROUP_DEVICE", "CONFIG_CPUSETS_V1", "CONFIG_MEMCG_V1"],
            Self::V2 | Self::V2Scan => &["CONFIG_CGROUPS"],
        };
        let refused = |option: &&&str| config.contains(&format!("# {option} is not set"));
        needed.iter().find(refused).copied()
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
    fn a_kernel_without_cgroup_v1_has_no_such_mode(
        #[case] config: &str,
        #[case] expected: Option<&str>,
    ) {
        assert_eq!(Mode::V1.missing_in(config), expected);
        assert_eq!(Mode::V2.missing_in(config), None);
    }
}
