//! Mount options: those of the mount
//! ([fsmount(2)](https://man7.org/linux/man-pages/man2/fsmount.2.html)), and those of the file
//! system ([fsconfig(2)](https://man7.org/linux/man-pages/man2/fsconfig.2.html)).

use super::kind::Kind;
use crate::{api::check_mount_option, fault};

/// Always: an image with a device node or a set-user-ID program inside gives no rights.
const ALWAYS: u64 = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID;

/// What the kernel does at an error of the volume. Without this option the superblock of ext2 to
/// ext4 decides, and the volume's maker may have set it to a panic of the whole guest.
const ERRORS: &str = "errors";

/// Mount options that were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// `MOUNT_ATTR_…`.
    pub(crate) attributes: u64,
    /// Of the file system, with their values.
    pub(crate) parameters: Vec<(String, Option<String>)>,
}

impl Options {
    /// Checks options for a type of file system.
    ///
    /// # Errors
    /// The first option that is not possible, and the rule that it breaks.
    pub(crate) fn new(
        kind: Kind,
        options: &[String],
        read_only: bool,
    ) -> Result<Options, (String, &'static str)> {
        let mut attributes = if fault::skips("nodev") { 0 } else { ALWAYS };
        let mut parameters = Vec::new();
        if read_only {
            attributes |= libc::MOUNT_ATTR_RDONLY;
            if !fault::skips("read-only") {
                parameters.push(("ro".to_owned(), None));
            }
        }
        for option in options {
            check_mount_option(Some(kind.name()), option).map_err(|rule| (option.clone(), rule))?;
            let time = |time| (attributes & !libc::MOUNT_ATTR__ATIME) | time;
            attributes = match option.as_str() {
                "nodev" | "nosuid" | "async" => attributes,
                "exec" => attributes & !libc::MOUNT_ATTR_NOEXEC,
                "noexec" => attributes | libc::MOUNT_ATTR_NOEXEC,
                "atime" | "relatime" => time(libc::MOUNT_ATTR_RELATIME),
                "noatime" => time(libc::MOUNT_ATTR_NOATIME),
                "strictatime" => time(libc::MOUNT_ATTR_STRICTATIME),
                "diratime" => attributes & !libc::MOUNT_ATTR_NODIRATIME,
                "nodiratime" => attributes | libc::MOUNT_ATTR_NODIRATIME,
                "nosymfollow" => attributes | libc::MOUNT_ATTR_NOSYMFOLLOW,
                other => {
                    let (name, value) = match other.split_once('=') {
                        Some((name, value)) => (name, Some(value.to_owned())),
                        None => (other, None),
                    };
                    parameters.push((name.to_owned(), value));
                    attributes
                }
            };
        }
        let has_errors = parameters.iter().any(|(name, _)| name == ERRORS);
        if matches!(kind, Kind::Ext2 | Kind::Ext3 | Kind::Ext4) && !has_errors {
            parameters.push((ERRORS.to_owned(), Some("remount-ro".to_owned())));
        }
        Ok(Options { attributes, parameters })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(list: &[&str], read_only: bool) -> Result<Options, (String, &'static str)> {
        let list: Vec<String> = list.iter().copied().map(str::to_owned).collect();
        Options::new(Kind::Ext4, &list, read_only)
    }

    #[test]
    fn a_mount_is_always_nodev_and_nosuid() {
        assert_eq!(options(&[], false).unwrap().attributes, ALWAYS);
        assert_eq!(options(&["nodev", "nosuid"], false).unwrap().attributes, ALWAYS);
        assert_eq!(options(&["noexec", "dev"], false).unwrap_err().0, "dev");
    }

    #[test]
    fn a_read_only_one_is_read_only_as_mount_and_as_file_system() {
        let options = options(&[], true).unwrap();
        assert_eq!(options.attributes, ALWAYS | libc::MOUNT_ATTR_RDONLY);
        assert_eq!(options.parameters[0], ("ro".to_owned(), None));
    }

    #[test]
    fn an_error_of_the_volume_never_ends_the_guest_whatever_the_superblock_says() {
        let of = |kind, list: &[&str]| {
            let list: Vec<String> = list.iter().copied().map(str::to_owned).collect();
            Options::new(kind, &list, false).unwrap().parameters
        };
        let set = |value: &str| [("errors".to_owned(), Some(value.to_owned()))];
        for kind in [Kind::Ext2, Kind::Ext3, Kind::Ext4] {
            assert_eq!(of(kind, &[]), set("remount-ro"));
            assert_eq!(of(kind, &["errors=continue"]), set("continue"));
        }
        assert_eq!(of(Kind::Xfs, &[]), []);
    }

    #[test]
    fn options_go_to_the_mount_or_to_the_file_system() {
        let options = options(&["noatime", "commit=5", "nodiratime", "sync"], false).unwrap();
        let times = libc::MOUNT_ATTR_NOATIME | libc::MOUNT_ATTR_NODIRATIME;
        assert_eq!(options.attributes, ALWAYS | times);
        let expected = [("commit".to_owned(), Some("5".to_owned())), ("sync".to_owned(), None)];
        assert_eq!(options.parameters[..2], expected);
    }
}
