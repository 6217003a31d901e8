//! Checks a request against the bounds of the contract, and turns it into the types of the logic.

use std::{collections::HashSet, time::Duration};

use protobuf::{Enum, EnumOrUnknown, MessageField};

use crate::{
    api::block_volume as wire,
    block::DeviceNumber,
    cgroup,
    device_node::{NodeOptions, NodePath, Way},
    error::{Error, Result},
    scsi::ScsiAddress,
    volume::{Access, Attachment, Outcome},
};

/// A longer wait helps nobody, and a thread would wait as long.
const LONGEST_TIMEOUT_MS: u64 = 600_000;
const MOST_ATTACHMENTS: usize = 256;
/// No disk has more: offsets are signed.
const LARGEST_SIZE: u64 = i64::MAX as u64;
/// Device numbers have twelve bits and twenty.
const LARGEST_MAJOR: u32 = 0xfff;
const LARGEST_MINOR: u32 = 0xf_ffff;

/// An attachment with the outcome that the host kept of it.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) attachment: Attachment,
    pub(crate) outcome: Option<Outcome>,
    /// Only the container's part shall go.
    pub(crate) keep_disk: bool,
    /// Of that only the node.
    pub(crate) keep_right: bool,
}

/// A value that breaks a rule.
fn invalid(field: impl Into<String>, value: impl std::fmt::Debug, rule: &'static str) -> Error {
    let mut value = format!("{value:?}");
    if value.len() > 200 {
        // Debug output is escaped: a cut between characters is all that is needed.
        let end = (0..=200).rev().find(|&end| value.is_char_boundary(end)).unwrap_or(0);
        value.truncate(end);
        value.push('…');
    }
    Error::InvalidRequest { field: field.into(), value, rule }
}

/// The request's time-out.
pub(crate) fn timeout(millis: u64) -> Result<Duration> {
    match millis {
        1..=LONGEST_TIMEOUT_MS => Ok(Duration::from_millis(millis)),
        _ => Err(invalid("timeout_ms", millis, "must be 1 to 600000")),
    }
}

/// How long a Detach may wait for those who hold a disk; it is a part of its time-out.
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

/// The attachments of a Detach or Inspect, with what the host kept of them.
pub(crate) fn kept(list: &[wire::Detachment]) -> Result<Vec<Kept>> {
    check_count("attachments", list.len())?;
    let one = |(index, item): (usize, &wire::Detachment)| {
        let field = format!("attachments[{index}]");
        let attachment = attachment(&field, required(&field, &item.attachment)?)?;
        let outcome = item
            .outcome
            .as_ref()
            .map(|kept| outcome(&field, kept, &attachment.path))
            .transpose()?;
        Ok(Kept { attachment, outcome, keep_disk: item.keep_disk, keep_right: item.keep_right })
    };
    let kept = list.iter().enumerate().map(one).collect::<Result<Vec<_>>>()?;
    check_distinct(kept.iter().map(|kept| &kept.attachment))?;
    Ok(kept)
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
    value.as_ref().ok_or_else(|| invalid(field, "nothing", "must be there"))
}

/// An enum's value: neither 0 nor one that this version does not know.
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
            wire::Access::ACCESS_READ_ONLY => Access::ReadOnly,
            _ => Access::ReadWrite,
        },
        options: options(&at("owner"), item)?,
    })
}

