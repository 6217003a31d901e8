//! The commit: the guest's reply is checked against the request and recorded in QEMU beside the
//! intent, on a descriptor of `/dev/null`
//! ([`add-fd`](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html#command-QMP-misc.add-fd)).
//! With this record a volume is attached.

use std::fs::{File, OpenOptions};

use block_volume_api::{
    FILE_SYSTEMS,
    block_volume::{Attached, Attachment, NodeWay, Outcome},
};
use block_volume_qmp::{Command, PassedFd, Qmp};

use super::guest_request::is_read_only;
use crate::{
    Error,
    qemu::{
        mount::{MountedRecord, is_same},
        record::{CommitRecord, Record, filter_name, node_kind_name, version},
        removal,
    },
    sanitize::sanitize,
};

/// The maximum number of directories that the guest may have created for one device node.
const MAX_PARENTS: usize = 64;

/// Checks that the guest reports the volume that was requested.
pub(crate) fn check(requested: &Attachment, attached: &Attached) -> Result<(), Error> {
    let outcome = attached.outcome.as_ref().ok_or_else(|| mismatch("no outcome"))?;
    match () {
        () if attached.serial != requested.serial => Err(mismatch("another serial number")),
        () if attached.size != requested.size => Err(mismatch("another size")),
        () if attached.read_only != is_read_only(requested) => Err(mismatch("another access")),
        () if outcome.device.is_none() => Err(mismatch("no device number")),
        () if outcome.parents_made.len() > MAX_PARENTS => Err(mismatch("too many directories")),
        () if !outcome.parents_made.iter().all(|made| may_be_made(made, requested)) => {
            Err(mismatch("a directory that is not above the path"))
        }
        () => check_kind(requested, outcome),
    }
}

/// Checks that the container has the file system exactly if that was requested.
fn check_kind(requested: &Attachment, outcome: &Outcome) -> Result<(), Error> {
    let is_mount = outcome.node == NodeWay::NODE_WAY_MOUNT.into();
    match (requested.mount.as_ref(), outcome.mounted.as_ref()) {
        (None, None) if !is_mount => Ok(()),
        (Some(asked), Some(mounted)) if is_mount => {
            let found = mounted.file_system.as_str();
            // What the guest names is recorded.
            let is_known = FILE_SYSTEMS.contains(&found);
            match is_known && (asked.file_system.is_empty() || is_same(&asked.file_system, found)) {
                true => Ok(()),
                false => Err(mismatch("another file system")),
            }
        }
        _ => Err(mismatch("a device in place of a mount, or a mount in place of a device")),
    }
}

/// Whether the guest may have made `directory` for the request; a mount point is a directory, too.
fn may_be_made(directory: &str, requested: &Attachment) -> bool {
    is_above(directory, &requested.path) || requested.mount.is_some() && directory == requested.path
}

/// Whether `directory` is above `path`. QEMU reads a record slowly, so what the guest adds to one
/// must not be longer than the request.
fn is_above(directory: &str, path: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|below| below.starts_with('/'))
        && !directory.is_empty()
}

/// The error of a reply to `Attach` that does not match.
pub(crate) fn mismatch(what: &str) -> Error {
    Error::AgentReply { method: "Attach", what: what.to_owned() }
}

/// The commit record of a volume on the controller with this ID.
pub(crate) fn record(
    controller: &str,
    requested: &Attachment,
    attached: &Attached,
) -> CommitRecord {
    let outcome = attached.outcome.clone().unwrap_or_default();
    let device = outcome.device.unwrap_or_default();
    let address = requested.address.clone().unwrap_or_default();
    let mounted = outcome.mounted.as_ref().map(MountedRecord::from);
    CommitRecord {
        v: version(mounted.is_some()),
        further: None,
        committed: true,
        controller: controller.to_owned(),
        target: address.target,
        lun: address.lun,
        guest_device: sanitize(&attached.guest_device),
        major: device.major,
        minor: device.minor,
        node: node_kind_name(outcome.node.enum_value_or_default()).to_owned(),
        filter: filter_name(outcome.filter.enum_value_or_default()).to_owned(),
        mounted,
        parents_made: outcome.parents_made,
        allowed_before: outcome.allowed_before,
        started: outcome.container_started,
        errors: outcome.errors_before,
        size: 0,
    }
}

/// A commit record that is to be written to the descriptor set `set`, in the place of the record
/// that `before` carries.
#[derive(Debug)]
pub(crate) struct NewCommit {
    pub(crate) set: u64,
    pub(crate) before: Option<PassedFd>,
    pub(crate) record: CommitRecord,
}

