//! Checks a request against the limits of the API.

use std::{fmt::Debug, sync::Arc, time::Duration};

use super::{
    field::{Field, invalid},
    mount,
    requested::{self, Pair, Request, Volume},
    rpc::Rpc,
};
use crate::{
    api::block_volume as wire,
    block::DeviceNumber,
    cgroup,
    device_node::{NodeKind, NodeOptions, NodePath},
    error::Result,
    scsi::ScsiAddress,
    text::displayed,
    volume::{AccessMode, Attachment, Outcome, Way},
};

/// A longer wait is of no use, and would keep a thread as long.
const LONGEST_TIMEOUT_MS: u64 = 600_000;
const MOST_ATTACHMENTS: usize = 256;
/// No disk is larger: offsets are signed.
const LARGEST_SIZE: u64 = i64::MAX as u64;
/// Device numbers have twelve bits and twenty.
const LARGEST_MAJOR: u32 = 0xfff;
const LARGEST_MINOR: u32 = 0xf_ffff;

/// A request that is within the limits.
#[derive(Debug)]
pub(crate) struct Checked {
    /// Of a Probe; `None`: it is about the guest alone.
    pub(crate) container_id: Option<String>,
    pub(crate) paths: Vec<NodePath>,
    pub(crate) mount_paths: Vec<NodePath>,
    /// No two for the same volume, address or path.
    pub(crate) volumes: Vec<Detachment>,
    /// Zero for a method without one.
    pub(crate) timeout: Duration,
    pub(crate) wait: Duration,
    pub(crate) force: bool,
    pub(crate) holders: bool,
    pub(crate) without_stats: bool,
    /// Of a Plug.
    pub(crate) conversation: u64,
}

/// The values of the API's enums that are compared below; each is the last one of its enum or lies
/// before it.
const READ_ONLY: i32 = wire::Access::ACCESS_READ_ONLY as i32;
const BIND: i32 = wire::NodeWay::NODE_WAY_BIND as i32;
const MOUNT: i32 = wire::NodeWay::NODE_WAY_MOUNT as i32;
const V1: i32 = wire::FilterMode::FILTER_MODE_V1 as i32;
const BPF: i32 = wire::FilterMode::FILTER_MODE_BPF as i32;

impl Checked {
    /// The serials of the volumes, which name their queues.
    pub(super) fn serials(&self) -> Vec<String> {
        let mut serials = Vec::with_capacity(self.volumes.len());
        for volume in &self.volumes {
            serials.push(volume.attachment.serial.clone());
        }
        serials
    }
}

/// An attachment with its outcome, as the host recorded it.
#[derive(Debug, Clone)]
pub(crate) struct Detachment {
    pub(crate) attachment: Arc<Attachment>,
    pub(crate) outcome: Option<Arc<Outcome>>,
    /// Only the container's part is removed.
    pub(crate) keep_disk: bool,
    /// Of the container's part, only the node is removed.
    pub(crate) keep_right: bool,
}

/// Checks a request.
///
/// # Errors
/// [`Error::InvalidRequest`].
pub(crate) fn check(rpc: Rpc, request: &Request<'_>) -> Result<Checked> {
    let mut checked = Checked {
        container_id: None,
        paths: Vec::new(),
        mount_paths: Vec::new(),
        volumes: Vec::new(),
        timeout: Duration::ZERO,
        wait: Duration::ZERO,
        force: request.force,
        holders: request.holders,
        without_stats: request.without_stats,
        conversation: request.conversation,
    };
    if rpc == Rpc::Probe {
        checked.paths = paths("paths", &request.paths)?;
        checked.mount_paths = paths("mount_paths", &request.mount_paths)?;
        if !request.container_id.is_empty() {
            checked.container_id =
                Some(container_id(Field::of_request("container_id"), request.container_id)?);
        }
        return Ok(checked);
    }
    if rpc != Rpc::Inspect {
        checked.timeout = timeout(request.timeout_ms)?;
        checked.wait = wait(request.wait_ms, checked.timeout)?;
    }
    checked.volumes = volumes(&request.volumes)?;
    if matches!(rpc, Rpc::Attach | Rpc::Plug) {
        check_visible(&checked.volumes)?;
    }
    if rpc == Rpc::Plug && checked.conversation == 0 {
        return Err(invalid(Field::of_request("conversation"), &0, "must be that of a Hold"));
    }
    Ok(checked)
}

/// The request's time-out.
fn timeout(millis: u64) -> Result<Duration> {
    match millis {
        1..=LONGEST_TIMEOUT_MS => Ok(Duration::from_millis(millis)),
        _ => Err(invalid(Field::of_request("timeout_ms"), &millis, "must be 1 to 600000")),
    }
}

/// How long a Detach may wait for holders of a disk, as a part of its time-out.
fn wait(millis: u64, timeout: Duration) -> Result<Duration> {
    let wait = Duration::from_millis(millis);
    if wait <= timeout {
        return Ok(wait);
    }
    Err(invalid(Field::of_request("wait_ms"), &millis, "must not be more than timeout_ms"))
}

