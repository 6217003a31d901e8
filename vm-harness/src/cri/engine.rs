//! The container engine of a node: it runs already, as a service.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    client::Client,
    image::Image,
    pod::{Pod, PodContainer, PodOptions},
    proto::{
        cri::ImageSpec,
        pods::{ImageStatusRequest, ImageStatusResponse, VersionRequest, VersionResponse},
    },
};
use crate::Error;

/// How often something is asked for of which no event tells.
const INTERVAL: Duration = Duration::from_millis(50);

/// A connection to a containerd that is not the harness's.
#[derive(Debug, Clone)]
pub struct Engine {
    client: Client,
    socket: PathBuf,
    limit: Duration,
}

impl Engine {
    /// Connects as soon as the engine replies. A call may take as long as `limit`.
    ///
    /// # Errors
    /// It does not reply.
    pub async fn connect(socket: &Path, limit: Duration) -> Result<Self, Error> {
        let connected = tokio::time::timeout(limit, when_it_replies(socket, limit)).await;
        let client = connected.map_err(|_| Error::TimedOut {
            awaited: format!("the first reply of the container engine at {}", socket.display()),
            limit,
            report: String::new(),
        })?;
        Ok(Self { client, socket: socket.to_owned(), limit })
    }

    /// Returns its version.
    ///
    /// # Errors
    /// It does not reply.
    pub async fn version(&self) -> Result<String, Error> {
        version(&self.client).await
    }

    /// Imports an image with containerd's own client, and waits until the CRI has it.
    ///
    /// # Errors
    /// containerd refuses it, or does not reply.
    pub async fn import(&self, image: &Image) -> Result<(), Error> {
        let archive = tempfile::NamedTempFile::new().map_err(Error::file("make", "a file"))?;
        std::fs::write(&archive, image.archive()).map_err(Error::file("write", archive.path()))?;
        let mut import = tokio::process::Command::new("ctr");
        import.arg("--address").arg(&self.socket).args(["--namespace", "k8s.io"]);
        import.args(["images", "import", "--no-unpack"]).arg(archive.path());
        let spawn = |source| Error::Spawn { program: "ctr".to_owned(), source };
        let ran = import.output().await.map_err(spawn)?;
        if !ran.status.success() {
            let message = String::from_utf8_lossy(&ran.stderr).into_owned();
            return Err(Error::Cri { call: "ctr images import", message });
        }
        until_it_has(&self.client, image.name(), self.limit).await?.ok_or_else(|| Error::TimedOut {
            awaited: "the imported image in the CRI's list".to_owned(),
            limit: self.limit,
            report: String::new(),
        })
    }

    /// Makes a pod of an image: its sandbox with the pause container.
    ///
    /// # Errors
    /// The engine refuses, or does not reply.
    pub async fn run_pod(&self, options: &PodOptions, image: &Image) -> Result<Pod, Error> {
        Pod::run(self.client.clone(), options, image.name()).await
    }

    /// Returns the pod, asked for by this connection: the engine was restarted.
    pub fn adopt_pod(&self, pod: &Pod) -> Pod {
        pod.by(self.client.clone())
    }

    /// Returns the container, asked for by this connection.
    pub fn adopt_container(&self, container: &PodContainer) -> PodContainer {
        container.by(self.client.clone())
    }
}

/// Connects as soon as the CRI's service replies. No event reports that.
pub(super) async fn when_it_replies(socket: &Path, limit: Duration) -> Client {
    loop {
        if let Ok(client) = Client::connect(socket, limit).await
            && version(&client).await.is_ok()
        {
            return client;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Waits until the CRI has this image, of which it learns by an event of containerd's own; `None`
/// after `limit`.
pub(super) async fn until_it_has(
    client: &Client,
    name: &str,
    limit: Duration,
) -> Result<Option<()>, Error> {
    let deadline = Instant::now() + limit;
    while !has_image(client, name).await? {
        if Instant::now() > deadline {
            return Ok(None);
        }
        tokio::time::sleep(INTERVAL).await;
    }
    Ok(Some(()))
}

async fn has_image(client: &Client, name: &str) -> Result<bool, Error> {
    let image = ImageSpec { image: name.to_owned(), ..Default::default() };
    let request = ImageStatusRequest { image: Some(image).into(), ..Default::default() };
    let status: ImageStatusResponse = client.image("ImageStatus", &request).await?;
    Ok(status.image.is_some())
}

pub(super) async fn version(client: &Client) -> Result<String, Error> {
    let version: VersionResponse = client.runtime("Version", &VersionRequest::new()).await?;
    Ok(version.runtime_version)
}
