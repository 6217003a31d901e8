//! The descriptors and the block nodes of new volumes
//! ([`add-fd`](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html#command-QMP-misc.add-fd),
//! [`blockdev-add`](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html#command-QMP-block-core.blockdev-add)),
//! sent together for all volumes: the number of each descriptor set is known before QEMU replies.
//! Path reservations are block nodes, too.

use std::fs::File;

use block_volume_qmp::{Command, PassedFd, Qmp, QmpError, Replies};
use serde_json::{Value, json};

use super::{
    descriptor_sets::DescriptorSets,
    disk::{Backend, refused, unless_gone, unless_lost},
};
use crate::{Error, fault, volume_id::VolumeId};

/// A volume that QEMU is to get.
#[derive(Debug)]
pub(crate) struct NewNode<'a> {
    pub(crate) id: &'a VolumeId,
    pub(crate) file: &'a File,
    /// The text of the intent record.
    pub(crate) intent: String,
    pub(crate) backend: Backend,
    pub(crate) read_only: bool,
    /// The name of the file node, which reserves the path in the container.
    pub(crate) reservation: String,
}

/// What became of the block node of one volume.
#[derive(Debug)]
pub(crate) enum Added {
    /// It exists.
    Whole,
    /// The name of the reservation is taken, and only the descriptor was added.
    PathTaken,
    /// It does not, or must not. QEMU may have got any part of it.
    Failed(Error),
}

/// How QEMU reads and writes the file.
const AIO: [&str; 2] = ["io_uring", "threads"];
/// The number of commands for each volume.
const COMMANDS: usize = 3;

/// Passes all volumes to QEMU, each with its intent record, and adds their block nodes. Returns
/// what became of each.
///
/// QEMU adds a descriptor to a set that exists, whoever made it, and does not say so. Therefore the
/// first command for each volume must be refused: it asks for a block node over the set before
/// there is one. Only if it is not, all sets are read.
///
/// # Errors
/// QEMU does not reply.
pub(crate) async fn add_all(qmp: &mut Qmp, volumes: &[NewNode<'_>]) -> Result<Vec<Added>, Error> {
    let commands: Vec<_> = volumes.iter().flat_map(NewNode::commands).collect();
    let mut replies = send(qmp, &commands).await?;
    let (mut added, mut doubtful) = (Vec::with_capacity(volumes.len()), Vec::new());
    for (index, volume) in volumes.iter().enumerate() {
        let is_new = is_refused_as_missing(replies.read())?;
        let passed = unless_lost(replies.read::<PassedFd>())?;
        let mut node = unless_lost(replies.read::<Value>())?;
        if !is_new {
            doubtful.push(index);
        }
        if is_without_io_uring(&node) {
            let again = volume.node_command(AIO[1], Some(&volume.reservation));
            node = unless_lost(qmp.send_all(&[again]).await.read())?;
        }
        added.push(match (passed, node) {
            // Its block node may exist over a descriptor of others.
            (Err(e), _) => Added::Failed(e.into()),
            (Ok(passed), _) if passed.set != volume.id.set() => {
                Added::Failed(QmpError::Answer { command: "add-fd".into() }.into())
            }
            (Ok(_), Ok(_)) => Added::Whole,
            (Ok(_), Err(e)) if is_duplicate_of(&e, &volume.reservation) => Added::PathTaken,
            (Ok(_), Err(e)) => Added::Failed(refused(e, volume.id)),
        });
    }
    if !doubtful.is_empty() {
        let sets = DescriptorSets::read(qmp).await?;
        for index in doubtful {
            let NewNode { id, intent, .. } = &volumes[index];
            if let Some(error) = sets.conflict(id, intent) {
                added[index] = Added::Failed(error);
            }
        }
    }
    Ok(added)
}

/// Adds the block node of a volume whose descriptor QEMU has, without a reservation.
///
/// # Errors
/// QEMU refuses, or does not reply.
pub(crate) async fn add_without_reservation(
    qmp: &mut Qmp,
    volume: &NewNode<'_>,
) -> Result<(), Error> {
    for aio in AIO {
        let added = qmp.send_all(&[volume.node_command(aio, None)]).await.read::<Value>();
        if !is_without_io_uring(&added) {
            return added.map(drop).map_err(|e| refused(e, volume.id));
        }
    }
    Err(QmpError::Answer { command: "blockdev-add".into() }.into())
}

impl NewNode<'_> {
    fn commands(&self) -> [Command<'_>; COMMANDS] {
        let set = self.id.set();
        // It has the name of the volume's node: what should not exist is found and removed as that.
        let absent = json!({
            "driver": "file", "node-name": self.id.node(), "filename": self.file_name(),
        });
        [
            Command::new("blockdev-add", absent),
            Command::add_fd(self.file, Some(set), &self.intent),
            self.node_command(AIO[0], Some(&self.reservation)),
        ]
    }

    fn file_name(&self) -> String {
        format!("/dev/fdset/{}", self.id.set())
    }

    fn node_command(&self, aio: &str, reservation: Option<&str>) -> Command<'static> {
        let (driver, direct) = match self.backend {
            Backend::HostDevice(_) => ("host_device", true),
            Backend::File { .. } => ("file", false),
        };
        // QEMU reads a command byte by byte, so defaults are left out.
        let mut common = json!({"discard": "unmap"});
        if self.read_only {
            common["read-only"] = json!(true);
        }
        if direct {
            common["cache"] = json!({"direct": true});
        }
        let mut file = common.clone();
        file["driver"] = json!(driver);
        if let Some(reservation) = reservation {
            file["node-name"] = json!(reservation);
        }
        file["filename"] = json!(self.file_name());
        file["aio"] = json!(aio);
        let mut node = common;
        node["driver"] = json!("raw");
        node["node-name"] = json!(self.id.node());
        node["file"] = file;
        Command::new("blockdev-add", node)
    }
}

