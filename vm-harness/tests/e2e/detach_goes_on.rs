//! A detach always wins: whatever a container does in its tree, and wherever its processes are, the
//! disk goes, in time, and what stays in the container is reported. A caller that was told that it
//! failed never sees the work done later.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use block_volume_api::block_volume::{
    Access, AttachRequest, Attachment, Detachment, InspectRequest, Reason, ScsiAddress,
};
use rstest::rstest;
use serde_json::Value;
use vm_harness::{Container, ContainerOptions, Finished, Plugged, Sandbox, Snapshot, Volume};

use super::{
    MIB, guarded,
    host_failures::claim_is_free,
    hot_unplug::{query_volumes, unplug_command},
    qmp_faults::short,
    sandbox, sandbox_with_faults, set_guest_faults,
    swapped_parent::swapping_pair,
    wait_for_console, wait_for_fault_point,
};

/// Unplugs a volume whose node cannot be removed. Returns the reason that is reported.
async fn unplug_without_node(
    sandbox: &Sandbox,
    container: &Container,
    path: &str,
    more: &[&str],
) -> String {
    let finished = unplug_command(sandbox, container, path).args(more).run().await;
    assert_eq!(finished.status, 0, "{}{}", finished.stdout, finished.stderr);
    let left = finished.json()["volumes"][0]["left_behind"].clone();
    let [one] = left.as_array().map(Vec::as_slice).unwrap_or_default() else {
        panic!("one part stays: {}", finished.stdout)
    };
    assert_eq!(one["path"], path);
    let warning = format!("warning: left behind in the container at {path}: ");
    assert!(finished.stderr.contains(&warning), "{}", finished.stderr);
    assert!(query_volumes(sandbox, "list", &[]).await.is_empty());
    one["reason"].as_str().unwrap().to_owned()
}

/// The disks of the guest.
async fn disks(sandbox: &Sandbox) -> String {
    sandbox.observer().shell("ls /sys/bus/scsi/devices | grep '^[0-9]*:0:' || true").await
}

/// The pid of the container's first process in the guest.
async fn first_process(sandbox: &Sandbox, container: &Container) -> u32 {
    let pid = sandbox.observer().shell(&format!("cat /run/agent/{}/pid", container.id())).await;
    pid.trim().parse().unwrap()
}

#[rstest]
#[case::a_file("echo > /dev/d", "is not a directory")]
#[case::a_link_out_of_the_container("ln -s /proc/1/root/dev/e /dev/d", "not safe to follow")]
#[tokio::test]
async fn directory_that_was_exchanged_does_not_end_a_detach(
    #[future(awt)] sandbox: Sandbox,
    #[case] exchange: &str,
    #[case] reason: &str,
) {
    let container = sandbox.start_container_with(&guarded()).await;
    let volume = Volume::loop_device(MIB);
    container.exec(&["mkdir", "/dev/d"]).await;
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/d/xvda").await;
    assert_eq!(plugged.text("node"), "mknod");
    let script = format!("mv /dev/d /dev/e; {exchange}");
    container.exec(&["sh", "-ec", &script]).await;
    let reported = unplug_without_node(&sandbox, &container, "/dev/d/xvda", &[]).await;
    assert!(reported.contains("its device node: ") && reported.contains(reason), "{reported}");
    assert_eq!(disks(&sandbox).await, "");
    assert!(claim_is_free(&volume));
    // The right is gone: the next disk with this number is not the container's.
    let error = container.exec_fails(&["dd", "if=/dev/e/xvda", "count=1"]).await;
    assert!(error.contains("not permitted"), "{error}");
}

