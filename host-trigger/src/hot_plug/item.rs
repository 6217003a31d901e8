//! One volume of a call: what is asked for, what is there, what the guest told of it.

use agent_plugin::contract::block_volume::Attached;

use crate::{
    Error,
    disk::Address,
    limits::Limits,
    printable::printable,
    record::{Access, Intent, Placement, filter_name, node_way_name},
    registry::{Committed, Controller},
    source::Source,
    volume::VolumeId,
};

/// The most directories that the guest may have made for one node.
const MOST_PARENTS: usize = 64;

/// How much of a volume this run may have put into QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Touched {
    Nothing,
    Records,
    Disk,
}

/// One volume of the call.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) id: VolumeId,
    pub(super) source: Source,
    pub(super) intent: Intent,
    /// It was plugged before this run.
    pub(super) plugged: Option<Committed>,
    pub(super) touched: Touched,
    pub(super) set: u64,
    pub(super) controller: Controller,
    pub(super) address: Address,
    pub(super) attached: Option<Attached>,
    /// What QEMU limits it to.
    pub(super) limits: Limits,
}

/// Is what is plugged what is asked for?
pub(super) fn check_same(asked: &Intent, plugged: &Intent) -> Result<(), Error> {
    let volume = asked.id.clone();
    if (&asked.container, &asked.path) != (&plugged.container, &plugged.path) {
        let (container, path) = (plugged.container.clone(), plugged.path.clone());
        return Err(Error::VolumeTaken { volume, container, path });
    }
    let differs: Vec<_> = [
        ("access (--read-only)", asked.access != plugged.access),
        ("owner (--uid)", asked.uid != plugged.uid),
        ("group (--gid)", asked.gid != plugged.gid),
        ("mode (--mode)", asked.mode != plugged.mode),
    ]
    .into_iter()
    .filter_map(|(what, differs)| differs.then_some(what))
    .collect();
    if differs.is_empty() { Ok(()) } else { Err(Error::OtherOptions { volume, differs }) }
}

/// Does the guest tell of the volume that it was asked for?
pub(super) fn check_answer(item: &Item, attached: &Attached) -> Result<(), Error> {
    let size = item.plugged.as_ref().map_or(item.source.size, |committed| committed.size);
    let outcome = attached.outcome.as_ref().ok_or_else(|| answer("no outcome"))?;
    match () {
        () if attached.serial != item.id.as_str() => Err(answer("another serial")),
        () if attached.size != size => Err(answer("another size")),
        () if attached.read_only != (item.intent.access == Access::ReadOnly) => Err(answer("another access")),
        () if outcome.device.is_none() => Err(answer("no device number")),
        () if outcome.parents_made.len() > MOST_PARENTS => Err(answer("too many directories")),
        () => Ok(()),
    }
}

pub(super) fn answer(what: &str) -> Error {
    Error::AgentAnswer { method: "Attach", what: what.to_owned() }
}

/// What is noted of a volume beside its intent.
pub(super) fn placement(item: &Item, attached: &Attached) -> Placement {
    let outcome = attached.outcome.clone().unwrap_or_default();
    let device = outcome.device.unwrap_or_default();
    Placement {
        v: 1,
        container: None,
        path: None,
        committed: true,
        controller: item.controller.id.clone(),
        target: item.address.target,
        lun: item.address.lun,
        guest_device: printable(&attached.guest_device),
        major: device.major,
        minor: device.minor,
        node: node_way_name(outcome.node.enum_value_or_default()).to_owned(),
        filter: filter_name(outcome.filter.enum_value_or_default()).to_owned(),
        parents_made: outcome.parents_made,
        allowed_before: outcome.allowed_before,
    }
}
