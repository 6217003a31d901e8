//! Volumes that are mounted, against a real QEMU and a fake agent: what the guest is asked, what is
//! recorded and reported, and what is refused before anything changes.

use std::{fs, path::Path, sync::atomic::Ordering};

use crate::common::{
    Host, RunOutput,
    fake_agent::OnAttach,
    records, run,
    volume::{Image, Loop},
};
use block_volume_api::block_volume::{FsGroupChange, NodeWay, Reason};
use host_trigger::{
    ops::{
        place::{MountPlace, Place},
        volume::State,
    },
    output::envelope::Outcome,
    qemu::record::Record,
};
use rstest::rstest;
use serde_json::json;

const MIB: u64 = 1 << 20;

fn mount_of(place: &Place) -> &MountPlace {
    place.mount().unwrap_or_else(|| panic!("{place:?}"))
}

#[tokio::test]
async fn a_volume_is_mounted_recorded_and_reported() {
    let mut host = Host::boot().await;
    let volume = Loop::of(MIB);
    *host.agent.mounts.owners_changed.lock().unwrap() = 7;
    let options = [
        "--fs-type",
        "ext3",
        "--mount-options",
        "noatime,commit=30",
        "--fs-group",
        "2000",
        "--fs-group-change-policy",
        "OnRootMismatch",
    ];
    let report = host.mount(volume.path(), "/data", &options).await.report();
    assert_eq!(report.result, Outcome::Attached);
    let mounted = &report.body.volumes[0];
    assert_eq!((mounted.node.as_str(), mounted.device_filter.as_str()), ("mount", ""));
    let mount = mount_of(&mounted.place);
    // What the guest has found.
    assert_eq!((mount.mount_path.as_str(), mount.fs_type.as_str()), ("/data", "ext4"));
    assert_eq!(mount.mount_options, ["noatime", "commit=30"]);
    assert_eq!((mount.fs_group, mount.owners_changed), (Some(2000), Some(7)));

    let asked = host.agent.attachment(&mounted.id).unwrap();
    assert_eq!((asked.path.as_str(), asked.mode, asked.uid), ("/data", 0o40_000, 0));
    assert_eq!(asked.mount.file_system, "ext3");
    assert_eq!(asked.mount.options, ["noatime", "commit=30"]);
    let group = &asked.mount.fs_group;
    let change = FsGroupChange::FS_GROUP_CHANGE_ON_ROOT_MISMATCH;
    assert_eq!((group.gid, group.change), (2000, change.into()));

    let records = records(&host.snapshot().await);
    let commit = records.iter().find_map(|record| match record {
        Record::Commit(commit) => Some(commit),
        _ => None,
    });
    let outcome = commit.unwrap().outcome();
    assert_eq!(outcome.node, NodeWay::NODE_WAY_MOUNT.into());
    assert_eq!(
        (outcome.mounted.file_system.as_str(), &outcome.parents_made[..]),
        ("ext4", &["/data".to_owned()][..])
    );
    assert!(volume.is_claimed());
}

#[tokio::test]
async fn a_repeat_is_unchanged_and_other_options_conflict() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    let options = ["--mount-options", "noatime"];
    host.mount(image.path(), "/data", &options).await.report();
    let before = host.snapshot().await;
    let again = host.mount(image.path(), "/data", &options).await.report();
    assert_eq!(again.result, Outcome::Unchanged);
    let named = [&options[..], &["--fs-type", "ext4"]].concat();
    host.mount(image.path(), "/data", &named).await.report();

    for other in [
        &["--fs-type", "xfs", "--mount-options", "noatime"][..],
        &["--mount-options", "nodiratime"],
        &["--mount-options", "noatime", "--fs-group", "5"],
        &["--mount-options", "noatime,ro"],
    ] {
        host.mount(image.path(), "/data", other).await.assert_fails("other_options", 4);
    }
    // As a device at the same path, and elsewhere as either.
    host.plug(image.path(), "/data", &[]).await.assert_fails("other_options", 4);
    host.plug(image.path(), "/dev/xvda", &["--shared"]).await.assert_fails("other_options", 4);
    host.mount(image.path(), "/other", &options).await.assert_fails("volume_taken", 4);
    let second = Image::of(MIB);
    host.mount(second.path(), "/data", &[]).await.assert_fails("path_taken", 4);
    host.plug(second.path(), "/data", &[]).await.assert_fails("path_taken", 4);
    assert_eq!(host.snapshot().await, before);
}