/// Whether a text consists of letters, digits and `others`, and has a length that is allowed.
fn is_plain(text: &str, longest: usize, others: &[u8]) -> bool {
    let is_inside = |byte: &u8| byte.is_ascii_alphanumeric() || others.contains(byte);
    (1..=longest).contains(&text.len()) && text.as_bytes().iter().all(is_inside)
}

/// A container's id, also safe as a part of a path and in a log.
fn container_id(field: Field, id: &str) -> Result<String> {
    if is_plain(id, 128, b"_.-") && id.as_bytes()[0].is_ascii_alphanumeric() {
        return Ok(id.to_owned());
    }
    let rule =
        "must be 1 to 128 letters, digits, `_`, `.` or `-`, and begin with a letter or digit";
    Err(invalid(field, &id, rule))
}

/// The paths of a Probe.
fn paths(field: &'static str, list: &[&str]) -> Result<Vec<NodePath>> {
    check_count(field, list.len())?;
    let mut paths = Vec::with_capacity(list.len());
    for (index, path) in list.iter().enumerate() {
        paths.push(node_path(Field::element(field, index), path)?);
    }
    Ok(paths)
}

fn node_path(field: Field, path: &str) -> Result<NodePath> {
    NodePath::new(path).map_err(|rule| invalid(field, &path, rule))
}

/// The volumes: at least one, and no two for the same volume, address or path.
fn volumes(list: &[Volume<'_>]) -> Result<Vec<Detachment>> {
    check_count("attachments", list.len())?;
    let mut volumes: Vec<Detachment> = Vec::with_capacity(list.len());
    for (index, item) in list.iter().enumerate() {
        volumes.push(volume(Field::element("attachments", index), item)?);
    }
    // There are few: each is compared with those before it.
    for (index, item) in volumes.iter().enumerate() {
        for earlier in &volumes[..index] {
            check_differ(&item.attachment, &earlier.attachment)?;
        }
    }
    Ok(volumes)
}

fn volume(field: Field, item: &Volume<'_>) -> Result<Detachment> {
    let attachment = attachment(field, required(field, item.attachment.as_ref())?)?;
    let outcome = match &item.outcome {
        Some(recorded) => Some(Arc::new(outcome(field, recorded, &attachment)?)),
        None => None,
    };
    let attachment = Arc::new(attachment);
    Ok(Detachment { attachment, outcome, keep_disk: item.keep_disk, keep_right: item.keep_right })
}

fn check_count(field: &'static str, count: usize) -> Result<()> {
    let fewest = usize::from(field == "attachments");
    if (fewest..=MOST_ATTACHMENTS).contains(&count) {
        return Ok(());
    }
    let rule = "must be at most 256, and of attachments at least one";
    Err(invalid(Field::of_request(field), &count, rule))
}

fn check_differ(item: &Attachment, earlier: &Attachment) -> Result<()> {
    let twice =
        |field, value: &dyn Debug, rule| Err(invalid(Field::of_request(field), value, rule));
    if item.serial == earlier.serial {
        return twice("serial", &item.serial, "must not be twice in one request");
    }
    if item.address == earlier.address && item.controller == earlier.controller {
        let address = displayed(&item.address);
        return twice("address", &address, "must not be twice in one request");
    }
    if item.path == earlier.path && item.container_id == earlier.container_id {
        return twice("path", &item.path.as_str(), "must not be twice in one container");
    }
    Ok(())
}

/// All paths are resolved before anything is mounted: one below a mount of the same request would
/// be hidden by it.
fn check_visible(volumes: &[Detachment]) -> Result<()> {
    for item in volumes {
        let item = &item.attachment;
        let hides = |other: &Detachment| {
            let other = &other.attachment;
            let is_above = item.path.is_below(&other.path);
            is_above && other.mount.is_some() && other.container_id == item.container_id
        };
        if volumes.iter().any(hides) {
            let rule = "must not be below a mount of the same request: attach it afterwards";
            return Err(invalid(Field::of_request("path"), &item.path.as_str(), rule));
        }
    }
    Ok(())
}

pub(super) fn required<T>(field: Field, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| invalid(field, &"nothing", "must be present"))
}

/// Checks an enum with the values 1 to `last`. Neither 0 nor a value that this version does not
/// know is valid.
pub(super) fn known(field: Field, value: i32, last: i32) -> Result<i32> {
    if (1..=last).contains(&value) {
        return Ok(value);
    }
    Err(invalid(field, &value, "must be a value that the API lists"))
}

fn attachment(field: Field, item: &requested::Attachment<'_>) -> Result<Attachment> {
    let access = match known(field.part("access"), item.access, READ_ONLY)? {
        READ_ONLY => AccessMode::ReadOnly,
        _ => AccessMode::ReadWrite,
    };
    Ok(Attachment {
        container_id: container_id(field.part("container_id"), item.container_id)?,
        controller: controller(field.part("controller"), item.controller)?,
        address: address(field.part("address"), item.address)?,
        serial: serial(field.part("serial"), item.serial)?,
        size: size(field.part("size"), item.size)?,
        path: node_path(field.part("path"), item.path)?,
        access,
        mount: mount::mount(field, item, access)?,
        options: options(field.part("owner"), item)?,
    })
}