/// Links that lead up tens of thousands of times, while the container renames other files: the
/// kernel answers EAGAIN to whoever resolves such a path inside a root.
#[rstest]
#[tokio::test]
async fn path_that_is_never_resolved_does_not_end_a_detach(#[future(awt)] sandbox: Sandbox) {
    let (container, _) = swapping_pair(&sandbox, false).await;
    let volume = Volume::loop_device(MIB);
    container.exec(&["mkdir", "/dev/d"]).await;
    sandbox.hot_plug(&container, &volume, "/dev/d/xvda").await;
    let script = "mkdir /dev/arena /dev/links; cd /dev/arena; mkdir a b
        up=$(i=0; while [ $i -lt 1300 ]; do printf ../; i=$((i+1)); done)
        i=0; while [ $i -lt 36 ]; do ln -s ${up}dev/links/$((i+1)) /dev/links/$i; i=$((i+1)); done
        ln -s ${up}dev/e /dev/links/36; mv /dev/d /dev/e; ln -s links/0 /dev/d";
    container.exec(&["sh", "-ec", script]).await;
    let swaps: Vec<_> = (0..2)
        .map(|_| {
            let attacker = container.clone();
            let attack = ["/dev/observer", "swap", "/dev/arena", "a", "b"];
            tokio::spawn(async move { attacker.try_exec(&attack, b"").await.unwrap() })
        })
        .collect();
    let limit = format!("{}s", sandbox.guest().scaled(Duration::from_secs(60)).as_secs());
    let unplug = unplug_command(&sandbox, &container, "/dev/d/xvda").args(["--timeout", &limit]);
    let finished = unplug.run().await;
    println!("the unplug took {:?}", finished.elapsed);
    container.exec(&["touch", "/dev/arena/stop"]).await;
    for swap in swaps {
        let output = swap.await.unwrap();
        println!("{} exchanges", output.text().trim());
    }
    assert_eq!(finished.status, 0, "{}{}", finished.stdout, finished.stderr);
    println!("left behind: {}", finished.json()["volumes"][0]["left_behind"]);
    assert_eq!(disks(&sandbox).await, "");
    assert!(claim_is_free(&volume));
}

/// The fault point is a file system of the container that does not answer.
#[rstest]
#[tokio::test]
async fn file_system_that_does_not_answer_does_not_end_a_detach(
    #[future(awt)] sandbox_with_faults: Sandbox,
    #[values(false, true)] force: bool,
) {
    let sandbox = sandbox_with_faults;
    let container = sandbox.start_container_with(&guarded()).await;
    let volume = Volume::loop_device(MIB);
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    set_guest_faults(&sandbox, "tree=wait\n").await;
    let limit = format!("{}s", sandbox.guest().scaled(Duration::from_secs(4)).as_secs());
    let mut more = vec!["--timeout", &limit];
    more.extend(force.then_some("--force"));
    let reported = unplug_without_node(&sandbox, &container, "/dev/xvda", &more).await;
    assert!(reported.contains("timed out waiting for a file system of container"), "{reported}");
    assert_eq!(disks(&sandbox).await, "");
    assert!(claim_is_free(&volume));
    // The thread that was abandoned ends, and removes nothing.
    set_guest_faults(&sandbox, "").await;
    let ended = "while grep -qx block-volume-ns /proc/1/task/*/comm; do usleep 10000; done";
    let wait = sandbox.observer().shell(ended);
    sandbox.guest().wait_for("the thread's end", Duration::from_secs(10), wait).await.unwrap();
    container.exec(&["test", "-b", "/dev/xvda"]).await;
}

