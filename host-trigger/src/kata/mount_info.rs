//! `mountInfo.json` of Kata's [direct-assigned
//! volumes](https://github.com/kata-containers/kata-containers/blob/main/docs/design/direct-blk-device-assignment.md):
//! what a CSI driver says of a volume, for Kata to mount it when a container is made. Its keys have
//! two spellings, that of the Go runtime (`volume-type`, `fstype`) and that of the Rust runtime. A
//! key that is not known is an error, as it may ask for something that is not done here.

use std::{
    fs::OpenOptions,
    io::{self, Read},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use block_volume_api::FILE_SYSTEMS;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde::Deserialize;

use crate::{
    Deadline, Error,
    fs_group::{FsGroup, FsGroupChange},
};

/// The maximum size in bytes.
const MAX_SIZE: usize = 64 << 10;
/// The types of volumes that are block devices or images, as the Go and the Rust runtime name them.
const BLOCK_TYPES: [&str; 2] = ["block", "directvol"];

/// What is known of a volume and its mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountInfo {
    /// The path of the volume on the host.
    pub(crate) device: PathBuf,
    /// The type of the file system; empty if it is not named.
    pub(crate) fs_type: String,
    /// The mount options.
    pub(crate) options: Vec<String>,
    /// The group of the files.
    pub(crate) fs_group: Option<FsGroup>,
}

/// The form in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(rename = "volume-type", alias = "volume_type")]
    volume_type: String,
    device: PathBuf,
    #[serde(rename = "fstype", alias = "fs_type", default)]
    fs_type: String,
    #[serde(default)]
    metadata: Option<Metadata>,
    #[serde(default)]
    options: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    #[serde(rename = "fsGroup")]
    fs_group: Option<String>,
    #[serde(rename = "fsGroupChangePolicy")]
    fs_group_change_policy: Option<FsGroupChange>,
}

impl MountInfo {
    /// Reads the file `path`, or standard input if it is `-`.
    ///
    /// # Errors
    /// It cannot be read until the deadline, or is not valid.
    pub(crate) fn read(path: &Path, deadline: Deadline) -> Result<Self, Error> {
        let text = match path.as_os_str() == "-" {
            true => read_until_end(&mut io::stdin().lock(), deadline),
            false => read_file(path, deadline),
        };
        let text = text.map_err(|e| match e.kind() {
            io::ErrorKind::TimedOut => {
                Error::TimedOut { what: format!("the end of {}", path.display()) }
            }
            _ => invalid(path, e),
        })?;
        Self::parse(&text).map_err(|why| invalid(path, why))
    }

    /// Parses the document.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        let document: Document = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        let Document { volume_type, device, fs_type, metadata, options } = document;
        if !BLOCK_TYPES.contains(&volume_type.as_str()) {
            return Err(format!("its volume-type {volume_type:?} is not \"block\""));
        }
        if !device.is_absolute() {
            return Err(format!("its device {device:?} is not an absolute path"));
        }
        if !fs_type.is_empty() && !FILE_SYSTEMS.contains(&fs_type.as_str()) {
            let all = FILE_SYSTEMS.join(", ");
            return Err(format!("its fstype {fs_type:?} is none of {all}"));
        }
        let Metadata { fs_group, fs_group_change_policy } = metadata.unwrap_or_default();
        let change = fs_group_change_policy.unwrap_or_default();
        let gid = match (&fs_group, fs_group_change_policy) {
            (None, Some(_)) => return Err("it has fsGroupChangePolicy without fsGroup".to_owned()),
            (None, None) => None,
            (Some(gid), _) => {
                let parsed = gid.parse().ok().filter(|gid| *gid < u32::MAX);
                Some(parsed.ok_or_else(|| format!("its fsGroup {gid:?} is not a group's ID"))?)
            }
        };
        let fs_group = gid.map(|gid| FsGroup { gid, change });
        Ok(Self { device, fs_type, options: options.unwrap_or_default(), fs_group })
    }
}

fn invalid(path: &Path, why: impl ToString) -> Error {
    Error::MountInfo { path: path.to_owned(), why: why.to_string() }
}

fn read_file(path: &Path, deadline: Deadline) -> io::Result<Vec<u8>> {
    // To open a FIFO or a device for reading may wait.
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    read_until_end(&mut file, deadline)
}

/// Reads everything, if it is not too much and comes in time.
fn read_until_end(source: &mut (impl Read + AsFd), deadline: Deadline) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    loop {
        await_input(source, deadline)?;
        let mut part = [0; 4096];
        let count = source.read(&mut part)?;
        text.extend_from_slice(&part[..count]);
        if text.len() > MAX_SIZE {
            return Err(io::Error::other(format!("it has more than {MAX_SIZE} bytes")));
        }
        if count == 0 {
            return Ok(text);
        }
    }
}

