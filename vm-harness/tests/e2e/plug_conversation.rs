//! The guest's side of Plug, without `ecr-runtime`: what the guest says at each step, and that the
//! end of the conversation before the commit leaves nothing. QEMU has the disk from the start, and
//! only the plugin can add it to the guest or remove it there.

use std::time::Duration;

use block_volume_api::block_volume::{
    Access, AttachRequest, Attachment, DetachRequest, Detachment, NodeWay, PathUse, PlugCommit,
    PlugGo, Reason, ScsiAddress, plug_request::Step,
};
use rstest::rstest;
use vm_harness::{
    Cgroup, Container, ContainerOptions, Machine, PlugConversation, Sandbox, Snapshot, Volume,
};

use super::{MIB, boot_with_faults, guarded, set_guest_faults};

const SERIAL: &str = "0123456789abcdef";

/// The stages of a conversation until the volume is attached, each with a fault point.
const STAGES: [&str; 11] = [
    "uevent-socket",
    "lookup",
    "ready",
    "go",
    "scan",
    "wait",
    "verify",
    "node",
    "filter",
    "prepared",
    "publish",
];

/// A sandbox with one disk in QEMU, and a container.
struct Fixture {
    sandbox: Sandbox,
    container: Container,
    image: Volume,
    path: &'static str,
}

/// How the container gets its node.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Mknod(Cgroup),
    /// Without a device filter. Two directories are to be made.
    Bind,
}

impl Fixture {
    async fn boot(way: Way) -> Fixture {
        let (cgroup, options, path) = match way {
            Way::Mknod(cgroup) => (cgroup, guarded(), "/dev/xvda"),
            Way::Bind => (Cgroup::V2, ContainerOptions::default(), "/dev/n/m/xvda"),
        };
        let image = Volume::image(MIB);
        let disk =
            format!("driver=raw,node-name=volume,file.driver=file,file.filename={}", image.name());
        let device = format!("scsi-hd,bus=scsi0.0,scsi-id=200,lun=7,serial={SERIAL},drive=volume");
        let controller =
            ["-device", "virtio-scsi-pci,id=scsi0", "-blockdev", &disk, "-device", &device];
        let controller = controller.map(str::to_owned).to_vec();
        let sandbox = boot_with_faults(&Machine { cgroup, controller, ..Machine::default() }).await;
        let container = sandbox.start_container_with(&options).await;
        Fixture { sandbox, container, image, path }
    }

    /// The request, with a time-out in seconds on a machine with KVM.
    fn request(&self, seconds: u64) -> AttachRequest {
        let limit = self.sandbox.guest().scaled(Duration::from_secs(seconds));
        AttachRequest {
            attachments: vec![self.attachment()],
            timeout_ms: u64::try_from(limit.as_millis()).unwrap(),
            ..AttachRequest::default()
        }
    }

    fn attachment(&self) -> Attachment {
        Attachment {
            container_id: self.container.id().to_owned(),
            address: Some(ScsiAddress { target: 200, lun: 7, ..Default::default() }).into(),
            serial: SERIAL.to_owned(),
            size: MIB,
            path: self.path.to_owned(),
            access: Access::ACCESS_READ_WRITE.into(),
            mode: 0o660,
            ..Default::default()
        }
    }

    async fn start(&self) -> PlugConversation {
        self.sandbox.plug(self.request(20)).await
    }

    async fn detach(&self) {
        let detachment =
            Detachment { attachment: Some(self.attachment()).into(), ..Default::default() };
        let request = DetachRequest {
            detachments: vec![detachment],
            timeout_ms: 20_000,
            ..DetachRequest::default()
        };
        let service = self.sandbox.block_volume_service().await.unwrap();
        let detached = service.detach(self.sandbox.agent().context(), &request).await.unwrap();
        assert!(detached.failure.is_none(), "{detached}");
    }

