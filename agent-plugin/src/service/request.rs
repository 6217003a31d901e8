//! Checks a message against the limits of the API, and decodes it.

use std::{collections::HashSet, time::Duration};

use protobuf::{Enum, EnumOrUnknown, MessageField};

use crate::{
    api::block_volume as wire,
    block::DeviceNumber,
    cgroup,
    device_node::{NodeKind, NodeOptions, NodePath},
    error::{Error, Result},
    scsi::ScsiAddress,
    text::truncated,
    volume::{AccessMode, Attachment, Outcome},
};

/// A longer wait is of no use, and would keep a thread as long.
const LONGEST_TIMEOUT_MS: u64 = 600_000;
const MOST_ATTACHMENTS: usize = 256;
/// No disk is larger: offsets are signed.
const LARGEST_SIZE: u64 = i64::MAX as u64;
/// Device numbers have twelve bits and twenty.
const LARGEST_MAJOR: u32 = 0xfff;
const LARGEST_MINOR: u32 = 0xf_ffff;

/// An attachment with its outcome, as the host recorded it.
#[derive(Debug)]
pub(crate) struct Detachment {
    pub(crate) attachment: Attachment,
    pub(crate) outcome: Option<Outcome>,
    /// Only the container's part is removed.
    pub(crate) keep_disk: bool,
    /// Of the container's part, only the node is removed.
    pub(crate) keep_right: bool,
}

/// The error for a value that breaks a rule.
fn invalid(field: impl Into<String>, value: impl std::fmt::Debug, rule: &'static str) -> Error {
    // Debug output is escaped, so that it can be cut between any characters.
    let value = truncated(format!("{value:?}"), 200);
    Error::InvalidRequest { field: field.into(), value, rule }
}

/// The request's time-out.
pub(crate) fn timeout(millis: u64) -> Result<Duration> {
    match millis {
        1..=LONGEST_TIMEOUT_MS => Ok(Duration::from_millis(millis)),
        _ => Err(invalid("timeout_ms", millis, "must be 1 to 600000")),
    }
}

/// How long a Detach may wait for holders of a disk, as a part of its time-out.
pub(crate) fn wait(millis: u64, timeout: Duration) -> Result<Duration> {
    let wait = Duration::from_millis(millis);
    if wait <= timeout {
        Ok(wait)
    } else {
        Err(invalid("wait_ms", millis, "must not be more than timeout_ms"))
    }
}

/// A container's id, also safe as a part of a path and in a log.
pub(crate) fn container_id(field: &str, id: &str) -> Result<String> {
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let first = id.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if first && id.len() <= 128 && id.bytes().all(inside) {
        return Ok(id.to_owned());
    }
    Err(invalid(
        field,
        id,
        "must be 1 to 128 letters, digits, `_`, `.` or `-`, and begin with a letter or digit",
    ))
}

/// The paths of a Probe.
pub(crate) fn paths(paths: &[String]) -> Result<Vec<NodePath>> {
    check_count("paths", paths.len())?;
    let path = |(index, path): (usize, &String)| node_path(&format!("paths[{index}]"), path);
    paths.iter().enumerate().map(path).collect()
}

fn node_path(field: &str, path: &str) -> Result<NodePath> {
    NodePath::new(path).map_err(|rule| invalid(field, path, rule))
}

/// The attachments of an Attach or Resize: at least one, and no two for the same volume, address or
/// path.
pub(crate) fn attachments(list: &[wire::Attachment]) -> Result<Vec<Attachment>> {
    check_count("attachments", list.len())?;
    let one = |(index, item): (usize, &wire::Attachment)| {
        attachment(&format!("attachments[{index}]"), item)
    };
    let attachments = list.iter().enumerate().map(one).collect::<Result<Vec<_>>>()?;
    check_distinct(attachments.iter())?;
    Ok(attachments)
}

/// The attachments of a Detach or Inspect, with their outcomes.
pub(crate) fn detachments(list: &[wire::Detachment]) -> Result<Vec<Detachment>> {
    check_count("attachments", list.len())?;
    let one = |(index, item): (usize, &wire::Detachment)| {
        let field = format!("attachments[{index}]");
        let attachment = attachment(&field, required(&field, &item.attachment)?)?;
        let outcome = item
            .outcome
            .as_ref()
            .map(|recorded| outcome(&field, recorded, &attachment.path))
            .transpose()?;
        let wire::Detachment { keep_disk, keep_right, .. } = *item;
        Ok(Detachment { attachment, outcome, keep_disk, keep_right })
    };
    let detachments = list.iter().enumerate().map(one).collect::<Result<Vec<_>>>()?;
    check_distinct(detachments.iter().map(|item| &item.attachment))?;
    Ok(detachments)
}

/// The serials of attachments, which name the queues of their volumes.
pub(crate) fn serials<'a>(attachments: impl IntoIterator<Item = &'a Attachment>) -> Vec<String> {
    attachments.into_iter().map(|attachment| attachment.serial.clone()).collect()
}

fn check_count(field: &str, count: usize) -> Result<()> {
    let fewest = usize::from(field == "attachments");
    if (fewest..=MOST_ATTACHMENTS).contains(&count) {
        return Ok(());
    }
    Err(invalid(field, count, "must be at most 256, and of attachments at least one"))
}

