//! A node with Kata's sandboxes: volumes are attached and detached by the code of `ecr-runtime`.
//!
//! The pod is found by its names and its UID in the container engine, in the namespace of the
//! attachment. Nothing that the attachment's status says can lead to a pod of another namespace.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use host_trigger::{
    Deadline, Error,
    cri::{Endpoint, PodSandbox},
    kata::sandbox,
};

use super::{
    allowed_paths::AllowedPath,
    claim_device,
    found_volume::{self, Place},
    host::{AttachedVolume, Failure, Host},
    request::{Request, RequestSource},
    sandbox_volumes::SandboxVolumes,
    verb,
};

/// Where things are on the node.
#[derive(Debug, Clone)]
pub struct SandboxHost {
    /// The container engine's socket; found if it is not named.
    pub cri: Option<OsString>,
    /// The state directory of Kata; the usual ones if it is not named.
    pub run_dir: Option<PathBuf>,
    /// kubelet's directory.
    pub kubelet: PathBuf,
    /// The node's mount namespace, if this process has another one.
    pub mount_namespace: Option<PathBuf>,
    /// Which paths may be used.
    pub allowed: Vec<AllowedPath>,
    /// The time for one command.
    pub timeout: Duration,
}

impl Host for SandboxHost {
    async fn attach(&self, request: Request) -> Result<AttachedVolume, Failure> {
        let work = Work { host: self.clone(), request };
        let namespace = self.mount_namespace.clone();
        let done = verb::on_own_thread(namespace, || async move { work.attach().await });
        done.await.unwrap_or_else(|e| Err(unexpected(&e)))
    }

    async fn detach(&self, request: Request) -> Result<String, Failure> {
        let work = Work { host: self.clone(), request };
        let namespace = self.mount_namespace.clone();
        let done = verb::on_own_thread(namespace, || async move { work.detach().await });
        done.await.unwrap_or_else(|e| Err(unexpected(&e)))
    }
}

/// No thread, or no mount namespace.
fn unexpected(error: &std::io::Error) -> Failure {
    let message = format!("this node agent cannot work on the node: {error}");
    Failure { reason: "Unexpected".to_owned(), message, passes: true }
}

struct Work {
    host: SandboxHost,
    request: Request,
}

impl Work {
    async fn attach(&self) -> Result<AttachedVolume, Failure> {
        let Self { request, .. } = self;
        let (endpoint, sandbox) = self.sandbox().await.map_err(|e| Failure::from(&e))?;
        self.check_kata(&sandbox).map_err(|e| Failure::from(&e))?;
        let containers = endpoint
            .containers(&sandbox, &request.container, self.deadline())
            .await
            .map_err(|e| Failure::from(&e))?;
        let Some(container) = containers.running.clone() else {
            let message =
                format!("container {} of pod {} does not run", request.container, request.pod);
            return Err(Failure {
                reason: "ContainerNotRunning".to_owned(),
                message,
                passes: true,
            });
        };
        let (source, origin) = self.source(&endpoint).await?;
        let place = self.place(containers.all, Some(origin));
        let volumes = self.volumes(&sandbox);
        match found_volume::find(&volumes.list().await?, &place) {
            Some(found) if found.is_attached_to(&container) => {
                volumes.adjust(found, &source, request).await
            }
            // Its container has ended: the one that runs now gets the volume.
            Some(found) if found.is_stale() && found.container() != container => {
                volumes.unplug(&found, false, Duration::ZERO).await?;
                volumes.plug(&container, &source, request).await
            }
            Some(found) if found.is_unknown() => Err(found.unknown()),
            _ => volumes.plug(&container, &source, request).await,
        }
    }

