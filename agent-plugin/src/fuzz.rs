//! Access to private parsers for the fuzz targets in `fuzz/`. The feature `fuzz` is off in every
//! agent.

use serde_json::Value;

use crate::{
    api::block_volume as wire,
    block::DeviceNumber,
    error::Error,
    procfs::mountinfo::MountLine,
    service::{policy, reply, request},
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
pub fn mount(line: &str) -> Option<(DeviceNumber, String, String, String)> {
    let mount = MountLine::parse(line)?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let file_system = mount.file_system.to_owned();
    Some((mount.number, text(mount.point()), file_system, text(mount.source())))
}
