//! A client of the plugin's service beside `ecr-runtime`: for requests that `ecr-runtime` never
//! makes, and for disks that it does not know.

use std::time::Duration;

use block_volume_api::{
    block_volume::{
        Access, AttachRequest, AttachResponse, Attachment, DetachRequest, DetachResponse,
        Detachment, Failure, ProbeRequest, ProbeResponse, Reason, ScsiAddress,
    },
    block_volume_ttrpc::BlockVolumeClient,
};
use block_volume_qmp::Qmp;
use protobuf::{EnumOrUnknown, MessageField};
use serde_json::{Value, json};

use super::{Fixture, probe::probe};
use crate::{Container, Volume, random_bytes, remove_from_qemu};

/// SCSI target of these disks. The targets of `ecr-runtime` are above it.
const TARGET: u32 = 150;

pub(super) const MIB: u64 = 1 << 20;

/// A disk that the suite added to QEMU itself, or an address that has no disk. The guest was not
/// asked to scan for it.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) serial: String,
    pub(super) lun: u32,
    pub(super) volume: Volume,
}

impl Fixture {
    /// Calls `Probe`, which has to succeed.
    pub(super) async fn probe(&self, container: &str, paths: &[&str]) -> ProbeResponse {
        let request = ProbeRequest {
            container_id: container.to_owned(),
            paths: paths.iter().map(|&path| path.to_owned()).collect(),
            ..ProbeRequest::default()
        };
        let answer = probe(self.sandbox(), &request).await;
        let answer = answer.unwrap_or_else(|error| panic!("no answer to Probe: {}", error.chain()));
        answer.unwrap_or_else(|why| panic!("Probe: {why}"))
    }

    /// Returns a new serial and address, without a disk.
    pub(super) fn absent_disk(&self) -> Disk {
        let serial: String = random_bytes(8).iter().map(|byte| format!("{byte:02x}")).collect();
        Disk { serial, lun: self.next_lun(), volume: Volume::image(MIB) }
    }

    /// Adds a new disk to QEMU.
    pub(super) async fn add_disk(&self) -> Disk {
        let disk = self.absent_disk();
        self.add(&disk).await;
        disk
    }

    /// Adds this disk to QEMU.
    pub(super) async fn add(&self, disk: &Disk) {
        let device = format!("ecrblk-{}", disk.serial);
        let node = json!({ "driver": "raw", "node-name": format!("{device}-n"),
            "file": { "driver": "file", "filename": disk.volume.name() } });
        let mut monitor = self.monitor().await;
        execute(&mut monitor, "blockdev-add", node).await;
        let device = json!({ "driver": "scsi-hd", "id": device, "drive": format!("{device}-n"),
            "bus": "scsi0.0", "scsi-id": TARGET, "lun": disk.lun, "serial": disk.serial });
        execute(&mut monitor, "device_add", device).await;
    }

    /// Removes this disk from QEMU. The guest must have released it, or never have seen it.
    pub(super) async fn remove(&self, disk: &Disk) {
        remove_from_qemu(&mut self.monitor().await, &disk.serial).await;
    }

    async fn monitor(&self) -> Qmp {
        self.sandbox().monitor().await.unwrap_or_else(|error| panic!("{}", error.chain()))
    }

    /// Whether the disk is in the guest's `/sys/bus/scsi/devices`.
    pub(super) async fn is_visible(&self, disk: &Disk) -> bool {
        let end = format!(":0:{TARGET}:{}", disk.lun);
        self.scsi_devices().await.iter().any(|device| device.ends_with(&end))
    }

    /// Waits until the guest's kernel has found the disk by itself.
    pub(super) async fn until_visible(&self, disk: &Disk) {
        let wait = async {
            while !self.is_visible(disk).await {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let guest = self.sandbox().guest();
        let found = guest
            .wait_for("a disk that the kernel finds by itself", Duration::from_secs(10), wait)
            .await;
        found.unwrap_or_else(|error| panic!("{}", error.chain()));
    }

    /// Opens a connection to the plugin.
    async fn service(&self) -> BlockVolumeClient {
        let service = self.sandbox().block_volume_service().await;
        service.unwrap_or_else(|error| panic!("{}", error.chain()))
    }

    /// Returns the time limit for work of a guest that should end immediately.
    pub(super) fn short_limit(&self) -> Duration {
        self.sandbox().guest().scaled(Duration::from_secs(5))
    }

    /// Calls `Attach` for all of `attachments`.
    pub(super) async fn attach(
        &self,
        attachments: Vec<Attachment>,
        limit: Duration,
    ) -> AttachResponse {
        let timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let request = AttachRequest { attachments, timeout_ms, ..AttachRequest::default() };
        let service = self.service().await;
        let answer = service.attach(self.sandbox().agent().context(), &request);
        let waited = limit + self.short_limit();
        let answer = tokio::time::timeout(waited, answer).await;
        let answer = answer.unwrap_or_else(|_| {
            panic!("Attach had a timeout of {limit:?} and did not answer within {waited:?}")
        });
        answer.unwrap_or_else(|error| panic!("Attach: {error}"))
    }

    /// Calls `Detach` for one attachment.
    pub(super) async fn detach(&self, attachment: Attachment) -> DetachResponse {
        let request = DetachRequest {
            detachments: vec![Detachment {
                attachment: MessageField::some(attachment),
                ..Detachment::default()
            }],
            timeout_ms: u64::try_from(self.short_limit().as_millis()).unwrap_or(u64::MAX),
            ..DetachRequest::default()
        };
        let answer = self.service().await.detach(self.sandbox().agent().context(), &request).await;
        answer.unwrap_or_else(|error| panic!("Detach: {error}"))
    }
}

impl Disk {
    /// Returns its attachment to `container`, at `path`.
    pub(super) fn attachment(&self, container: &Container, path: &str) -> Attachment {
        Attachment {
            container_id: container.id().to_owned(),
            address: MessageField::some(ScsiAddress {
                target: TARGET,
                lun: self.lun,
                ..ScsiAddress::default()
            }),
            serial: self.serial.clone(),
            size: self.volume.size(),
            path: path.to_owned(),
            access: EnumOrUnknown::new(Access::ACCESS_READ_WRITE),
            mode: 0o660,
            ..Attachment::default()
        }
    }
}

/// Panics unless it is a failure for this reason, and the guest reports that it rolled back.
pub(super) fn assert_refused(failure: &MessageField<Failure>, reason: Reason) {
    let Some(failure) = failure.as_ref() else {
        panic!("a failure was expected ({reason:?}), and it succeeded")
    };
    assert_eq!(failure.reason.enum_value(), Ok(reason), "{}", failure.message);
    assert!(failure.undone, "the guest does not report a complete rollback: {}", failure.message);
}

/// Panics if it is a failure.
pub(super) fn assert_succeeded(failure: &MessageField<Failure>) {
    assert!(failure.is_none(), "{:?}: {}", failure.reason, failure.message);
}

async fn execute(monitor: &mut Qmp, command: &str, arguments: Value) {
    monitor.execute(command, arguments).await.unwrap_or_else(|error| panic!("{command}: {error}"));
}