    /// The state without the volume. What the pod gets once and keeps is there.
    async fn before(&self) -> Snapshot {
        let mut plug = self.start().await;
        plug.ready().await;
        plug.go().await;
        plug.prepared().await;
        plug.attached().await;
        plug.commit().await;
        self.detach().await;
        Snapshot::of(&self.sandbox, &[&self.container]).await
    }

    async fn assert_unchanged(&self, before: &Snapshot) {
        before.assert_unchanged(&self.sandbox, &[&self.container]).await;
    }

    async fn assert_readable(&self) {
        let bytes = self.container.read(self.path, 0..65536).await;
        assert_eq!(bytes, self.image.bytes(0..65536));
    }
}

#[rstest]
#[tokio::test]
async fn volume_is_attached_in_a_conversation(
    #[values(Way::Mknod(Cgroup::V1), Way::Mknod(Cgroup::V2), Way::Bind)] way: Way,
) {
    let fixture = Fixture::boot(way).await;
    let mut plug = fixture.start().await;
    let ready = plug.ready().await;
    assert!(ready.failure.is_none() && ready.capabilities.contains(&"plug".to_owned()), "{ready}");
    let [path] = &ready.container.paths[..] else { panic!("{ready}") };
    let (state, kind, parents): (_, _, &[&str]) = match way {
        Way::Mknod(_) => (PathUse::PATH_USE_FREE, NodeWay::NODE_WAY_MKNOD, &[]),
        Way::Bind => {
            let parents = &["/dev/n", "/dev/n/m"];
            (PathUse::PATH_USE_PARENT_MISSING, NodeWay::NODE_WAY_BIND, parents)
        }
    };
    assert_eq!((path.use_.unwrap(), path.way.unwrap()), (state, kind));
    // Nothing is scanned before `go`.
    let disks = "ls /sys/bus/scsi/devices | grep '^[0-9]*:0:200:7' || true";
    assert_eq!(fixture.sandbox.observer().shell(disks).await, "");
    plug.go().await;
    let prepared = plug.prepared().await;
    let attached = plug.attached().await;
    assert_eq!(prepared.attached, attached.attached);
    let [one] = &attached.attached[..] else { panic!("{attached}") };
    assert!(!one.unchanged && one.size == MIB, "{attached}");
    assert_eq!(one.outcome.node.unwrap(), kind);
    assert_eq!(one.outcome.parents_made, parents);
    let stages: Vec<_> = attached.stages.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(stages, STAGES);
    fixture.assert_readable().await;
    plug.commit().await;
    fixture.assert_readable().await;

    // What is attached is found before the disk is asked for.
    let mut plug = fixture.start().await;
    let ready = plug.ready().await;
    assert_eq!(ready.container.paths[0].use_.unwrap(), PathUse::PATH_USE_TAKEN);
    plug.go().await;
    plug.prepared().await;
    assert!(plug.attached().await.attached[0].unchanged);
    // Without a commit: a volume that was there before stays.
    drop(plug);
    fixture.assert_readable().await;
    fixture.detach().await;
}

/// How far a conversation comes before its caller ends it.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
enum Reached {
    Ready,
    Go,
    Prepared,
    Attached,
}

impl Fixture {
    async fn until(&self, reached: Reached) -> PlugConversation {
        let mut plug = self.start().await;
        plug.ready().await;
        if reached >= Reached::Go {
            plug.go().await;
        }
        if reached >= Reached::Prepared {
            plug.prepared().await;
        }
        if reached >= Reached::Attached {
            plug.attached().await;
        }
        plug
    }
}