/// Waits until a read returns at once.
fn await_input(source: &impl AsFd, deadline: Deadline) -> io::Result<()> {
    loop {
        let time = PollTimeout::try_from(deadline.remaining()).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(source.as_fd(), PollFlags::POLLIN)], time) {
            Ok(0) if deadline.remaining().is_zero() => return Err(io::ErrorKind::TimedOut.into()),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use rstest::rstest;

    use super::*;

    fn parse(text: &str) -> Result<MountInfo, String> {
        MountInfo::parse(text.as_bytes())
    }

    #[test]
    fn what_csi_drivers_write_is_read() {
        let text = r#"{"volume-type":"block","device":"/dev/vg/data","fstype":"ext4",
            "metadata":{"fsGroup":"2000","fsGroupChangePolicy":"OnRootMismatch"},
            "options":["noatime","ro"]}"#;
        let expected = MountInfo {
            device: "/dev/vg/data".into(),
            fs_type: "ext4".into(),
            options: vec!["noatime".into(), "ro".into()],
            fs_group: Some(FsGroup { gid: 2000, change: FsGroupChange::OnRootMismatch }),
        };
        assert_eq!(parse(text), Ok(expected));
    }

    #[test]
    fn both_spellings_are_known_and_the_rest_may_be_missing() {
        let text =
            r#"{"volume_type":"directvol","device":"/a.img","fs_type":"xfs","metadata":null}"#;
        let info = parse(text).unwrap();
        assert_eq!((info.fs_type.as_str(), info.options.len(), info.fs_group), ("xfs", 0, None));
        let least = parse(r#"{"volume-type":"block","device":"/dev/sdx"}"#).unwrap();
        assert_eq!(least.fs_type, "");
    }

    #[rstest]
    #[case("{", "EOF")]
    #[case(r#"{"device":"/a"}"#, "volume-type")]
    #[case(r#"{"volume-type":"block"}"#, "device")]
    #[case(r#"{"volume-type":"block","device":"/a","Size":1}"#, "Size")]
    #[case(
        r#"{"volume-type":"block","device":"/a","metadata":{"createFilesystem":"true"}}"#,
        "createFilesystem"
    )]
    #[case(
        r#"{"volume-type":"block","device":"/a","metadata":{"encryptionKey":"x"}}"#,
        "encryptionKey"
    )]
    #[case(r#"{"volume-type":"block","device":"a"}"#, "absolute")]
    #[case(r#"{"volume-type":"spdkvol","device":"/a"}"#, "spdkvol")]
    #[case(r#"{"volume-type":"block","device":"/a","fstype":"nfs"}"#, "\"nfs\" is none of ext2, ")]
    #[case(r#"{"volume-type":"block","device":"/a","metadata":{"fsGroup":"-1"}}"#, "-1")]
    #[case(
        r#"{"volume-type":"block","device":"/a","metadata":{"fsGroup":"4294967295"}}"#,
        "4294967295"
    )]
    #[case(r#"{"volume-type":"block","device":"/a","metadata":{"fsGroup":5}}"#, "string")]
    #[case(r#"{"volume-type":"block","device":"/a","metadata":{"fsGroup":"1","fsGroupChangePolicy":"Never"}}"#, "Never")]
    #[case(
        r#"{"volume-type":"block","device":"/a","metadata":{"fsGroupChangePolicy":"Always"}}"#,
        "without fsGroup"
    )]
    #[case(r#"{"volume-type":"block","device":"/a"} {}"#, "trailing")]
    fn what_is_not_understood_is_named(#[case] text: &str, #[case] named: &str) {
        let why = parse(text).unwrap_err();
        assert!(why.contains(named), "{why}");
    }

    #[test]
    fn only_a_regular_file_of_bounded_size_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let read = |name: &str| {
            let path = directory.path().join(name);
            MountInfo::read(&path, Deadline::after(Duration::from_secs(9)))
        };
        let fails = |name: &str, why: &str| {
            let error = read(name).unwrap_err();
            assert_eq!(error.class().reason, "invalid_mount_info");
            assert!(error.message().contains(why), "{}", error.message());
        };
        fs::write(directory.path().join("a"), r#"{"volume-type":"block","device":"/a"}"#).unwrap();
        assert_eq!(read("a").unwrap().device, Path::new("/a"));
        fs::write(directory.path().join("large"), " ".repeat((64 << 10) + 1)).unwrap();
        fails("large", "more than 65536 bytes");
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        fails("fifo", "no regular file");
        fails("", "no regular file");
        fails("missing", "No such file");
    }

    #[test]
    fn a_writer_that_does_not_end_is_not_awaited_for_ever() {
        let (mut reader, _writer) = io::pipe().unwrap();
        let error = read_until_end(&mut reader, Deadline::after(Duration::ZERO)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