/// Writes all `commits` together. The records before them are removed once all are written. Returns
/// the descriptors that carry the new ones.
///
/// # Errors
/// QEMU refuses, or does not reply.
pub(crate) async fn replace_all(
    qmp: &mut Qmp,
    commits: &[NewCommit],
) -> Result<Vec<PassedFd>, Error> {
    let null = null()?;
    let command = |new: &NewCommit| {
        let text = Record::Commit(new.record.clone()).to_opaque();
        Command::add_fd(&null, Some(new.set), &text)
    };
    let commands: Vec<_> = commits.iter().map(command).collect();
    let mut replies = qmp.send_all(&commands).await;
    let written: Vec<_> = commits.iter().map(|_| replies.read::<PassedFd>()).collect();
    let written = written.into_iter().collect::<Result<Vec<_>, _>>()?;
    for PassedFd { set, fd } in commits.iter().filter_map(|new| new.before) {
        removal::remove_descriptor(qmp, set, Some(fd)).await?;
    }
    Ok(written)
}

/// Writes one commit record as [`replace_all`].
///
/// # Errors
/// As [`replace_all`].
pub(crate) async fn replace(
    qmp: &mut Qmp,
    set: u64,
    before: Option<PassedFd>,
    commit: &CommitRecord,
) -> Result<(), Error> {
    replace_all(qmp, &[NewCommit { set, before, record: commit.clone() }]).await.map(drop)
}

/// Writes `commit` to the descriptor set `set`, beside the records that are there.
///
/// # Errors
/// QEMU refuses, or does not reply.
pub(crate) async fn write(
    qmp: &mut Qmp,
    set: u64,
    commit: &CommitRecord,
) -> Result<PassedFd, Error> {
    Ok(qmp.add_fd(null()?, Some(set), &Record::Commit(commit.clone()).to_opaque()).await?)
}

/// QEMU never reads or writes it: the volume's own descriptor is never open for writing alone.
fn null() -> Result<File, Error> {
    let null = OpenOptions::new().write(true).open("/dev/null");
    null.map_err(|e| Error::system("open", "/dev/null", e))
}

#[cfg(test)]
mod tests {
    use block_volume_api::block_volume::{DeviceNumber, Mount, Mounted};
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::none(&[], true)]
    #[case::those_above(&["/data", "/data/a"], true)]
    #[case::the_path_itself(&["/data/a/b"], false)]
    #[case::a_sibling_with_the_same_prefix(&["/dat"], false)]
    #[case::elsewhere(&["/etc"], false)]
    #[case::empty(&[""], false)]
    fn only_directories_above_the_path_are_recorded(#[case] made: &[&str], #[case] recorded: bool) {
        let requested = Attachment { path: "/data/a/b".into(), ..Default::default() };
        let outcome = Outcome {
            device: Some(DeviceNumber::default()).into(),
            parents_made: made.iter().map(|&path| path.into()).collect(),
            ..Default::default()
        };
        let attached = Attached { outcome: Some(outcome).into(), ..Default::default() };
        // A request without an access asks for writing.
        assert_eq!(check(&requested, &attached).is_ok(), recorded);
    }

    /// A reply to a request for a mount, or for a device.
    fn checked(asked: Option<&str>, mounted: Option<&str>, made: &[&str]) -> bool {
        let mount = asked
            .map(|file_system| Mount { file_system: file_system.into(), ..Default::default() });
        let requested =
            Attachment { path: "/data/a".into(), mount: mount.into(), ..Default::default() };
        let node = match mounted {
            Some(_) => NodeWay::NODE_WAY_MOUNT,
            None => NodeWay::NODE_WAY_BIND,
        };
        let mounted = mounted
            .map(|file_system| Mounted { file_system: file_system.into(), ..Default::default() });
        let outcome = Outcome {
            device: Some(DeviceNumber::default()).into(),
            node: node.into(),
            parents_made: made.iter().map(|&path| path.into()).collect(),
            mounted: mounted.into(),
            ..Default::default()
        };
        let attached = Attached { outcome: Some(outcome).into(), ..Default::default() };
        check(&requested, &attached).is_ok()
    }

    #[rstest]
    #[case::any(Some(""), Some("xfs"), true)]
    #[case::the_one_that_was_named(Some("xfs"), Some("xfs"), true)]
    #[case::of_the_same_family(Some("ext3"), Some("ext4"), true)]
    #[case::another(Some("xfs"), Some("ext4"), false)]
    #[case::an_unknown_one(Some(""), Some("telepathyfs"), false)]
    #[case::a_device_in_its_place(Some(""), None, false)]
    #[case::a_mount_in_the_place_of_a_device(None, Some("ext4"), false)]
    fn a_file_system_is_there_if_it_was_requested(
        #[case] asked: Option<&str>,
        #[case] mounted: Option<&str>,
        #[case] accepted: bool,
    ) {
        assert_eq!(checked(asked, mounted, &[]), accepted);
    }

    #[test]
    fn a_mount_point_may_have_been_made() {
        assert!(checked(Some(""), Some("ext4"), &["/data", "/data/a"]));
        assert!(!checked(Some(""), Some("ext4"), &["/data/b"]));
        assert!(!checked(None, None, &["/data/a"]));
    }
}
