//! Makes what an attach has prepared appear in containers.

use std::{mem::take, time::Instant};

use super::{
    failed::{Failed, OfVolume as _},
    job::AttachJob,
    progress::VolumeProgress,
};
use crate::device_node::{self, Node};

/// Publishes nodes and mounts in the order of the request: a mount may hide what comes before it.
pub(super) fn publish(
    jobs: &[AttachJob],
    volumes: &mut [VolumeProgress],
    deadline: Instant,
) -> Result<(), Failed> {
    let (mut serials, mut nodes) = (Vec::new(), Vec::new());
    for (job, volume) in jobs.iter().zip(volumes) {
        let serial = &job.attachment.serial;
        if let Some(node) = &mut volume.node {
            serials.push(serial);
            nodes.push(node);
        }
        if let Some(mounting) = &mut volume.mounting {
            publish_nodes(&take(&mut serials), &mut take(&mut nodes), deadline)?;
            mounting.publish(deadline).of(serial)?;
        }
    }
    publish_nodes(&serials, &mut nodes, deadline)
}

fn publish_nodes(
    serials: &[&String],
    nodes: &mut [&mut Node],
    deadline: Instant,
) -> Result<(), Failed> {
    device_node::publish_all(nodes, deadline)
        .or_else(|(index, error)| Err(error).of(serials[index]))
}
