//! How a volume's file system is to be mounted: the options of the command line, and their checks.
//! The rules of mount options are those of the guest.

use std::path::PathBuf;

use block_volume_api::{FILE_SYSTEMS, check_mount_option};
use clap::{Args, builder::PossibleValuesParser};

use crate::{
    Error,
    fs_group::{FsGroup, FsGroupChange},
    kata::mount_info::MountInfo,
    qemu::mount::MountRecord,
};

/// The largest group ID: `chown(2)` takes the next number for "leave it unchanged".
const MAX_ID: i64 = u32::MAX as i64 - 1;
/// The maximum number of options that the guest takes.
const MAX_OPTIONS: usize = 32;

/// How the file systems of the call are mounted.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Mounts")]
#[group(skip)]
pub struct MountArgs {
    /// Type of the file systems [default: the one that the guest finds on each volume]
    #[arg(long, value_name = "TYPE", requires = "mount_path",
        value_parser = PossibleValuesParser::new(FILE_SYSTEMS.iter().copied()))]
    pub fs_type: Option<String>,

    /// Mount options, such as noatime,commit=30. Options that reach beyond the volume, such as dev,
    /// suid and errors=panic, are refused
    #[arg(long, value_name = "OPTIONS", requires = "mount_path", value_delimiter = ',')]
    pub mount_options: Vec<String>,

    /// Give all files to this group, which may then read and write what their owners may
    #[arg(long, value_name = "GID", requires = "mount_path",
        value_parser = clap::value_parser!(u32).range(..=MAX_ID))]
    pub fs_group: Option<u32>,

    /// When the group of the files is changed [default: Always]
    #[arg(long, value_name = "POLICY", requires = "fs_group", value_enum)]
    pub fs_group_change_policy: Option<FsGroupChange>,

    /// Take the volume and how it is mounted from Kata's mountInfo.json of a direct-assigned
    /// volume; `-`: from standard input
    #[arg(long, value_name = "FILE", requires = "mount_path",
        conflicts_with_all = ["block_volume", "fs_type", "mount_options", "fs_group"])]
    pub mount_info: Option<PathBuf>,
}

/// A mount that is requested, and its access.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestedMount {
    pub(crate) mount: MountRecord,
    pub(crate) read_only: bool,
}

impl MountArgs {
    /// What is requested, from the options or from Kata's `info`; `read_only` was requested beside
    /// it.
    ///
    /// # Errors
    /// Nothing could be mounted like this.
    pub(crate) fn requested(
        &self,
        info: Option<&MountInfo>,
        read_only: bool,
    ) -> Result<RequestedMount, Error> {
        let (fs_type, options, fs_group) = match info {
            Some(info) => (info.fs_type.clone(), info.options.clone(), info.fs_group),
            None => {
                let change = self.fs_group_change_policy.unwrap_or_default();
                let fs_group = self.fs_group.map(|gid| FsGroup { gid, change });
                (self.fs_type.clone().unwrap_or_default(), self.mount_options.clone(), fs_group)
            }
        };
        let has = |name: &str| options.iter().any(|option| option == name);
        let (ro, rw) = (has("ro"), has("rw"));
        if rw && (ro || read_only) {
            return Err(usage(
                "the mount option rw contradicts ro or --read-only: give one of them",
            ));
        }
        let read_only = read_only || ro;
        if let (Some(group), true) = (fs_group, read_only) {
            return Err(Error::Usage {
                text: format!(
                    "the group {} cannot be given to files that can only be read: leave out \
                     --fs-group, or what makes the volume read-only",
                    group.gid
                ),
            });
        }
        // What is left is neither the access nor a word for nothing in particular.
        let is_plain = |option: &String| !matches!(option.as_str(), "ro" | "rw" | "defaults");
        let options: Vec<_> = options.into_iter().filter(is_plain).collect();
        if options.len() > MAX_OPTIONS {
            return Err(Error::Usage {
                text: format!("{} mount options are more than {MAX_OPTIONS}", options.len()),
            });
        }
        let known = (!fs_type.is_empty()).then_some(fs_type.as_str());
        for option in &options {
            check_mount_option(known, option)
                .map_err(|rule| Error::MountOption { option: option.clone(), rule })?;
        }
        Ok(RequestedMount { mount: MountRecord { fs_type, options, fs_group }, read_only })
    }
}