#[tokio::test]
async fn both_kinds_are_plugged_in_one_call_and_selected_by_their_paths() {
    let host = Host::boot().await;
    let (device, mount) = (Image::of(MIB), Image::of(2 * MIB));
    let mut command = host.command(&[(device.path(), "/dev/xvda")], &["--mode", "600"]);
    command.arg("--block-volume").arg(mount.path()).args(["--mount-path", "/data"]);
    let report = run(&mut command).await.report();
    let paths: Vec<_> =
        report.body.volumes.iter().map(|volume| (volume.place.path(), volume.size / MIB)).collect();
    assert_eq!(paths, [("/dev/xvda", 1), ("/data", 2)]);
    let id = &report.body.volumes[1].id;

    let listed = host.verb("list", &[]).await.listing().body.volumes;
    let kinds: Vec<_> =
        listed.iter().map(|listed| (listed.volume.place.mount().is_some(), listed.state)).collect();
    assert_eq!(kinds, [(true, State::Attached), (false, State::Attached)]);

    let inspected = host.verb("inspect", &["--mount-path", "/data"]).await.listing();
    let listed = &inspected.body.volumes[0];
    let file_system = listed.guest.as_ref().unwrap().file_system.as_ref().unwrap();
    assert_eq!((&listed.volume.id, file_system.used_bytes, file_system.inodes_used), (id, 600, 3));
    for (option, path) in [("--device-path", "/data"), ("--mount-path", "/dev/xvda")] {
        host.verb("inspect", &[option, path]).await.assert_fails("volume_not_found", 3);
    }
    host.verb("inspect", &["--mount-path", "data"]).await.assert_fails("invalid_mount_path", 2);
    host.verb("throttle", &["--mount-path", "/data", "--iops", "9"]).await.report();

    let detached = host.verb("hot-unplug", &["--mount-path", "/data"]).await.report();
    assert_eq!((detached.result, &detached.body.volumes[0].id), (Outcome::Detached, id));
    let asked = host.agent.last_detachments.lock().unwrap()[0].clone();
    assert_eq!(asked.outcome.node, NodeWay::NODE_WAY_MOUNT.into());
    assert_eq!(asked.outcome.mounted.file_system, "ext4");
    assert_eq!(asked.attachment.mode, 0o40_000);
    assert_eq!(host.agent.attached_paths(), ["/dev/xvda"]);
}

#[tokio::test]
async fn an_agent_without_mounts_is_refused_before_anything_changes() {
    let mut host = Host::boot().await;
    let before = host.snapshot().await;
    let image = Image::of(MIB);
    host.agent.mounts.are_unknown.store(true, Ordering::Relaxed);
    for more in [&[][..], &["--dry-run"]] {
        host.mount(image.path(), "/data", more).await.assert_fails("no_mounts", 10);
    }
    assert!(host.changes().is_empty(), "{:?}", host.changes());
    assert!(host.agent.starts.lock().unwrap().is_empty());
    // A device needs nothing of it.
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    host.verb("hot-unplug", &["--device-path", "/dev/xvda"]).await.report();
    assert_eq!(host.snapshot().await, before);
}

#[rstest]
#[case(Reason::REASON_NO_FILE_SYSTEM, "no_file_system", 9)]
#[case(Reason::REASON_FILE_SYSTEM_MISMATCH, "file_system_mismatch", 9)]
#[case(Reason::REASON_FILE_SYSTEM_REFUSED, "file_system_refused", 9)]
#[case(Reason::REASON_OWNERS_INCOMPLETE, "owners_incomplete", 7)]
#[tokio::test]
async fn what_the_guest_refuses_leaves_nothing(
    #[case] reason: Reason,
    #[case] name: &str,
    #[case] exit_code: u8,
) {
    let mut host = Host::boot().await;
    let (before, image) = (host.snapshot().await, Image::of(MIB));
    host.agent.set_on_attach(OnAttach::Fails { reason, undone: true });
    let failed = host.mount(image.path(), "/data", &[]).await;
    failed.assert_fails(name, exit_code);
    assert_eq!(host.snapshot().await, before);
}

