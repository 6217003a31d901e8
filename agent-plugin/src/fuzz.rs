//! Access to private parsers for the fuzz targets in `fuzz/`. The feature `fuzz` is off in every
//! agent.

use serde_json::Value;

use crate::{
    api::block_volume as wire,
    block::DeviceNumber,
    cgroup,
    error::Error,
    holders, ids,
    procfs::mountinfo::MountLine,
    service::{policy, reply, request},
    text,
    volume::Failed,
};

/// A request.
#[derive(Debug)]
#[expect(missing_docs, reason = "the API documents them")]
pub enum Request {
    Probe(wire::ProbeRequest),
    Attach(wire::AttachRequest),
    Detach(wire::DetachRequest),
    Inspect(wire::InspectRequest),
    Resize(wire::ResizeRequest),
}

/// Checks a request as the service does.
///
/// # Errors
/// The failure that the caller gets.
pub fn check(request: &Request) -> Result<Value, wire::Failure> {
    checked(request).map_err(|error| reply::failure(&Failed::from(error)))
}

/// Returns what the policy is asked about.
fn checked(request: &Request) -> Result<Value, Error> {
    match request {
        Request::Probe(request) => {
            let paths = request::paths(&request.paths)?;
            if !request.container_id.is_empty() {
                request::container_id("container_id", &request.container_id)?;
            }
            Ok(policy::probe(&request.container_id, &paths))
        }
        Request::Attach(request) => {
            request::timeout(request.timeout_ms)?;
            Ok(policy::attachments(&request::attachments(&request.attachments)?))
        }
        Request::Detach(request) => {
            request::wait(request.wait_ms, request::timeout(request.timeout_ms)?)?;
            Ok(policy::detach(&request::detachments(&request.detachments)?, request.force))
        }
        Request::Inspect(request) => {
            Ok(policy::inspect(&request::detachments(&request.attachments)?))
        }
        Request::Resize(request) => {
            request::timeout(request.timeout_ms)?;
            Ok(policy::attachments(&request::attachments(&request.attachments)?))
        }
    }
}

/// Parses a line of mountinfo: the device number, the mount point, the file system's type, the
/// source.
pub fn mount(line: &[u8]) -> Option<(DeviceNumber, [Vec<u8>; 3])> {
    let mount = MountLine::parse(line)?;
    Some((mount.number, [mount.point(), mount.file_system.to_owned(), mount.source()]))
}

/// The paths of swap devices.
pub fn swap_devices(text: &[u8]) -> Vec<Vec<u8>> {
    holders::swap_devices(text).collect()
}

/// Whether a `devices.list` allows a disk to be read.
pub fn is_listed(list: &[u8]) -> bool {
    cgroup::is_listed(list, DeviceNumber { major: 8, minor: 16 })
}

/// The guest's id of a container's user, by its `uid_map`.
pub fn id_outside(map: &[u8], id: u32) -> Option<u32> {
    ids::outside(map, id)
}

/// A name of a container as a message shows it.
pub fn shown(name: &[u8]) -> String {
    text::shown(&text::readable(name, 1000))
}