/// Sends `commands`. A fault point between those of a volume needs a write of its own.
async fn send(qmp: &mut Qmp, commands: &[Command<'_>]) -> Result<Replies, Error> {
    let point = "after-add-fd";
    if !fault::is_set(point) {
        return Ok(qmp.send_all(commands).await);
    }
    let (first, rest) = commands.split_at(COMMANDS - 1);
    let mut replies = qmp.send_all(first).await;
    fault::point(point).await?;
    replies.append(qmp.send_all(rest).await);
    Ok(replies)
}

/// Whether QEMU refused to open a descriptor set because it does not exist: 7.2 says it by the
/// error of the system, 9.1 and later in words of their own.
fn is_refused_as_missing(reply: Result<Value, QmpError>) -> Result<bool, QmpError> {
    let texts = ["Failed to find fdset", "No such file or directory"];
    let refused = unless_lost(reply)?.err();
    let text = refused.as_ref().and_then(QmpError::refusal);
    Ok(text.is_some_and(|text| texts.iter().any(|missing| text.contains(missing))))
}

/// Whether QEMU refused because io_uring is not built in, or forbidden by the kernel or by QEMU's
/// sandbox.
fn is_without_io_uring(reply: &Result<Value, QmpError>) -> bool {
    let refusal = reply.as_ref().err().and_then(QmpError::refusal);
    refusal.is_some_and(|text| text.contains("io_uring"))
}

/// Whether QEMU refused because it has a node of this name.
fn is_duplicate_of(error: &QmpError, name: &str) -> bool {
    error.refusal().is_some_and(|text| text.contains("Duplicate node") && text.contains(name))
}

/// Reserves the path of a further attachment, by a `null-co` node that is nothing but the name: the
/// disk's own node has the name of the first attachment. A node that has the name already reserves
/// the path as well.
pub(crate) async fn reserve_path(qmp: &mut Qmp, name: &str) -> Result<(), QmpError> {
    let node = json!({"driver": "null-co", "node-name": name});
    match qmp.execute("blockdev-add", node).await {
        Err(e) if is_duplicate_of(&e, name) => Ok(()),
        added => added.map(drop),
    }
}

/// Releases a reserved path. A node that is a part of a disk is removed with the disk.
pub(crate) async fn release_path(qmp: &mut Qmp, name: &str) -> Result<(), QmpError> {
    match qmp.execute("blockdev-del", json!({"node-name": name})).await {
        Err(e) if e.refusal().is_some_and(|text| text.contains("not owned by the monitor")) => {
            Ok(())
        }
        removed => unless_gone(removed),
    }
}