#[rstest]
#[case::any(&[], "ext4")]
#[case::requested(&["--fs-type", "xfs"], "xfs")]
#[case::only_read(&["--fs-type", "squashfs", "--read-only"], "ext4")]
#[tokio::test]
async fn the_command_that_would_format_a_blank_volume_is_named(
    #[case] more: &[&str],
    #[case] fs_type: &str,
) {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    let reason = Reason::REASON_NO_FILE_SYSTEM;
    host.agent.set_on_attach(OnAttach::Fails { reason, undone: true });
    let message = host.mount(image.path(), "/data", more).await.failure().message;
    let command = format!("`mkfs.{fs_type} {:?}`", image.path());
    assert!(message.contains(&command), "{message}");
}

#[tokio::test]
async fn a_guest_that_mounts_something_else_is_rolled_back() {
    let mut host = Host::boot().await;
    let (before, image) = (host.snapshot().await, Image::of(MIB));
    *host.agent.mounts.found_type.lock().unwrap() = "xfs";
    host.mount(image.path(), "/data", &["--fs-type", "ext4"]).await.assert_fails("agent_answer", 1);
    *host.agent.mounts.found_type.lock().unwrap() = "telepathyfs";
    host.mount(image.path(), "/data", &[]).await.assert_fails("agent_answer", 1);
    assert_eq!(host.snapshot().await, before);
    assert!(host.agent.attached_paths().is_empty());
}

#[tokio::test]
async fn a_command_line_that_contradicts_itself_is_refused() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    for (more, reason) in [
        (&["--device-path", "/dev/a"][..], "two_paths"),
        (&["--uid", "5"], "usage"),
        (&["--mode", "600"], "usage"),
        (&["--shared"], "usage"),
        (&["--mount-options", "dev"], "invalid_mount_option"),
        (&["--mount-options", "suid"], "invalid_mount_option"),
        (&["--read-only", "--mount-options", "rw"], "usage"),
        (&["--read-only", "--fs-group", "5"], "usage"),
        (&["--fs-group-change-policy", "Always"], "usage"),
        (&["--mount-info", "x"], "usage"),
    ] {
        host.mount(image.path(), "/data", more).await.assert_fails(reason, 2);
    }
    host.plug(image.path(), "/dev/a", &["--fs-type", "ext4"]).await.assert_fails("usage", 2);
    assert!(host.changes().is_empty());
}

/// Runs a hot-plug of what Kata's mount info says; without a file, it is on standard input.
async fn mount_by_info(host: &Host, file: Option<&Path>, text: &str) -> RunOutput {
    let mut command = host.command(&[], &["--mount-path", "/data"]);
    let directory = tempfile::tempdir().unwrap();
    let input = directory.path().join("input");
    fs::write(&input, text).unwrap();
    command.arg("--mount-info").arg(file.unwrap_or(Path::new("-")));
    run(command.stdin(fs::File::open(&input).unwrap())).await
}

#[tokio::test]
async fn a_volume_is_mounted_as_katas_mount_info_has_it() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    let info = json!({
        "volume-type": "block", "device": image.path(), "fstype": "ext4", "options": ["noatime", "ro"],
    });
    let file = host.path("mountInfo.json");
    fs::write(&file, info.to_string()).unwrap();
    let report = mount_by_info(&host, Some(&file), "").await.report();
    let mounted = &report.body.volumes[0];
    assert_eq!((mounted.source.as_path(), mounted.read_only), (image.path(), true));
    assert_eq!(mount_of(&mounted.place).mount_options, ["noatime"]);
    let again = mount_by_info(&host, None, &info.to_string()).await.report();
    assert_eq!(again.result, Outcome::Unchanged);

    let unknown = mount_by_info(&host, None, r#"{"fsName":"x"}"#).await;
    unknown.assert_fails("invalid_mount_info", 2);
    assert!(unknown.failure().message.contains("fsName"), "{unknown:?}");
}

