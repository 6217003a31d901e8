//! The requests as the agent's policy sees them: a method name, and JSON whose shape is a part of
//! the API (docs/policy.md).

use serde_json::{Value, json};

use super::request::Detachment;
use crate::{device_node::NodePath, volume::Attachment};

pub(crate) const PROBE: &str = "ProbeBlockVolumeRequest";
pub(crate) const ATTACH: &str = "AttachBlockVolumeRequest";
pub(crate) const DETACH: &str = "DetachBlockVolumeRequest";
pub(crate) const INSPECT: &str = "InspectBlockVolumeRequest";
pub(crate) const RESIZE: &str = "ResizeBlockVolumeRequest";

/// Probe. `container_id` is empty where the request is about the guest alone.
pub(crate) fn probe(container_id: &str, paths: &[NodePath]) -> Value {
    json!({ "container_id": container_id, "paths": paths.iter().map(NodePath::as_str).collect::<Vec<_>>() })
}

/// Attach and Resize.
pub(crate) fn attachments(list: &[Attachment]) -> Value {
    json!({ "attachments": list.iter().map(attachment).collect::<Vec<_>>() })
}

/// Detach.
pub(crate) fn detach(list: &[Detachment], force: bool) -> Value {
    let mut request = inspect(list);
    request["force"] = force.into();
    request
}

/// Inspect.
pub(crate) fn inspect(list: &[Detachment]) -> Value {
    json!({ "attachments": list.iter().map(|item| attachment(&item.attachment)).collect::<Vec<_>>() })
}

fn attachment(item: &Attachment) -> Value {
    json!({
        "container_id": item.container_id,
        "controller": item.controller,
        "target": item.address.target,
        "lun": item.address.lun,
        "serial": item.serial,
        "size": item.size,
        "path": item.path.as_str(),
        "access": item.access.to_string(),
        "uid": item.options.uid,
        "gid": item.options.gid,
        "mode": item.options.mode,
    })
}
