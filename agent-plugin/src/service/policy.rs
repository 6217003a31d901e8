//! The requests as the agent's policy sees them: a method name, and JSON whose shape is a part of
//! the API (docs/policy.md).

use serde_json::Value;

use super::{request::Checked, rpc::Rpc};
use crate::{
    file_system::Kind,
    text::displayed,
    volume::{Attachment, Mount},
};

pub(crate) const PROBE: &str = "ProbeBlockVolumeRequest";
pub(crate) const ATTACH: &str = "AttachBlockVolumeRequest";
pub(crate) const DETACH: &str = "DetachBlockVolumeRequest";
pub(crate) const INSPECT: &str = "InspectBlockVolumeRequest";
pub(crate) const RESIZE: &str = "ResizeBlockVolumeRequest";

/// The request as JSON.
pub(crate) fn question(rpc: Rpc, request: &Checked) -> Value {
    let mut question = Value::Null;
    if rpc == Rpc::Probe {
        // Empty where the request is about the guest alone.
        let container_id = request.container_id.as_deref().unwrap_or_default();
        set(&mut question, "container_id", text(container_id));
        let mut paths = Vec::with_capacity(request.paths.len());
        for path in &request.paths {
            paths.push(text(path.as_str()));
        }
        set(&mut question, "paths", Value::Array(paths));
        let mut mount_paths = Vec::with_capacity(request.mount_paths.len());
        for path in &request.mount_paths {
            mount_paths.push(text(path.as_str()));
        }
        set(&mut question, "mount_paths", Value::Array(mount_paths));
        return question;
    }
    let mut attachments = Vec::with_capacity(request.volumes.len());
    for volume in &request.volumes {
        attachments.push(attachment(&volume.attachment));
    }
    set(&mut question, "attachments", Value::Array(attachments));
    if rpc == Rpc::Detach {
        set(&mut question, "force", Value::Bool(request.force));
    }
    question
}

fn attachment(item: &Attachment) -> Value {
    let mut object = Value::Null;
    set(&mut object, "container_id", text(&item.container_id));
    set(&mut object, "controller", item.controller.as_deref().map_or(Value::Null, text));
    set(&mut object, "serial", text(&item.serial));
    set(&mut object, "path", text(item.path.as_str()));
    set(&mut object, "access", Value::String(displayed(&item.access)));
    let numbers = [
        ("target", item.address.target.into()),
        ("lun", item.address.lun.into()),
        ("size", item.size),
        ("uid", item.options.uid.into()),
        ("gid", item.options.gid.into()),
        ("mode", item.options.mode.into()),
    ];
    for (name, number) in numbers {
        set(&mut object, name, number.into());
    }
    set(&mut object, "mount", item.mount.as_ref().map_or(Value::Null, mount));
    object
}

/// The type is empty where the superblock decides.
fn mount(item: &Mount) -> Value {
    let mut object = Value::Null;
    set(&mut object, "file_system", text(item.kind.map_or("", Kind::name)));
    let mut options = Vec::with_capacity(item.options.len());
    for option in &item.options {
        options.push(text(option));
    }
    set(&mut object, "options", Value::Array(options));
    let mut fs_group = Value::Null;
    if let Some(group) = item.fs_group {
        set(&mut fs_group, "gid", group.gid.into());
        let change = if group.always { "Always" } else { "OnRootMismatch" };
        set(&mut fs_group, "change", text(change));
    }
    set(&mut object, "fs_group", fs_group);
    object
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

/// Sets a member of an object. What `json!` and maps are compiled to is much more, and this is a
/// call into serde_json.
#[inline(never)]
fn set(object: &mut Value, name: &str, value: Value) {
    object[name] = value;
}
