//! Doors to what is private, for the fuzz targets in `fuzz/` and nobody else: the feature `fuzz` is
//! off in every agent.

use serde_json::Value;

use crate::{
    api::block_volume as wire, block::DeviceNumber, error::Error, holders::mount::Mount, policy,
    reply, request, volume::Failed,
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
/// What the caller gets to read.
pub fn check(request: &Request) -> Result<Value, wire::Failure> {
    checked(request).map_err(|error| reply::failure(&Failed::from(error)))
}

/// What the policy is asked.
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
            Ok(policy::detach(&request::kept(&request.detachments)?, request.force))
        }
        Request::Inspect(request) => Ok(policy::inspect(&request::kept(&request.attachments)?)),
        Request::Resize(request) => {
            request::timeout(request.timeout_ms)?;
            Ok(policy::attachments(&request::attachments(&request.attachments)?))
        }
    }
}

/// A line of mountinfo: the device, where it is mounted, the file system's type, what was mounted.
pub fn mount(line: &str) -> Option<(DeviceNumber, String, String, String)> {
    Mount::parse(line).map(|mount| (mount.number, mount.point, mount.kind, mount.source))
}
