//! What the guest did for a volume: checked against what it was asked for, and noted in QEMU beside
//! the intent, on a descriptor of `/dev/null`
//! ([`add-fd`](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html#command-QMP-misc.add-fd)).
//! With that note a volume is plugged.

use std::fs::OpenOptions;

use block_volume_api::block_volume::{Attached, Attachment};
use serde_json::json;

use crate::{
    Error,
    printable::printable,
    record::{Placement, Record, filter_name, node_way_name},
    undo,
};
use block_volume_qmp::{PassedFd, Qmp};

/// The most directories that the guest may have made for one node.
const MOST_PARENTS: usize = 64;

/// Does the guest tell of the volume that it was asked for?
pub(crate) fn check(asked: &Attachment, attached: &Attached) -> Result<(), Error> {
    let outcome = attached.outcome.as_ref().ok_or_else(|| answer("no outcome"))?;
    match () {
        () if attached.serial != asked.serial => Err(answer("another serial")),
        () if attached.size != asked.size => Err(answer("another size")),
        () if attached.read_only != undo::is_read_only(asked) => Err(answer("another access")),
        () if outcome.device.is_none() => Err(answer("no device number")),
        () if outcome.parents_made.len() > MOST_PARENTS => Err(answer("too many directories")),
        () if !outcome.parents_made.iter().all(|made| is_above(made, &asked.path)) => {
            Err(answer("a directory that is not above the path"))
        }
        () => Ok(()),
    }
}

/// QEMU takes a record in slowly: what the guest adds to one is no longer than what it was asked.
fn is_above(directory: &str, path: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|below| below.starts_with('/'))
        && !directory.is_empty()
}

pub(crate) fn answer(what: &str) -> Error {
    Error::AgentAnswer { method: "Attach", what: what.to_owned() }
}

/// What is noted of a volume on the controller with this id.
pub(crate) fn placement(controller: &str, asked: &Attachment, attached: &Attached) -> Placement {
    let outcome = attached.outcome.clone().unwrap_or_default();
    let device = outcome.device.unwrap_or_default();
    let address = asked.address.clone().unwrap_or_default();
    Placement {
        v: 1,
        further: None,
        committed: true,
        controller: controller.to_owned(),
        target: address.target,
        lun: address.lun,
        guest_device: printable(&attached.guest_device),
        major: device.major,
        minor: device.minor,
        node: node_way_name(outcome.node.enum_value_or_default()).to_owned(),
        filter: filter_name(outcome.filter.enum_value_or_default()).to_owned(),
        parents_made: outcome.parents_made,
        allowed_before: outcome.allowed_before,
        started: outcome.container_started,
    }
}

/// Notes `placement` in the set `set`, in place of the one that `before` carries.
///
/// # Errors
/// QEMU refuses, or does not answer.
pub(crate) async fn write(
    qmp: &mut Qmp,
    set: u64,
    before: Option<PassedFd>,
    placement: &Placement,
) -> Result<(), Error> {
    note(qmp, set, placement).await?;
    if let Some(PassedFd { set, fd }) = before {
        qmp.execute("remove-fd", json!({"fdset-id": set, "fd": fd})).await?;
    }
    Ok(())
}

/// Notes `placement` in the set `set`, beside what is there.
///
/// # Errors
/// QEMU refuses, or does not answer.
pub(crate) async fn note(
    qmp: &mut Qmp,
    set: u64,
    placement: &Placement,
) -> Result<PassedFd, Error> {
    let null = OpenOptions::new().write(true).open("/dev/null");
    let null = null.map_err(|e| Error::system("open", "/dev/null", e))?;
    Ok(qmp.add_fd(null, Some(set), &Record::Placement(placement.clone()).to_opaque()).await?)
}

#[cfg(test)]
mod tests {
    use block_volume_api::block_volume::{DeviceNumber, Outcome};
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::none(&[], true)]
    #[case::those_above(&["/data", "/data/a"], true)]
    #[case::the_path_itself(&["/data/a/b"], false)]
    #[case::a_sibling_of_the_same_beginning(&["/dat"], false)]
    #[case::elsewhere(&["/etc"], false)]
    #[case::empty(&[""], false)]
    fn only_directories_above_the_path_are_noted(#[case] made: &[&str], #[case] noted: bool) {
        let asked = Attachment { path: "/data/a/b".into(), ..Default::default() };
        let outcome = Outcome {
            device: Some(DeviceNumber::default()).into(),
            parents_made: made.iter().map(|&path| path.into()).collect(),
            ..Default::default()
        };
        let attached = Attached { outcome: Some(outcome).into(), ..Default::default() };
        // A request without an access is one to write.
        assert_eq!(check(&asked, &attached).is_ok(), noted);
    }
}