#[rstest]
#[case("", 2 * MIB)]
#[case("it is full of errors \u{1b}", MIB)]
#[tokio::test]
async fn a_resize_tells_of_the_file_system(#[case] not_grown: &'static str, #[case] size: u64) {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    host.mount(image.path(), "/data", &[]).await.report();
    *host.agent.mounts.not_grown.lock().unwrap() = not_grown;
    let resized = host.verb("resize", &["--mount-path", "/data", "--size", "2MiB"]).await.report();
    assert_eq!((resized.result, resized.body.volumes[0].size), (Outcome::Resized, 2 * MIB));
    let grown = resized.body.file_system.unwrap();
    assert_eq!((grown.before_bytes, grown.capacity_bytes), (MIB, size));
    assert_eq!(grown.not_grown.is_empty(), not_grown.is_empty());
    assert!(!grown.not_grown.contains('\u{1b}'));

    let shrink = ["--mount-path", "/data", "--size", "1MiB", "--allow-shrink"];
    let refused = host.verb("resize", &shrink).await;
    refused.assert_fails("busy", 5);
    assert_eq!(refused.failure().holders[0].detail, "/data");
}

#[tokio::test]
async fn statistics_have_the_use_of_the_file_system() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    host.mount(image.path(), "/data", &[]).await.report();
    let stats = host.verb("stats", &["--mount-path", "/data"]).await;
    let document: serde_json::Value = serde_json::from_str(&stats.stdout).unwrap();
    let volume = &document["volumes"][0];
    assert_eq!(volume["mount_path"], "/data");
    assert_eq!(
        volume["file_system"],
        json!({
            "type": "ext4", "capacity_bytes": 1000, "used_bytes": 600, "available_bytes": 300,
            "inodes": 10, "inodes_used": 3, "inodes_free": 7, "read_only": false,
        })
    );
}

#[tokio::test]
async fn a_mount_that_the_container_lost_is_made_again_by_repair() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    host.mount(image.path(), "/data", &["--mount-options", "noatime"]).await.report();
    host.agent.lost_nodes.lock().unwrap().push("/data".into());
    let repaired = host.verb("repair", &[]).await.repaired();
    let volume = &repaired.body.volumes[0];
    assert_eq!(volume.detail, "its mount was gone from the container");
    let place = mount_of(&volume.place);
    assert_eq!(
        (place.mount_path.as_str(), &place.mount_options[..]),
        ("/data", &["noatime".to_owned()][..])
    );
    let listed = host.verb("list", &[]).await.listing();
    assert_eq!(listed.body.volumes[0].state, State::Attached);
}

#[tokio::test]
async fn a_mount_of_a_container_that_is_gone_is_freed_by_repair() {
    let mut host = Host::boot().await;
    let (before, image) = (host.snapshot().await, Image::of(MIB));
    host.mount(image.path(), "/data", &[]).await.report();
    host.agent.gone_containers.lock().unwrap().push("c1".into());
    host.verb("repair", &[]).await.repaired();
    assert_eq!(host.snapshot().await, before);
}

#[tokio::test]
async fn a_mount_is_freed_without_its_guest() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    host.mount(image.path(), "/data", &[]).await.report();
    let freed = host.verb("hot-unplug", &["--mount-path", "/data", "--force", "--without-guest"]);
    let report = freed.await.report();
    let lost = report.body.lost.join("\n");
    assert!(lost.contains("mounted at /data in container c1"), "{lost}");
    host.mount(image.path(), "/data", &[]).await.assert_fails("abandoned_volume", 4);
    host.verb("repair", &[]).await.repaired();
    let asked = host.agent.last_detachments.lock().unwrap()[0].clone();
    assert!(asked.attachment.mount.is_some());
    host.mount(image.path(), "/data", &[]).await.report();
}

#[tokio::test]
async fn an_agent_without_the_conversation_is_asked_by_calls() {
    let host = Host::boot().await;
    host.agent.become_old().await;
    let image = Image::of(MIB);
    let report = host.mount(image.path(), "/data", &[]).await.report();
    assert_eq!(mount_of(&report.body.volumes[0].place).fs_type, "ext4");
    host.verb("hot-unplug", &["--mount-path", "/data"]).await.report();
}

#[tokio::test]
async fn the_audit_log_names_the_mount() {
    let host = Host::boot().await;
    let (image, log) = (Image::of(MIB), host.path("audit.log"));
    let more = ["--audit-log", log.to_str().unwrap(), "--mount-options", "noatime"];
    host.mount(image.path(), "/data", &more).await.report();
    let text = fs::read_to_string(&log).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["requested"][0]["mount_path"], "/data");
    let volume = &lines[1]["volume"];
    assert_eq!((&volume["mount_path"], &volume["fs_type"]), (&json!("/data"), &json!("ext4")));
    assert_eq!(volume["mount_options"], json!(["noatime"]));
}
