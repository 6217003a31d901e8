//! Volumes whose file systems are mounted in the container.

use super::super::{Fixture, GuestInfo, check::check, fixture::succeeded, raw_client::MIB};
use super::Check;
use crate::{Container, FileSystem, Volume, random_bytes};

pub(super) const CHECKS: &[Check] = &[
    check!(
        "mount",
        container_reads_what_the_host_wrote,
        "the file system of a volume appears in a running container with the host's files",
        breaks: "The mount is made in the agent's mount namespace, or below a root that is not the \
         container's.",
        look: "/proc/PID/mountinfo of the container's first process, and of the agent. The mount \
         namespace in the glue's Container."
    )
    .only_if(GuestInfo::mounts_file_systems),
    check!(
        "mount",
        gives_neither_devices_nor_privileges,
        "the mount is nodev and nosuid, and the container gets no device node and no device right",
        breaks: "The mount was changed after the plugin's, or the agent adds the disk to the container's \
         devices by itself.",
        look: "The options in the container's mountinfo: an image with a device node inside would give \
         the guest's disks away."
    )
    .only_if(GuestInfo::mounts_file_systems),
    check!(
        "mount",
        read_only_file_system_is_not_written,
        "a volume that is mounted read-only cannot be written, and its bytes stay",
        breaks: "The file system itself is writable, and only the mount is not: the kernel then replays \
         the journal, and writes the time of the mount.",
        look: "The last field of the line in the container's mountinfo must begin with ro, too; \
         /sys/block/*/ro in the guest."
    )
    .only_if(GuestInfo::mounts_file_systems),
    check!(
        "mount",
        held_file_system_is_refused_and_works_on,
        "while a process has a file open it stays mounted, and the holder is named",
        breaks: "Processes of the container are not found: the agent's /proc shows another PID namespace, \
         or is mounted with hidepid.",
        look: "/proc in the agent's mount namespace: it must show every process of the guest."
    )
    .only_if(GuestInfo::mounts_file_systems),
    check!(
        "mount",
        what_was_written_is_on_the_host,
        "after an unplug without a sync the host reads what the container wrote",
        breaks: "The disk is removed before the file system is unmounted. This loses data.",
        look: "The agent's log of the detach at level debug: the unmount comes before the removal. \
         dmesg of the guest must have no I/O error."
    )
    .only_if(GuestInfo::mounts_file_systems),
    check!(
        "mount",
        leaves_nothing,
        "no mount, no directory that was made, and no disk is left after the unplug",
        breaks: "A copy of the mount stays in another mount namespace: that of the agent, or of a \
         process that the agent started meanwhile.",
        look: "Every /proc/PID/mountinfo of the guest. The message has each difference."
    )
    .only_if(GuestInfo::mounts_file_systems),
    check!(
        "mount",
        volume_without_a_file_system_is_refused,
        "a blank volume is not formatted, and nothing is changed",
        breaks: "The agent formats what it cannot mount, or the plugin's failure is not passed on.",
        look: "The reason in ecr-runtime's message, which names the command that would format it."
    )
    .only_if(GuestInfo::mounts_file_systems),
    check!(
        "mount",
        container_with_a_user_namespace_owns_its_files,
        "root of the container owns what root owns on the volume, by an idmapped mount",
        breaks: "The glue gives the plugin another user namespace than the container's, or none.",
        look: "The entry `user` of the specification's namespaces in the glue; `stat` of a file in the \
         container."
    )
    .only_if(GuestInfo::maps_users_of_file_systems),
];

/// Below a directory that is made, and that a snapshot covers.
const PATH: &str = "/dev/conformance/data";
/// The same, of one check alone: what an earlier one has left is not made again.
const OWN_PATH: &str = "/dev/leaves/nothing";
const FILE: (&str, &[u8]) = ("hello", b"from the host");

fn volume() -> Volume {
    FileSystem::Ext4.volume(&[FILE])
}

async fn shell(container: &Container, script: &str) -> String {
    String::from_utf8_lossy(&container.exec(&["sh", "-c", script]).await).into_owned()
}

async fn assert_readable(container: &Container) {
    let read = container.exec(&["cat", &format!("{PATH}/{}", FILE.0)]).await;
    assert!(read == FILE.1, "the container reads other bytes than the host wrote");
}

/// Returns the line of the mount in the container's mountinfo.
async fn mountinfo(container: &Container) -> String {
    shell(container, &format!("grep ' {PATH} ' /proc/self/mountinfo")).await
}

async fn container_reads_what_the_host_wrote(fixture: &Fixture) {
    let volume = volume();
    fixture.mount(&fixture.container, &volume, PATH).await;
    assert_readable(&fixture.container).await;
    assert!(!fixture.guest_has(PATH).await, "the agent's own mount namespace has the path");
    fixture.unmount(&fixture.container, PATH).await;
}