fn size(field: Field, size: u64) -> Result<u64> {
    if (1..=LARGEST_SIZE).contains(&size) && size.is_multiple_of(512) {
        return Ok(size);
    }
    Err(invalid(field, &size, "must be a multiple of 512, above 0 and below 2^63"))
}

fn options(field: Field, item: &requested::Attachment<'_>) -> Result<NodeOptions> {
    if item.mount.is_some() {
        return Ok(NodeOptions { uid: 0, gid: 0, mode: 0 });
    }
    // The highest number is not an id: for chown it means "do not change".
    if item.uid == u32::MAX || item.gid == u32::MAX {
        let rule = "must be a user and a group id below 4294967295";
        return Err(invalid(field, &(item.uid, item.gid), rule));
    }
    if item.mode > 0o777 {
        let mode = format!("mode {:o}", item.mode);
        return Err(invalid(field, &mode, "must have permission bits only"));
    }
    Ok(NodeOptions { uid: item.uid, gid: item.gid, mode: item.mode })
}

fn controller(field: Field, text: &str) -> Result<Option<String>> {
    let inside = |byte: u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
    match text {
        "" => Ok(None),
        _ if text.len() <= 32 && text.bytes().all(inside) => Ok(Some(text.to_ascii_lowercase())),
        _ => Err(invalid(field, &text, "must be a PCI address such as 0000:00:01.0")),
    }
}

fn address(field: Field, address: Option<Pair>) -> Result<ScsiAddress> {
    let Pair(target, lun) = required(field, address)?;
    match (u8::try_from(target), u8::try_from(lun)) {
        (Ok(target), Ok(lun @ 1..)) => Ok(ScsiAddress { target, lun }),
        _ => {
            let rule = "must be a target of 0 to 255 and a LUN of 1 to 255";
            Err(invalid(field, &format!("{target}:{lun}"), rule))
        }
    }
}

/// A serial, also safe as a part of a file name.
fn serial(field: Field, serial: &str) -> Result<String> {
    if is_plain(serial, 20, b"_-") {
        return Ok(serial.to_owned());
    }
    Err(invalid(field, &serial, "must be 1 to 20 letters, digits, `_` or `-`"))
}

fn outcome(
    field: Field,
    item: &requested::Outcome<'_>,
    attachment: &Attachment,
) -> Result<Outcome> {
    let at_device = field.part("outcome.device");
    let Pair(major, minor) = required(at_device, item.device)?;
    let device = DeviceNumber { major, minor };
    let at_node = field.part("outcome.node");
    let way = match known(at_node, item.node, MOUNT)? {
        MOUNT => Way::Mount(mount::mounted(field, item)?),
        BIND => Way::Node(NodeKind::Bind),
        _ => Way::Node(NodeKind::Mknod),
    };
    let is_mount = matches!(way, Way::Mount(_));
    if is_mount != attachment.mount.is_some() {
        return Err(invalid(at_node, &item.node, "must be that of a mount exactly for a mount"));
    }
    let filter = match item.filter {
        0 if is_mount => None,
        filter => Some(match known(field.part("outcome.filter"), filter, BPF)? {
            V1 => cgroup::Mode::V1,
            BPF => cgroup::Mode::Bpf,
            _ => cgroup::Mode::None,
        }),
    };
    if device.major > LARGEST_MAJOR || device.minor > LARGEST_MINOR {
        let rule = "must have a major number of at most 4095 and a minor of at most 1048575";
        return Err(invalid(at_device, &displayed(&device), rule));
    }
    Ok(Outcome {
        device,
        way,
        parents_made: {
            let field = field.part("outcome.parents_made");
            parents_made(field, &item.parents_made, &attachment.path, is_mount)?
        },
        filter,
        allowed_before: item.allowed_before,
        container_started: item.container_started,
        errors_before: item.errors_before,
    })
}

/// Directories that an attach made. A detach removes them where they are empty, so each must be a
/// part of the volume's own path, below the one before. A mount point itself is a directory, too.
fn parents_made(
    field: Field,
    list: &[&str],
    path: &NodePath,
    is_mount: bool,
) -> Result<Vec<NodePath>> {
    let mut parents: Vec<NodePath> = Vec::new();
    for item in list {
        let parent = node_path(field, item)?;
        let is_part = path.is_below(&parent) || is_mount && *path == parent;
        if !is_part || parents.last().is_some_and(|above| !parent.is_below(above)) {
            let rule = "must be a directory of the path, below the one before it";
            return Err(invalid(field, item, rule));
        }
        parents.push(parent);
    }
    Ok(parents)
}

#[cfg(test)]
mod tests;