fn usage(text: &str) -> Error {
    Error::Usage { text: text.to_owned() }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rstest::rstest;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[arg(long)]
        block_volume: Option<String>,

        #[arg(long)]
        mount_path: Option<String>,

        #[command(flatten)]
        mount: MountArgs,
    }

    fn parse(words: &[&str]) -> Result<RequestedMount, String> {
        let line = Line::try_parse_from([&["x", "--mount-path", "/m"], words].concat());
        let line = line.map_err(|e| e.to_string())?;
        line.mount.requested(None, false).map_err(|e| e.message())
    }

    #[test]
    fn options_are_lists_and_the_access_is_none_of_them() {
        let words = ["--mount-options", "noatime,ro", "--mount-options", "defaults,commit=5"];
        let RequestedMount { mount, read_only } = parse(&words).unwrap();
        assert_eq!((mount.options, read_only), (vec!["noatime".into(), "commit=5".into()], true));
        assert!(!parse(&["--mount-options", "rw"]).unwrap().read_only);
        assert_eq!(parse(&[]).unwrap().mount, MountRecord::default());
    }

    #[test]
    fn a_group_is_given_always_unless_another_policy_is_named() {
        let group = |words: &[&str]| parse(words).unwrap().mount.fs_group.unwrap();
        let always = FsGroup { gid: 7, change: FsGroupChange::Always };
        assert_eq!(group(&["--fs-group", "7"]), always);
        let words = ["--fs-group", "7", "--fs-group-change-policy", "OnRootMismatch"];
        assert_eq!(group(&words).change, FsGroupChange::OnRootMismatch);
    }

    #[rstest]
    #[case(&["--mount-options", "dev"], "device node")]
    #[case(&["--mount-options", "noatime,suid"], "suid")]
    #[case(&["--mount-options", "usrquota"], "usrquota")]
    #[case(&["--mount-options", "noatime,"], r#""""#)]
    #[case(&["--fs-type", "xfs", "--mount-options", "commit=5"], "commit=5")]
    #[case(&["--mount-options", "ro,rw"], "contradicts")]
    #[case(&["--mount-options", "ro", "--fs-group", "5"], "only be read")]
    #[case(&["--fs-type", "nfs"], "possible values: ext2")]
    #[case(&["--fs-group", "4294967295"], "4294967295")]
    #[case(&["--fs-group-change-policy", "Always"], "--fs-group")]
    #[case(&["--fs-group", "1", "--fs-group-change-policy", "Never"], "OnRootMismatch")]
    #[case(&["--mount-info", "-", "--fs-type", "xfs"], "cannot be used with")]
    #[case(&["--mount-info", "-", "--block-volume", "x"], "cannot be used with")]
    fn what_cannot_be_mounted_is_refused(#[case] words: &[&str], #[case] why: &str) {
        let error = parse(words).unwrap_err();
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn there_are_as_many_options_as_the_guest_takes() {
        let many = vec!["noatime"; MAX_OPTIONS + 1].join(",");
        let error = parse(&["--mount-options", &many]).unwrap_err();
        assert!(error.contains("33 mount options"), "{error}");
    }

    #[test]
    fn without_a_mount_there_is_nothing_to_set() {
        for words in [["--fs-type", "xfs"], ["--fs-group", "5"], ["--mount-info", "f"]] {
            let error = Line::try_parse_from([&["x"], &words[..]].concat()).unwrap_err();
            assert!(error.to_string().contains("--mount-path"), "{error}");
        }
    }
}