    async fn detach(&self) -> Result<String, Failure> {
        /// The time for holders to release the volume, within one request.
        const PATIENCE: Duration = Duration::from_secs(30);
        let Self { request, .. } = self;
        let (endpoint, sandbox) = match self.sandbox().await {
            Ok(found) => found,
            Err(Error::PodNotFound { .. }) => return Ok("the pod is gone".to_owned()),
            Err(Error::PodNotReady { sandbox, .. }) if !self.has(&sandbox)? => {
                return Ok("the pod has ended".to_owned());
            }
            Err(Error::PodNotReady { sandbox, .. }) => {
                let message = format!("sandbox {sandbox} of the pod is being stopped");
                return Err(Failure { reason: "PodStops".to_owned(), message, passes: true });
            }
            Err(e) => return Err(Failure::from(&e)),
        };
        if !self.has(&sandbox.id)? {
            return Ok("the pod has no sandbox of Kata's".to_owned());
        }
        let containers = endpoint
            .containers(&sandbox, &request.container, self.deadline())
            .await
            .map_err(|e| Failure::from(&e))?;
        // Without it, what was attached is known by its ID alone.
        let origin = self.origin(&endpoint).await.ok();
        let place = self.place(containers.all, origin);
        let volumes = self.volumes(&sandbox);
        let Some(found) = found_volume::find(&volumes.list().await?, &place) else {
            return Ok("nothing is attached".to_owned());
        };
        volumes.unplug(&found, request.force.is_some(), PATIENCE).await?;
        Ok(match &request.force {
            Some(reason) => format!("detached by force: {reason}"),
            None => "detached".to_owned(),
        })
    }

    fn deadline(&self) -> Deadline {
        Deadline::of_command(self.host.timeout)
    }

    fn volumes(&self, sandbox: &PodSandbox) -> SandboxVolumes {
        let (run_dir, timeout) = (self.host.run_dir.clone(), self.host.timeout);
        SandboxVolumes { sandbox: sandbox.id.clone(), run_dir, timeout }
    }

    fn place(&self, containers: Vec<String>, origin: Option<PathBuf>) -> Place {
        let Request { device_path, volume_id, .. } = self.request.clone();
        Place { device_path, volume_id, containers, origin }
    }

    /// The pod's sandbox.
    async fn sandbox(&self) -> Result<(Endpoint, PodSandbox), Error> {
        let endpoint = Endpoint::find(self.host.cri.as_deref())?;
        let uid = Some(self.request.pod_uid.as_str());
        let sandbox = endpoint.sandbox(&self.request.pod, uid, self.deadline()).await?;
        Ok((endpoint, sandbox))
    }

    fn roots(&self) -> Vec<PathBuf> {
        sandbox::roots(self.host.run_dir.as_deref(), None)
    }

    fn has(&self, sandbox: &str) -> Result<bool, Failure> {
        sandbox::has(&self.roots(), sandbox).map_err(|e| Failure::from(&e))
    }

    fn check_kata(&self, found: &PodSandbox) -> Result<(), Error> {
        if sandbox::has(&self.roots(), &found.id)? {
            return Ok(());
        }
        let handler = Some(found.handler.clone()).filter(|handler| !handler.is_empty());
        let (pod, sandbox) = (self.request.pod.to_string(), found.id.clone());
        Err(Error::NotKata { pod, sandbox, handler, searched: self.roots() })
    }

    /// The volume's path, and where volumes of this attachment come from.
    async fn source(&self, endpoint: &Endpoint) -> Result<(PathBuf, PathBuf), Failure> {
        let origin = self.origin(endpoint).await?;
        match &self.request.source {
            RequestSource::AttachmentPod(_) => Ok((claim_device::only(&origin)?, origin)),
            RequestSource::HostPath(path) => Ok((path.clone(), origin)),
        }
    }

    /// The directory that all devices of the attachment pod are in, or the path of the node.
    async fn origin(&self, endpoint: &Endpoint) -> Result<PathBuf, Failure> {
        match &self.request.source {
            RequestSource::AttachmentPod(pod) => {
                let found = endpoint.sandbox(pod, None, self.deadline()).await;
                let found = found.map_err(|e| Failure { passes: true, ..Failure::from(&e) })?;
                claim_device::directory(&self.host.kubelet, &found.uid)
            }
            RequestSource::HostPath(path) => {
                let namespace = &self.request.pod.namespace;
                match self.host.allowed.iter().any(|rule| rule.allows(namespace, path)) {
                    true => Ok(path.clone()),
                    false => Err(Failure::later(
                        "HostPathNotAllowed",
                        format!(
                            "namespace {namespace} may not use {}: the node agent's \
                             --allow-host-path names what it may",
                            path.display()
                        ),
                    )),
                }
            }
        }
    }
}