/// Waits until the plugin has logged the end of the detach that timed out.
async fn wait_for_end(sandbox: &Sandbox, seen: usize) {
    let ended = async {
        while !sandbox
            .guest()
            .console()
            .text()
            .get(seen..)
            .is_some_and(|text| text.contains("REASON_TIMED_OUT"))
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    sandbox.guest().wait_for("the detach's end", Duration::from_secs(20), ended).await.unwrap();
}

#[rstest]
#[case::by_mknod(guarded())]
#[case::by_a_mount(ContainerOptions { user_namespace: true, ..guarded() })]
#[tokio::test]
async fn nothing_is_changed_after_the_caller_was_told_that_it_failed(
    #[future(awt)] sandbox_with_faults: Sandbox,
    #[case] options: ContainerOptions,
) {
    let sandbox = sandbox_with_faults;
    let container = sandbox.start_container_with(&options).await;
    let volume = Volume::loop_device(MIB);
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    for stage in ["lookup", "release", "unlink", "revoke", "flush", "check"] {
        let seen = sandbox.guest().console().text().len();
        set_guest_faults(&sandbox, &format!("detach-after-{stage}=wait\n")).await;
        let call = unplug_command(&sandbox, &container, "/dev/xvda").args(short(&sandbox)).start();
        wait_for_fault_point(&sandbox, seen, &format!("detach-after-{stage}")).await;
        let failed = Finished::new(&call.wait_with_output().await.unwrap(), Duration::ZERO);
        assert_ne!(failed.status, 0, "{stage}: {}", failed.stdout);
        set_guest_faults(&sandbox, "").await;
        wait_for_end(&sandbox, seen).await;
        assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536), "{stage}");
        let listed = query_volumes(&sandbox, "list", &[]).await;
        assert_eq!(listed[0]["state"], "attached", "{stage}: {listed:?}");
        if matches!(stage, "lookup" | "release") {
            // Later the node was made again, with another inode.
            before.assert_unchanged(&sandbox, &[&container]).await;
        }
    }
    let finished = unplug_command(&sandbox, &container, "/dev/xvda").run().await;
    assert_eq!(finished.status, 0, "{}", finished.stdout);
    assert!(claim_is_free(&volume));
}

/// A container whose first process leaves its namespaces when something is written to `/dev/go`.
fn deserter(user_namespace: bool) -> ContainerOptions {
    let script = "mkfifo /dev/go; read line </dev/go; exec unshare -Um sleep 1000000";
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    ContainerOptions { command, user_namespace, ..guarded() }
}

#[rstest]
#[tokio::test]
async fn container_whose_first_process_left_its_namespace_is_neither_gone_nor_refused(
    #[future(awt)] sandbox: Sandbox,
    #[values(false, true)] user_namespace: bool,
) {
    let container = sandbox.start_container_with(&deserter(user_namespace)).await;
    // Another process stays.
    container.exec(&["sh", "-c", "sleep 1000000 </dev/null >/dev/null 2>&1 &"]).await;
    let (volume, other) = (Volume::loop_device(MIB), Volume::loop_device(MIB));
    let before = Snapshot::of(&sandbox, &[]).await;
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(plugged.text("node"), if user_namespace { "bind" } else { "mknod" });
    let stays = sandbox.observer().shell("pidof sleep").await;
    let stays: u32 = stays.split_whitespace().next().unwrap().parse().unwrap();
    let first = first_process(&sandbox, &container).await;
    container.exec(&["sh", "-c", "echo >/dev/go; rm /dev/go"]).await;
    let left = format!(
        "until test $(readlink /proc/{first}/ns/mnt) != $(readlink /proc/{stays}/ns/mnt) && \
         grep -qx sleep /proc/{first}/comm; do usleep 10000; done"
    );
    let left = sandbox.observer().shell(&left);
    sandbox
        .guest()
        .wait_for("the first process to leave", Duration::from_secs(10), left)
        .await
        .unwrap();

    let listed = query_volumes(&sandbox, "list", &[]).await;
    assert_eq!(listed[0]["state"], "attached", "{listed:?}");
    let refused = sandbox.hot_plug_command(&container, &[(&other, "/dev/xvdb")]).run().await;
    assert!(
        refused.status != 0 && refused.stdout.contains("is not in the container's mount namespace"),
        "{}",
        refused.stdout
    );
    let finished = unplug_command(&sandbox, &container, "/dev/xvda").run().await;
    assert_eq!(finished.status, 0, "{}{}", finished.stdout, finished.stderr);
    assert_eq!(finished.json()["volumes"][0]["left_behind"], Value::Null, "{}", finished.stdout);
    let seen = sandbox
        .observer()
        .shell(&format!("ls -A /proc/{stays}/root/dev; cat /proc/{stays}/mountinfo"))
        .await;
    assert!(!seen.contains("xvda") && !seen.contains("volume"), "{seen}");
    before.assert_unchanged(&sandbox, &[]).await;
    assert!(claim_is_free(&volume));
}

