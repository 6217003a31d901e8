//! Saves a guest to a file and restores it, as QEMU's
//! [migration](https://www.qemu.org/docs/master/devel/migration/main.html).
//!
//! QEMU does not migrate a guest with a vhost-user device, so the vsock device is unplugged before
//! the guest is saved, and plugged after it was restored.

use std::{io::ErrorKind, path::Path, time::Duration};

use block_volume_qmp::Deadline;
use block_volume_qmp::{Qmp, QmpError};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::UnixListener};

use super::machine::{VSOCK, VSOCK_PORT};
use crate::Error;

/// Writes the guest of the QEMU that listens on `monitor` to `file`, through the socket `stream`,
/// which it makes.
pub(super) async fn save(
    monitor: &Path,
    stream: &Path,
    file: &Path,
    deadline: Deadline,
) -> Result<(), Error> {
    let listener = UnixListener::bind(stream).map_err(Error::file("listen on", stream))?;
    // QEMU closes the connection at the end of the file.
    let write = async {
        let (mut stream, _) = listener.accept().await?;
        let mut file = tokio::fs::File::create(file).await?;
        tokio::io::copy(&mut stream, &mut file).await?;
        file.flush().await
    };
    let send = async {
        let mut qmp = Qmp::connect(monitor, deadline).await.map_err(failed)?;
        qmp.execute("device_del", json!({ "id": VSOCK })).await.map_err(failed)?;
        wait_for(&mut qmp, deadline, "DEVICE_DELETED", |data| data["device"] == VSOCK).await?;
        // The guest runs until all is written: one that was stopped before would not run after it
        // is restored.
        let events = json!([{ "capability": "events", "state": true }]);
        let capabilities = json!({ "capabilities": events });
        qmp.execute("migrate-set-capabilities", capabilities).await.map_err(failed)?;
        let uri = format!("unix:{}", stream.display());
        qmp.execute("migrate", json!({ "uri": uri })).await.map_err(failed)?;
        let ended = |data: &Value| data["status"] == "completed" || data["status"] == "failed";
        match wait_for(&mut qmp, deadline, "MIGRATION", ended).await?["status"] == "completed" {
            true => Ok(()),
            false => Err(Error::Monitor("QEMU cannot save the guest".to_owned())),
        }
    };
    let (sent, written) = tokio::join!(send, write);
    sent.and(written.map_err(Error::file("write", file)))
}

/// Waits until a guest that is being restored runs, and plugs the vsock device with the back end
/// on the socket `vhost`.
pub(super) async fn plug_vsock(
    monitor: &Path,
    vhost: &Path,
    deadline: Deadline,
) -> Result<(), Error> {
    // No event reports that QEMU listens.
    let mut qmp = loop {
        match Qmp::connect_within(monitor, deadline, deadline.remaining()).await {
            Err(QmpError::Connect { source, .. })
                if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
            {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            connected => break connected.map_err(failed)?,
        }
    };
    let status = qmp.execute("query-status", json!({})).await.map_err(failed)?;
    if status["status"] == "inmigrate" {
        wait_for(&mut qmp, deadline, "RESUME", |_| true).await?;
    }
    let address = json!({ "type": "unix", "data": { "path": vhost } });
    let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
    qmp.execute("chardev-add", json!({ "id": VSOCK, "backend": backend })).await.map_err(failed)?;
    let device = json!({
        "driver": "vhost-user-vsock-pci", "id": VSOCK, "chardev": VSOCK, "bus": VSOCK_PORT,
    });
    qmp.execute("device_add", device).await.map_err(failed)?;
    Ok(())
}

/// Returns the data of the next event `name` that `matches` accepts.
async fn wait_for(
    qmp: &mut Qmp,
    deadline: Deadline,
    name: &str,
    matches: impl Fn(&Value) -> bool,
) -> Result<Value, Error> {
    loop {
        match qmp.next_event(deadline).await {
            Some(event) if event.name == name && matches(&event.data) => return Ok(event.data),
            Some(_) => {}
            None => return Err(Error::Monitor(format!("QEMU sent no event {name} in time"))),
        }
    }
}

fn failed(error: QmpError) -> Error {
    Error::Monitor(error.to_string())
}