async fn gives_neither_devices_nor_privileges(fixture: &Fixture) {
    let volume = volume();
    let before = fixture.snapshot().await;
    fixture.mount(&fixture.filtered, &volume, PATH).await;
    let line = mountinfo(&fixture.filtered).await;
    let options: Vec<_> = line.split(' ').nth(5).unwrap_or_default().split(',').collect();
    for option in ["nodev", "nosuid"] {
        assert!(options.contains(&option), "the mount is not {option}: {line}");
    }
    let after = fixture.snapshot().await;
    assert_eq!(after.device_filters, before.device_filters, "the container's device rights");
    let nodes = shell(&fixture.filtered, "find /dev -type b").await;
    assert_eq!(nodes, "", "the container has a device node");
    fixture.unmount(&fixture.filtered, PATH).await;
}

async fn read_only_file_system_is_not_written(fixture: &Fixture) {
    let volume = volume();
    let checksum = volume.checksum();
    let command = fixture.mount_command(&fixture.container, &volume, PATH);
    succeeded(&command.args(["--read-only"]).run().await);
    assert_readable(&fixture.container).await;
    let error = fixture.container.exec_fails(&["touch", &format!("{PATH}/new")]).await;
    assert!(error.contains("Read-only file system"), "{error}");
    let line = mountinfo(&fixture.container).await;
    let of_file_system = line.trim_end().rsplit(' ').next().unwrap_or_default();
    assert!(of_file_system.starts_with("ro"), "the file system itself is not read-only: {line}");
    fixture.unmount(&fixture.container, PATH).await;
    assert_eq!(volume.checksum(), checksum, "the volume was written");
}

async fn held_file_system_is_refused_and_works_on(fixture: &Fixture) {
    let (volume, container) = (volume(), &fixture.container);
    fixture.mount(container, &volume, PATH).await;
    // In its own session with its own streams, so that the call that starts it ends.
    let hold = format!(
        "exec 3<{PATH}/{}; touch /dev/held; \
         until test -e /dev/release; do sleep 0.1; done; rm /dev/held",
        FILE.0
    );
    let start = format!(
        "setsid sh -c '{hold}' </dev/null >/dev/null 2>&1 & \
         until test -e /dev/held; do sleep 0.1; done"
    );
    shell(container, &start).await;
    let (_, message) = fixture.unmount_command(container, PATH).run().await.failed_with(5);
    assert!(message.contains("sh") && message.contains(FILE.0), "it is not named: {message}");
    assert_readable(container).await;
    shell(container, "touch /dev/release; while test -e /dev/held; do sleep 0.1; done").await;
    shell(container, "rm /dev/release").await;
    fixture.unmount(container, PATH).await;
}

async fn what_was_written_is_on_the_host(fixture: &Fixture) {
    let (volume, written) = (volume(), random_bytes(MIB as usize));
    fixture.mount(&fixture.container, &volume, PATH).await;
    let write = ["sh", "-c", &format!("cat >{PATH}/file")];
    fixture.container.exec_with_input(&write, &written).await;
    fixture.unmount(&fixture.container, PATH).await;
    FileSystem::Ext4.assert_consistent(&volume);
    assert!(FileSystem::Ext4.read(&volume, "file") == written, "the host reads other bytes");
}

async fn leaves_nothing(fixture: &Fixture) {
    let volume = volume();
    let before = fixture.snapshot().await;
    fixture.mount(&fixture.container, &volume, OWN_PATH).await;
    fixture.unmount(&fixture.container, OWN_PATH).await;
    fixture.assert_as_before(&before).await;
    assert!(volume.check_claimable().is_ok(), "the host cannot claim the volume");
}

async fn volume_without_a_file_system_is_refused(fixture: &Fixture) {
    let volume = Volume::sparse(16 * MIB);
    let before = fixture.snapshot().await;
    let checksum = volume.checksum();
    let refused = fixture.mount_command(&fixture.container, &volume, PATH).run().await;
    let (reason, message) = refused.failed_with(9);
    assert_eq!(reason, "no_file_system", "{message}");
    assert!(message.contains("mkfs."), "the message names no command: {message}");
    assert_eq!(volume.checksum(), checksum, "the volume was written");
    fixture.assert_as_before(&before).await;
}

async fn container_with_a_user_namespace_owns_its_files(fixture: &Fixture) {
    let container = fixture.user_namespace.as_ref().expect("the check applies only if it exists");
    let volume = volume();
    fixture.mount(container, &volume, PATH).await;
    let owner = async |file: &str| shell(container, &format!("stat -c %u:%g {PATH}/{file}")).await;
    assert_eq!(owner(FILE.0).await, "0:0\n", "the owner as the container sees it");
    // Only an owner of the directory can make a file there.
    shell(container, &format!("echo written >{PATH}/file")).await;
    assert_eq!(owner("file").await, "0:0\n", "the owner of a file that the container made");
    fixture.unmount(container, PATH).await;
}
