//! Limits of requests: what passes, and which field is named where one does not.

use rstest::rstest;

use protobuf::EnumOrUnknown;

use super::*;

/// Checks a message as it arrives.
fn checked(rpc: Rpc, message: &impl protobuf::Message) -> Result<Checked> {
    let bytes = message.write_to_bytes().unwrap();
    check(rpc, &Request::decode(rpc, &bytes).unwrap())
}

fn attachments(list: &[wire::Attachment]) -> Result<Vec<Arc<Attachment>>> {
    let attachments = list.to_vec();
    let request = wire::AttachRequest { attachments, timeout_ms: 1, ..Default::default() };
    let volumes = checked(Rpc::Attach, &request)?.volumes;
    Ok(volumes.into_iter().map(|volume| volume.attachment).collect())
}

fn detachments(list: &[wire::Detachment]) -> Result<Vec<Detachment>> {
    let request = wire::InspectRequest { attachments: list.to_vec(), ..Default::default() };
    Ok(checked(Rpc::Inspect, &request)?.volumes)
}

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
fn a_field_out_of_bounds_is_named(#[case] field: &str, #[case] change: fn(&mut wire::Attachment)) {
    let message = error_of(change);
    assert!(message.starts_with(&format!("attachments[0].{field}: ")), "{message}");
    assert!(message.len() < 400, "{message}");
}

fn mount() -> wire::Attachment {
    let mount = wire::Mount { options: vec!["noatime".into()], ..Default::default() };
    wire::Attachment { path: "/data".into(), mode: 0o40000, mount: Some(mount).into(), ..valid() }
}

#[rstest]
#[case("owner", |item: &mut wire::Attachment| item.mode = 0o660)]
#[case("owner", |item: &mut wire::Attachment| item.uid = 1)]
#[case("mount.file_system", |item: &mut wire::Attachment| of_mount(item).file_system = "nfs".into())]
#[case("mount.options", |item: &mut wire::Attachment| of_mount(item).options.push("dev".into()))]
#[case("mount.options", |item: &mut wire::Attachment| of_mount(item).options.push("usrquota".into()))]
#[case("mount.options", |item: &mut wire::Attachment| of_mount(item).options = vec!["noatime".into(); 33])]
#[case("mount.fs_group", |item: &mut wire::Attachment| of_mount(item).fs_group = Some(wire::FsGroup::new()).into())]
#[case("mount.fs_group", |item: &mut wire::Attachment| {
    item.access = wire::Access::ACCESS_READ_ONLY.into();
    let change = wire::FsGroupChange::FS_GROUP_CHANGE_ALWAYS.into();
    of_mount(item).fs_group = Some(wire::FsGroup { change, ..Default::default() }).into();
})]
fn a_field_of_a_mount_out_of_bounds_is_named(
    #[case] field: &str,
    #[case] change: fn(&mut wire::Attachment),
) {
    attachments(&[mount()]).unwrap();
    let mut item = mount();
    change(&mut item);
    let message = attachments(&[item]).unwrap_err().to_string();
    assert!(message.starts_with(&format!("attachments[0].{field}: ")), "{message}");
}

#[rstest]
#[case::below_a_mount("/data/x", "c1", Some("\"/data/x\" must not be below a mount"))]
#[case::beside_it("/database", "c1", None)]
#[case::of_another_container("/data/x", "c2", None)]
fn a_path_that_a_mount_of_the_same_request_would_hide_is_refused(
    #[case] path: &str,
    #[case] container: &str,
    #[case] why: Option<&str>,
) {
    let mut below = valid();
    (below.path, below.container_id) = (path.into(), container.into());
    below.serial = "other".into();
    below.address.as_mut().unwrap().lun = 9;
    let above = wire::Attachment { container_id: "c1".into(), ..mount() };
    // In either order.
    for pair in [[above.clone(), below.clone()], [below, above]] {
        let error = attachments(&pair).err().map(|error| error.to_string());
        match why {
            Some(why) => assert!(error.as_ref().is_some_and(|it| it.contains(why)), "{error:?}"),
            None => assert_eq!(error, None),
        }
    }
}

fn of_mount(item: &mut wire::Attachment) -> &mut wire::Mount {
    item.mount.as_mut().unwrap()
}

/// Its mode says that it is no node, to a plugin that does not know mounts.
#[test]
fn the_mode_of_a_mount_is_none_of_a_node() {
    let item = wire::Attachment { mount: None.into(), ..mount() };
    assert!(attachments(&[item]).unwrap_err().to_string().contains("mode 40000"));
}

#[test]
fn the_outcome_of_a_mount_is_its_own() {
    let device = Some(wire::DeviceNumber { major: 8, ..Default::default() }).into();
    let mounted = wire::Mounted { file_system: "ext4".into(), ..Default::default() };
    let outcome = wire::Outcome {
        device,
        node: wire::NodeWay::NODE_WAY_MOUNT.into(),
        parents_made: vec!["/data".into()],
        mounted: Some(mounted).into(),
        ..Default::default()
    };
    let of = |attachment, outcome: &wire::Outcome| wire::Detachment {
        attachment: Some(attachment).into(),
        outcome: Some(outcome.clone()).into(),
        ..Default::default()
    };
    let found = detachments(&[of(mount(), &outcome)]).unwrap();
    let found = found[0].outcome.as_ref().unwrap();
    assert!(matches!(found.way, Way::Mount(_)) && found.filter.is_none(), "{found:?}");
    detachments(&[of(valid(), &outcome)]).unwrap_err();
    let absent = wire::Outcome { mounted: None.into(), ..outcome };
    detachments(&[of(mount(), &absent)]).unwrap_err();
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
        attachments(&vec![valid(); 257]).unwrap_err().to_string().starts_with("attachments: 257")
    );
    assert!(paths("paths", &[]).unwrap().is_empty());
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
fn only_parents_of_the_path_are_directories_that_an_attach_made(
    #[case] made: &[&str],
    #[case] fine: bool,
) {
    let path = NodePath::new("/dev/a/b/x").unwrap();
    let result = parents_made(Field::of_request("parents_made"), made, &path, false);
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
fn an_outcome_is_checked_too(#[case] expected: &str, #[case] change: fn(&mut wire::Outcome)) {
    let mut item = wire::Detachment { attachment: Some(valid()).into(), ..Default::default() };
    assert_eq!(detachments(std::slice::from_ref(&item)).unwrap()[0].outcome, None);
    let mut outcome = wire::Outcome {
        device: Some(wire::DeviceNumber { major: 8, minor: 16, ..Default::default() }).into(),
        node: wire::NodeWay::NODE_WAY_MKNOD.into(),
        filter: wire::FilterMode::FILTER_MODE_NONE.into(),
        ..Default::default()
    };
    item.outcome = Some(outcome.clone()).into();
    assert!(detachments(std::slice::from_ref(&item)).unwrap()[0].outcome.is_some());
    change(&mut outcome);
    item.outcome = Some(outcome).into();
    let message = detachments(std::slice::from_ref(&item)).unwrap_err().to_string();
    assert!(message.starts_with(&format!("attachments[0].outcome.{expected}")), "{message}");
}

#[test]
fn a_detachment_names_an_attachment() {
    let message = detachments(&[wire::Detachment::default()]).unwrap_err().to_string();
    assert!(message.starts_with("attachments[0]: \"nothing\" must"), "{message}");
}