/// A process in the container's mount namespace and cgroup, not in its pid namespace: it survives
/// the first process, as one of a pod with a shared pid namespace does.
async fn survivor(sandbox: &Sandbox, container: &Container) -> u32 {
    let (id, first) = (container.id(), first_process(sandbox, container).await);
    let script = format!(
        "echo $$ > /sys/fs/cgroup/pod/{id}/cgroup.procs; \
         nsenter -t {first} -m -r sleep 1000001 </dev/null >/dev/null 2>&1 & echo $!"
    );
    let pid: u32 = sandbox.observer().shell(&script).await.trim().parse().unwrap();
    let entered = format!("until grep -q 1000001 /proc/{pid}/cmdline; do usleep 10000; done");
    let entered = sandbox.observer().shell(&entered);
    sandbox.guest().wait_for("the survivor", Duration::from_secs(10), entered).await.unwrap();
    pid
}

#[rstest]
#[tokio::test]
async fn survivors_of_a_stopped_container_lose_node_and_right(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container_with(&guarded()).await;
    let volume = Volume::loop_device(MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let pid = survivor(&sandbox, &container).await;
    container.kill().await.unwrap();
    let seen = async |script: &str| {
        let script = format!("cd /proc/{pid}/root/dev; {script}; true");
        sandbox.observer().shell(&script).await
    };
    // As a process in its cgroup, by a node of its own on the guest's tmpfs.
    let open = async || {
        let number = plugged.text("device_number").replace(':', " ");
        let script = format!(
            "echo $$ > /sys/fs/cgroup/pod/{}/cgroup.procs; rm -f /dev/own; \
             mknod /dev/own b {number}; dd if=/dev/own of=/dev/null count=1 2>&1; true",
            container.id()
        );
        sandbox.observer().shell(&script).await
    };
    assert_eq!(seen("ls xvda").await.trim(), "xvda");
    let opened = open().await;
    assert!(opened.contains("1+0 records in"), "{opened}");
    let finished = unplug_command(&sandbox, &container, "/dev/xvda").run().await;
    assert_eq!(finished.status, 0, "{}{}", finished.stdout, finished.stderr);
    assert_eq!(seen("ls xvda 2>/dev/null").await.trim(), "");
    let error = open().await;
    assert!(error.contains("not permitted"), "{error}");
    assert!(claim_is_free(&volume));
}

/// Attaches `plugged` elsewhere, by a call of the service.
async fn attach(sandbox: &Sandbox, change: AttachRequest) -> (Reason, bool) {
    let service = sandbox.block_volume_service().await.unwrap();
    let reply = service.attach(sandbox.agent().context(), &change).await.unwrap();
    (reply.failure.reason.enum_value().unwrap(), reply.failure.undone)
}

fn request(sandbox: &Sandbox, plugged: &Plugged) -> AttachRequest {
    AttachRequest {
        attachments: vec![plugged.attachment()],
        timeout_ms: 5_000 * u64::from(sandbox.guest().time_scale()),
        ..AttachRequest::default()
    }
}

#[rstest]
#[tokio::test]
async fn attach_that_fails_leaves_the_disk_of_somebody_else(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    // The guest has to scan the address again, and finds this disk there.
    let address = disks(&sandbox).await;
    let address = address.trim();
    sandbox.observer().shell(&format!("echo 1 > /sys/bus/scsi/devices/{address}/delete")).await;
    assert_eq!(disks(&sandbox).await, "");
    let mut other = request(&sandbox, &plugged);
    other.attachments[0].serial = "fedcba9876543210".into();
    other.attachments[0].path = "/dev/xvdb".into();
    let (reason, undone) = attach(&sandbox, other).await;
    assert!(reason == Reason::REASON_IDENTITY_MISMATCH && undone, "{reason:?} {undone}");
    assert_eq!(disks(&sandbox).await.trim(), address, "the other's disk is not removed");
}

#[rstest]
#[tokio::test]
async fn request_that_is_refused_cancels_no_detach_that_waits(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let hold = "exec 3</dev/xvda; until test -e /dev/go; do usleep 10000; done";
    let holder = container.clone();
    let holder = tokio::spawn(async move { holder.exec(&["sh", "-c", hold]).await });
    let opened = "until ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q xvda; do usleep 10000; done";
    container.exec(&["sh", "-c", opened]).await;
    let patient = unplug_command(&sandbox, &container, "/dev/xvda").args(["--wait", "60s"]).start();
    wait_for_console(&sandbox, "waiting for the holders of volume").await;

    let mut unknown = request(&sandbox, &plugged);
    unknown.attachments[0].container_id = "nobody".into();
    let (reason, _) = attach(&sandbox, unknown).await;
    assert_eq!(reason, Reason::REASON_CONTAINER_NOT_FOUND);
    container.exec(&["touch", "/dev/go"]).await;
    holder.await.unwrap();
    let finished = Finished::new(&patient.wait_with_output().await.unwrap(), Duration::ZERO);
    assert_eq!(finished.status, 0, "{}{}", finished.stdout, finished.stderr);
    assert!(claim_is_free(&volume));
}

#[rstest]
#[tokio::test]
async fn flood_of_requests_keeps_no_plug_waiting_and_leaves_it_descriptors(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let attachment = |number: u32| Attachment {
        container_id: container.id().to_owned(),
        address: Some(ScsiAddress { target: 200, lun: number, ..ScsiAddress::default() }).into(),
        serial: format!("{number:016x}"),
        size: MIB,
        path: format!("/dev/volume{number}"),
        access: Access::ACCESS_READ_WRITE.into(),
        mode: 0o660,
        ..Attachment::default()
    };
    let detachment = |number| Detachment {
        attachment: Some(attachment(number)).into(),
        ..Detachment::default()
    };
    let request = InspectRequest {
        attachments: (1..=255).map(detachment).collect(),
        ..InspectRequest::default()
    };
    let context = ttrpc::context::with_duration(sandbox.guest().scaled(Duration::from_secs(120)));
    let is_plugged = Arc::new(AtomicBool::new(false));
    let mut floods = Vec::new();
    for _ in 0..8 {
        let service = sandbox.block_volume_service().await.unwrap();
        let (request, context, is_plugged) = (request.clone(), context.clone(), is_plugged.clone());
        floods.push(tokio::spawn(async move {
            let mut replies = 0;
            while !is_plugged.load(Ordering::Relaxed) {
                let reply = service.inspect(context.clone(), &request).await.unwrap();
                assert!(reply.failure.is_none(), "{}", reply.failure.message);
                assert_eq!(reply.inspected.len(), 255);
                replies += 1;
            }
            replies
        }));
    }
    // Ordinary requests do not wait for a flood without end, and the agent has descriptors for
    // them.
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let descriptors = sandbox.observer().shell("ls /proc/1/fd | wc -l").await;
    let descriptors: u32 = descriptors.trim().parse().unwrap();
    assert!(descriptors < 512, "{descriptors}");
    is_plugged.store(true, Ordering::Relaxed);
    for flood in floods {
        let replies: u32 = flood.await.unwrap();
        println!("{replies} replies");
    }
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
    let finished = unplug_command(&sandbox, &container, "/dev/xvda").run().await;
    assert_eq!(finished.status, 0, "{}", finished.stdout);
}
