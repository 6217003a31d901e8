//! Calls of the plugin's service without `ecr-runtime`. They remove a hot-plugged volume as a host
//! does after a lost reply: `Detach` in the guest first, then QEMU's device.

use std::time::Duration;

use block_volume_api::{
    block_volume::{Access, Attachment, DetachRequest, DetachResponse, Detachment, ScsiAddress},
    block_volume_ttrpc::BlockVolumeClient,
};
use block_volume_qmp::Deadline;
use block_volume_qmp::Qmp;
use protobuf::{EnumOrUnknown, MessageField};
use serde_json::{Value, json};
use ttrpc::r#async::{Client, transport::Socket};

use crate::{Error, Plugged, Sandbox};

impl Sandbox {
    /// Opens a connection to the plugin's service.
    ///
    /// # Errors
    /// The agent cannot be reached.
    pub async fn block_volume_service(&self) -> Result<BlockVolumeClient, Error> {
        let port = self.plugin_port();
        let stream = self
            .vsock
            .connect(port)
            .await
            .map_err(|source| Error::PortNotServed { port, source })?;
        Ok(BlockVolumeClient::new(Client::new(Socket::new(stream))))
    }

    /// Asks the guest to detach a volume as after a lost reply, that is without the values of the
    /// reply to `Attach`.
    ///
    /// # Errors
    /// The agent cannot be reached. A refusal is in the response.
    pub async fn detach(&self, plugged: &Plugged) -> Result<DetachResponse, Error> {
        let request = DetachRequest {
            detachments: vec![Detachment {
                attachment: MessageField::some(plugged.attachment()),
                ..Detachment::default()
            }],
            timeout_ms: 10_000 * u64::from(self.guest().time_scale()),
            ..DetachRequest::default()
        };
        let service = self.block_volume_service().await?;
        let answer = service.detach(self.agent().context(), &request).await;
        answer.map_err(|source| Error::Agent { call: "Detach", source })
    }

    /// Removes a volume from the guest and from QEMU.
    ///
    /// # Panics
    /// The guest or QEMU refuses.
    pub async fn unplug(&self, plugged: &Plugged) {
        let answer = self
            .detach(plugged)
            .await
            .unwrap_or_else(|error| panic!("no detach: {}", error.chain()));
        assert!(
            answer.failure.is_none(),
            "the guest did not detach the volume: {}",
            answer.failure.message
        );
        let mut monitor = self.monitor().await.unwrap_or_else(|error| panic!("{}", error.chain()));
        remove_from_qemu(&mut monitor, plugged.id()).await;
    }
}

/// Removes device, block node and descriptor set of volume `id`.
///
/// # Panics
/// QEMU refuses.
pub async fn remove_from_qemu(monitor: &mut Qmp, id: &str) {
    let device = format!("ecrblk-{id}");
    let sets = execute(monitor, "query-fdsets", json!({})).await;
    execute(monitor, "device_del", json!({ "id": device })).await;
    let deadline = Deadline::after(Duration::from_secs(30));
    loop {
        let event = monitor
            .next_event(deadline)
            .await
            .unwrap_or_else(|| panic!("{device} was never deleted"));
        if event.name == "DEVICE_DELETED"
            && event.data["path"] == format!("/machine/peripheral/{device}")
        {
            break;
        }
    }
    execute(monitor, "blockdev-del", json!({ "node-name": format!("{device}-n") })).await;
    for set in sets.as_array().into_iter().flatten() {
        if set.to_string().contains(id) {
            execute(monitor, "remove-fd", json!({ "fdset-id": set["fdset-id"] })).await;
        }
    }
}

async fn execute(monitor: &mut Qmp, command: &str, arguments: Value) -> Value {
    monitor.execute(command, arguments).await.unwrap_or_else(|error| panic!("{command}: {error}"))
}

impl Plugged {
    /// Returns the attachment that the guest was asked for.
    pub fn attachment(&self) -> Attachment {
        let number =
            |value: &Value| u32::try_from(value.as_u64().unwrap_or_default()).unwrap_or_default();
        let scsi = &self.volume["scsi"];
        let read_only = self.volume["read_only"] == true;
        Attachment {
            container_id: self.text("container").to_owned(),
            address: MessageField::some(ScsiAddress {
                target: number(&scsi["target"]),
                lun: number(&scsi["lun"]),
                ..ScsiAddress::default()
            }),
            serial: self.id().to_owned(),
            size: self.volume["size"].as_u64().unwrap_or_default(),
            path: self.text("device_path").to_owned(),
            access: EnumOrUnknown::new(if read_only {
                Access::ACCESS_READ_ONLY
            } else {
                Access::ACCESS_READ_WRITE
            }),
            mode: 0o660,
            ..Attachment::default()
        }
    }
}