fn check_distinct<'a>(attachments: impl Iterator<Item = &'a Attachment>) -> Result<()> {
    let (mut serials, mut addresses, mut paths) = (HashSet::new(), HashSet::new(), HashSet::new());
    for item in attachments {
        if !serials.insert(&item.serial) {
            return Err(invalid("serial", &item.serial, "must not be twice in one request"));
        }
        if !addresses.insert((&item.controller, item.address)) {
            return Err(invalid(
                "address",
                item.address.to_string(),
                "must not be twice in one request",
            ));
        }
        if !paths.insert((&item.container_id, &item.path)) {
            return Err(invalid("path", item.path.as_str(), "must not be twice in one container"));
        }
    }
    Ok(())
}

fn required<'a, T>(field: &str, value: &'a MessageField<T>) -> Result<&'a T> {
    value.as_ref().ok_or_else(|| invalid(field, "nothing", "must be present"))
}

/// Decodes an enum. Neither 0 nor a value that this version does not know is valid.
fn known<E: Enum>(field: &str, value: EnumOrUnknown<E>) -> Result<E> {
    let known = value.enum_value().ok().filter(|known| known.value() != 0);
    known.ok_or_else(|| invalid(field, value.value(), "must be a value that the API lists"))
}

fn attachment(field: &str, item: &wire::Attachment) -> Result<Attachment> {
    let at = |part: &str| format!("{field}.{part}");
    Ok(Attachment {
        container_id: container_id(&at("container_id"), &item.container_id)?,
        controller: controller(&at("controller"), &item.controller)?,
        address: address(&at("address"), required(&at("address"), &item.address)?)?,
        serial: serial(&at("serial"), &item.serial)?,
        size: match item.size {
            size @ 1..=LARGEST_SIZE if size.is_multiple_of(512) => size,
            size => {
                return Err(invalid(
                    at("size"),
                    size,
                    "must be a multiple of 512, above 0 and below 2^63",
                ));
            }
        },
        path: node_path(&at("path"), &item.path)?,
        access: match known(&at("access"), item.access)? {
            wire::Access::ACCESS_READ_ONLY => AccessMode::ReadOnly,
            _ => AccessMode::ReadWrite,
        },
        options: options(&at("owner"), item)?,
    })
}

fn options(field: &str, item: &wire::Attachment) -> Result<NodeOptions> {
    // The highest number is not an id: for chown it means "do not change".
    if item.uid == u32::MAX || item.gid == u32::MAX {
        return Err(invalid(
            field,
            (item.uid, item.gid),
            "must be a user and a group id below 4294967295",
        ));
    }
    if item.mode > 0o777 {
        return Err(invalid(
            field,
            format!("mode {:o}", item.mode),
            "must have permission bits only",
        ));
    }
    Ok(NodeOptions { uid: item.uid, gid: item.gid, mode: item.mode })
}

fn controller(field: &str, text: &str) -> Result<Option<String>> {
    let inside = |byte: u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
    match text {
        "" => Ok(None),
        _ if text.len() <= 32 && text.bytes().all(inside) => Ok(Some(text.to_ascii_lowercase())),
        _ => Err(invalid(field, text, "must be a PCI address such as 0000:00:01.0")),
    }
}

fn address(field: &str, address: &wire::ScsiAddress) -> Result<ScsiAddress> {
    match (u8::try_from(address.target), u8::try_from(address.lun)) {
        (Ok(target), Ok(lun @ 1..)) => Ok(ScsiAddress { target, lun }),
        _ => Err(invalid(
            field,
            format!("{}:{}", address.target, address.lun),
            "must be a target of 0 to 255 and a LUN of 1 to 255",
        )),
    }
}

/// A serial, also safe as a part of a file name.
fn serial(field: &str, serial: &str) -> Result<String> {
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if (1..=20).contains(&serial.len()) && serial.bytes().all(inside) {
        return Ok(serial.to_owned());
    }
    Err(invalid(field, serial, "must be 1 to 20 letters, digits, `_` or `-`"))
}

fn outcome(field: &str, item: &wire::Outcome, path: &NodePath) -> Result<Outcome> {
    let at = |part: &str| format!("{field}.outcome.{part}");
    let device = required(&at("device"), &item.device)?;
    let node = match known(&at("node"), item.node)? {
        wire::NodeWay::NODE_WAY_BIND => NodeKind::Bind,
        _ => NodeKind::Mknod,
    };
    let filter = match known(&at("filter"), item.filter)? {
        wire::FilterMode::FILTER_MODE_V1 => cgroup::Mode::V1,
        wire::FilterMode::FILTER_MODE_BPF => cgroup::Mode::Bpf,
        _ => cgroup::Mode::None,
    };
    let device = DeviceNumber { major: device.major, minor: device.minor };
    if device.major > LARGEST_MAJOR || device.minor > LARGEST_MINOR {
        let rule = "must have a major number of at most 4095 and a minor of at most 1048575";
        return Err(invalid(at("device"), device.to_string(), rule));
    }
    let wire::Outcome { allowed_before, container_started, .. } = *item;
    let parents_made = parents_made(&at("parents_made"), &item.parents_made, path)?;
    Ok(Outcome { device, node, parents_made, filter, allowed_before, container_started })
}

/// Directories that an attach made. A detach removes them where they are empty, so each must be a
/// part of the volume's own path, below the one before.
fn parents_made(field: &str, list: &[String], path: &NodePath) -> Result<Vec<NodePath>> {
    let mut parents: Vec<NodePath> = Vec::new();
    for item in list {
        let parent = node_path(field, item)?;
        if !path.is_below(&parent) || parents.last().is_some_and(|above| !parent.is_below(above)) {
            return Err(invalid(
                field,
                item,
                "must be a directory of the path, below the one before it",
            ));
        }
        parents.push(parent);
    }
    Ok(parents)
}

#[cfg(test)]
mod tests;