#[rstest]
#[tokio::test]
async fn end_of_a_conversation_before_the_commit_leaves_nothing(
    #[values(Way::Mknod(Cgroup::V1), Way::Mknod(Cgroup::V2), Way::Bind)] way: Way,
) {
    let fixture = Fixture::boot(way).await;
    let before = fixture.before().await;
    for reached in [Reached::Ready, Reached::Go, Reached::Prepared, Reached::Attached] {
        println!("the connection is closed after {reached:?}");
        drop(fixture.until(reached).await);
        fixture.assert_unchanged(&before).await;
        println!("the stream is closed after {reached:?}");
        let plug = fixture.until(reached).await;
        plug.close().await;
        assert_eq!(plug.failure().await.0, Reason::REASON_CANCELLED);
        fixture.assert_unchanged(&before).await;
        println!("a detach arrives after {reached:?}");
        let plug = fixture.until(reached).await;
        fixture.detach().await;
        let (reason, message) = plug.failure().await;
        assert_eq!(reason, Reason::REASON_CANCELLED, "{message}");
        fixture.assert_unchanged(&before).await;
    }
    // Nothing waits for those that ended.
    drop(fixture.until(Reached::Attached).await);
    let mut plug = fixture.until(Reached::Prepared).await;
    plug.attached().await;
    plug.commit().await;
    fixture.assert_readable().await;
}

#[rstest]
#[tokio::test]
async fn conversation_with_a_failure_leaves_nothing() {
    let fixture = Fixture::boot(Way::Mknod(Cgroup::V2)).await;
    let before = fixture.before().await;
    for point in STAGES.into_iter().chain(["attached"]) {
        println!("an error after {point}");
        set_guest_faults(&fixture.sandbox, &format!("attach-after-{point}=error\n")).await;
        let plug = fixture.start().await;
        plug.failure_of_the_guest().await;
        fixture.assert_unchanged(&before).await;
    }
    set_guest_faults(&fixture.sandbox, "").await;

    // The steps in another order.
    let commit = || Step::Commit(PlugCommit::default());
    let go = || Step::Go(PlugGo::default());
    let start = || Step::Start(fixture.request(20));
    for (reached, wrong) in [
        (Reached::Ready, commit()),
        (Reached::Ready, start()),
        (Reached::Attached, go()),
        (Reached::Attached, start()),
    ] {
        println!("{wrong:?} after {reached:?}");
        let plug = fixture.until(reached).await;
        plug.send(wrong).await;
        let (reason, message) = plug.failure().await;
        assert_eq!(reason, Reason::REASON_INVALID_REQUEST, "{message}");
        fixture.assert_unchanged(&before).await;
    }

    // A caller that says nothing.
    for reached in [Reached::Ready, Reached::Attached] {
        println!("silence after {reached:?}");
        let mut plug = fixture.sandbox.plug(fixture.request(1)).await;
        plug.ready().await;
        if reached == Reached::Attached {
            plug.go().await;
            plug.prepared().await;
            plug.attached().await;
        }
        let (reason, message) = plug.failure().await;
        assert_eq!(reason, Reason::REASON_TIMED_OUT, "{message}");
        assert!(message.contains("the next step of the caller"), "{message}");
        fixture.assert_unchanged(&before).await;
    }

    // What is known before the disk is there is refused before it.
    fixture.container.exec(&["touch", "/dev/xvda"]).await;
    let plug = fixture.start().await;
    let (reason, message) = plug.refusal().await;
    assert_eq!(reason, Reason::REASON_PATH_TAKEN, "{message}");
    fixture.container.exec(&["rm", "/dev/xvda"]).await;

    // After the commit nothing is rolled back.
    set_guest_faults(&fixture.sandbox, "attach-after-commit=error\n").await;
    fixture.until(Reached::Attached).await.commit().await;
    fixture.assert_readable().await;
    set_guest_faults(&fixture.sandbox, "").await;
    fixture.detach().await;
    fixture.assert_unchanged(&before).await;

    let plug = fixture.until(Reached::Ready).await;
    fixture.container.kill().await.unwrap();
    let (reason, message) = plug.failure().await;
    assert_eq!(reason, Reason::REASON_CONTAINER_NOT_RUNNING, "{message}");
}