fn options(field: &str, item: &wire::Attachment) -> Result<NodeOptions> {
    // The highest number is no id: chown takes it for "leave it".
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

/// It becomes a part of a file name.
fn serial(field: &str, serial: &str) -> Result<String> {
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if (1..=20).contains(&serial.len()) && serial.bytes().all(inside) {
        return Ok(serial.to_owned());
    }
    Err(invalid(field, serial, "must be 1 to 20 letters, digits, `_` or `-`"))
}

fn outcome(field: &str, kept: &wire::Outcome, path: &NodePath) -> Result<Outcome> {
    let at = |part: &str| format!("{field}.outcome.{part}");
    let device = required(&at("device"), &kept.device)?;
    let node = match known(&at("node"), kept.node)? {
        wire::NodeWay::NODE_WAY_BIND => Way::Bind,
        _ => Way::Mknod,
    };
    let filter = match known(&at("filter"), kept.filter)? {
        wire::FilterMode::FILTER_MODE_V1 => cgroup::Mode::V1,
        wire::FilterMode::FILTER_MODE_BPF => cgroup::Mode::Bpf,
        _ => cgroup::Mode::None,
    };
    let device = DeviceNumber { major: device.major, minor: device.minor };
    if device.major > LARGEST_MAJOR || device.minor > LARGEST_MINOR {
        let rule = "must have a major number of at most 4095 and a minor of at most 1048575";
        return Err(invalid(at("device"), device.to_string(), rule));
    }
    let wire::Outcome { allowed_before, container_started, .. } = *kept;
    let parents_made = parents_made(&at("parents_made"), &kept.parents_made, path)?;
    Ok(Outcome { device, node, parents_made, filter, allowed_before, container_started })
}

/// They are removed where they are empty: nothing but parts of the volume's own path, each below
/// the one before.
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
mod tests {
    use rstest::rstest;

    use super::*;

    fn valid() -> wire::Attachment {
        wire::Attachment {
            container_id: "c1".into(),
            controller: "0000:00:01.0".into(),
            address: Some(wire::ScsiAddress { target: 255, lun: 1, ..Default::default() }).into(),
            serial: "0123456789abcdef".into(),
            size: 16 << 20,
            path: "/dev/xvda".into(),
            access: wire::Access::ACCESS_READ_WRITE.into(),
            mode: 0o660,
            ..Default::default()
        }
    }

    fn error_of(change: impl FnOnce(&mut wire::Attachment)) -> String {
        let mut item = valid();
        change(&mut item);
        attachments(&[item]).unwrap_err().to_string()
    }

    #[test]
    fn a_valid_attachment_passes() {
        let attachment = &attachments(&[valid()]).unwrap()[0];
        assert_eq!(attachment.controller.as_deref(), Some("0000:00:01.0"));
        assert_eq!(attachment.address, ScsiAddress { target: 255, lun: 1 });
        assert_eq!((attachment.path.parent(), attachment.path.name()), ("/dev", "xvda"));
    }

    #[rstest]
    #[case("container_id", |item: &mut wire::Attachment| item.container_id = "../c1".into())]
    #[case("container_id", |item: &mut wire::Attachment| item.container_id = "c".repeat(129))]
    #[case("container_id", |item: &mut wire::Attachment| item.container_id.clear())]
    #[case("controller", |item: &mut wire::Attachment| item.controller = "../../x".into())]
    #[case("address", |item: &mut wire::Attachment| item.address = None.into())]
    #[case("address", |item: &mut wire::Attachment| item.address.as_mut().unwrap().target = 256)]
    #[case("address", |item: &mut wire::Attachment| item.address.as_mut().unwrap().lun = 0)]
    #[case("address", |item: &mut wire::Attachment| item.address.as_mut().unwrap().lun = 256)]
    #[case("serial", |item: &mut wire::Attachment| item.serial = "s".repeat(21))]
    #[case("serial", |item: &mut wire::Attachment| item.serial = "a/b".into())]
    #[case("size", |item: &mut wire::Attachment| item.size = 0)]
    #[case("size", |item: &mut wire::Attachment| item.size = 513)]
    #[case("size", |item: &mut wire::Attachment| item.size = 1 << 63)]
    #[case("controller", |item: &mut wire::Attachment| item.controller = "0".repeat(33))]
    #[case("serial", |item: &mut wire::Attachment| item.serial.clear())]
    #[case("owner", |item: &mut wire::Attachment| item.uid = u32::MAX)]
    #[case("path", |item: &mut wire::Attachment| item.path = "dev/xvda".into())]
    #[case("path", |item: &mut wire::Attachment| item.path = "/dev/../xvda".into())]
    #[case("path", |item: &mut wire::Attachment| item.path = "/dev/".into())]
    #[case("path", |item: &mut wire::Attachment| item.path = "/dev/a\0b".into())]
    #[case("path", |item: &mut wire::Attachment| item.path = format!("/dev/{}", "a".repeat(256)))]
    #[case("path", |item: &mut wire::Attachment| item.path = "/a".repeat(2049))]
    #[case("path", |item: &mut wire::Attachment| item.path = "/dev/.ecrblk-1".into())]
    #[case("access", |item: &mut wire::Attachment| item.access = EnumOrUnknown::from_i32(0))]
    #[case("access", |item: &mut wire::Attachment| item.access = EnumOrUnknown::from_i32(7))]
    #[case("owner", |item: &mut wire::Attachment| item.mode = 0o4777)]
    #[case("owner", |item: &mut wire::Attachment| item.gid = u32::MAX)]
    fn a_field_out_of_bounds_is_named(
        #[case] field: &str,
        #[case] change: fn(&mut wire::Attachment),
    ) {
        let message = error_of(change);
        assert!(message.starts_with(&format!("attachments[0].{field}: ")), "{message}");
        assert!(message.len() < 400, "{message}");
    }

    #[test]
    fn a_batch_names_each_volume_address_and_path_once() {
        let mut second = valid();
        let error = |second: &wire::Attachment| {
            attachments(&[valid(), second.clone()]).unwrap_err().to_string()
        };
        assert!(error(&second).starts_with("serial: "), "{}", error(&second));
        second.serial = "b".into();
        assert!(error(&second).starts_with("address: "), "{}", error(&second));
        second.address.as_mut().unwrap().lun = 2;
        assert!(error(&second).starts_with("path: "), "{}", error(&second));
        second.container_id = "c2".into();
        attachments(&[valid(), second]).unwrap();
    }

    #[test]
    fn counts_and_time_outs_have_bounds() {
        assert!(attachments(&[]).is_err());
        assert!(
            attachments(&vec![valid(); 257])
                .unwrap_err()
                .to_string()
                .starts_with("attachments: 257")
        );
        assert!(paths(&[]).unwrap().is_empty());
        assert!(timeout(0).is_err() && timeout(600_001).is_err() && timeout(u64::MAX).is_err());
        let most = timeout(1500).unwrap();
        assert_eq!(most, Duration::from_millis(1500));
        assert_eq!((wait(0, most).unwrap(), wait(1500, most).unwrap()), (Duration::ZERO, most));
        assert!(wait(1501, most).unwrap_err().to_string().starts_with("wait_ms: 1501"));
    }

    #[rstest]
    #[case(&[], true)]
    #[case(&["/dev/a"], true)]
    #[case(&["/dev/a", "/dev/a/b"], true)]
    #[case(&["/dev/a/b", "/dev/a"], false)]
    #[case(&["/dev/a", "/dev/a"], false)]
    #[case(&["/dev/a/b/x"], false)]
    #[case(&["/dev/a/"], false)]
    #[case(&["/dev/ab"], false)]
    #[case(&["/etc"], false)]
    #[case(&["/"], false)]
    fn nothing_but_parents_of_the_path_is_taken_for_made(
        #[case] made: &[&str],
        #[case] fine: bool,
    ) {
        let made: Vec<String> = made.iter().map(|path| (*path).to_owned()).collect();
        let path = NodePath::new("/dev/a/b/x").unwrap();
        let result = parents_made("outcome.parents_made", &made, &path);
        assert_eq!(result.is_ok(), fine, "{result:?}");
    }

    #[rstest]
    #[case("filter: 9 must", |outcome: &mut wire::Outcome| outcome.filter = EnumOrUnknown::from_i32(9))]
    #[case("filter: 0 must", |outcome: &mut wire::Outcome| outcome.filter = EnumOrUnknown::from_i32(0))]
    #[case("node: 9 must", |outcome: &mut wire::Outcome| outcome.node = EnumOrUnknown::from_i32(9))]
    #[case("node: 0 must", |outcome: &mut wire::Outcome| outcome.node = EnumOrUnknown::from_i32(0))]
    #[case("device: \"nothing\" must", |outcome: &mut wire::Outcome| outcome.device = None.into())]
    #[case("device: \"4096:16\" must", |outcome: &mut wire::Outcome| outcome.device.as_mut().unwrap().major = 4096)]
    #[case("device: \"8:1048576\" must", |outcome: &mut wire::Outcome| outcome.device.as_mut().unwrap().minor = 1 << 20)]
    fn an_outcome_is_checked_too(#[case] told: &str, #[case] change: fn(&mut wire::Outcome)) {
        let mut item = wire::Detachment { attachment: Some(valid()).into(), ..Default::default() };
        assert_eq!(kept(std::slice::from_ref(&item)).unwrap()[0].outcome, None);
        let mut outcome = wire::Outcome {
            device: Some(wire::DeviceNumber { major: 8, minor: 16, ..Default::default() }).into(),
            node: wire::NodeWay::NODE_WAY_MKNOD.into(),
            filter: wire::FilterMode::FILTER_MODE_NONE.into(),
            ..Default::default()
        };
        item.outcome = Some(outcome.clone()).into();
        assert!(kept(std::slice::from_ref(&item)).unwrap()[0].outcome.is_some());
        change(&mut outcome);
        item.outcome = Some(outcome).into();
        let message = kept(std::slice::from_ref(&item)).unwrap_err().to_string();
        assert!(message.starts_with(&format!("attachments[0].outcome.{told}")), "{message}");
    }

    #[test]
    fn a_detachment_names_an_attachment() {
        let message = kept(&[wire::Detachment::default()]).unwrap_err().to_string();
        assert!(message.starts_with("attachments[0]: \"nothing\" must"), "{message}");
    }
}
