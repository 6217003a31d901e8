//! One attach or detach in a sandbox of Kata's.
//!
//! The pod is found by its names and its UID in the container engine, in the namespace of the
//! attachment. Nothing that the attachment's status says can lead to a pod of another namespace.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use host_trigger::{
    Deadline, Error,
    command_line::in_process::AuditTrail,
    cri::{Endpoint, PodSandbox},
    kata::sandbox,
};
use tracing::warn;

use super::{
    claim_device,
    found_volume::{self, Place},
    host::{AttachedVolume, Failure},
    request::{Request, RequestSource},
    sandbox_host::SandboxHost,
    sandbox_volumes::SandboxVolumes,
};
use crate::resource::bounded;

/// The longest reason of a detach by force that is recorded.
const MAX_REASON: usize = 256;

/// The work for a request.
pub(super) struct Work {
    pub(super) host: SandboxHost,
    pub(super) request: Request,
}

impl Work {
    /// Makes the volume be in the container.
    pub(super) async fn attach(&self) -> Result<AttachedVolume, Failure> {
        let Self { request, .. } = self;
        let (endpoint, sandbox) = self.sandbox().await.map_err(|e| Failure::from(&e))?;
        self.check_kata(&sandbox).map_err(|e| Failure::from(&e))?;
        let containers = endpoint
            .containers(&sandbox, &request.container, self.deadline())
            .await
            .map_err(|e| Failure::from(&e))?;
        let Some(container) = containers.running.clone() else {
            let message = format!(
                "container {} of pod {} does not run; it gets the volume when it does",
                request.container, request.pod
            );
            return Err(Failure {
                reason: "ContainerNotRunning".to_owned(),
                message,
                passes: true,
            });
        };
        let source = self.source(&endpoint).await?;
        let place = self.place(containers.all, Some(&source));
        let volumes = self.volumes(&sandbox);
        match found_volume::find(&volumes.list().await?, &place) {
            Some(found) if found.is_attached_to(&container) => {
                volumes.adjust(found, &source, request).await
            }
            // Its container has ended: the one that runs now gets the volume.
            Some(found) if found.is_stale() && found.container() != container => {
                volumes.unplug(&found, false, Duration::ZERO).await?;
                self.plug(&volumes, &container, &source, &place).await
            }
            Some(found) if found.is_unknown() => Err(found.unknown()),
            _ => self.plug(&volumes, &container, &source, &place).await,
        }
    }

    /// Attaches the volume. A file system that is smaller than its disk, as after a claim has grown
    /// while it was not attached, is grown, as kubelet has it done.
    async fn plug(
        &self,
        volumes: &SandboxVolumes,
        container: &str,
        source: &Path,
        place: &Place,
    ) -> Result<AttachedVolume, Failure> {
        let plugged = volumes.plug(container, source, &self.request).await?;
        if !place.is_mount {
            return Ok(plugged);
        }
        // It is attached, whatever becomes of the rest.
        let (name, id) = (&self.request.name, Some(plugged.id.clone()));
        let place = Place { volume_id: id, ..place.clone() };
        let listed = volumes.list().await.map(|all| found_volume::find(&all, &place));
        let found = match listed {
            Ok(Some(found)) => found,
            Ok(None) => {
                warn!(name, "the volume that was just mounted is not listed");
                return Ok(plugged);
            }
            Err(e) => {
                warn!(name, "nothing is known of the file system: {e}");
                return Ok(plugged);
            }
        };
        let attached = found.attached();
        if self.request.read_only {
            return Ok(attached);
        }
        match volumes.resize(&found, attached.clone()).await {
            // One that cannot grow is no news here: the status has both sizes.
            Ok(grown) => return Ok(AttachedVolume { note: attached.note, ..grown }),
            Err(e) => warn!(name, "the file system could not be grown: {e}"),
        }
        Ok(attached)
    }

    /// Makes the volume be nowhere in the pod.
    pub(super) async fn detach(&self) -> Result<String, Failure> {
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
                let message =
                    format!("sandbox {sandbox} of the pod is being stopped; it is tried again");
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
        let source = self.source(&endpoint).await.ok();
        let place = self.place(containers.all, source.as_deref());
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
        let audit = self.audit_trail();
        SandboxVolumes { sandbox: sandbox.id.clone(), run_dir, timeout, audit }
    }

    /// For whom a volume is plugged or unplugged. Who has made the attachment is in the audit log
    /// of the API server, by the same UID.
    fn audit_trail(&self) -> AuditTrail {
        let Request { name, uid, pod, force, .. } = &self.request;
        let mut fields = vec![
            ("attachment", format!("{}/{name}", pod.namespace)),
            ("attachment_uid", uid.clone()),
            ("pod", pod.to_string()),
        ];
        let force = force.iter().map(|reason| bounded(reason.clone(), MAX_REASON));
        fields.extend(force.map(|reason| ("force_reason", reason)));
        AuditTrail { log: self.host.audit_log.clone(), fields }
    }

    fn place(&self, containers: Vec<String>, source: Option<&Path>) -> Place {
        let Request { path, mount, volume_id, .. } = self.request.clone();
        let source = source.and_then(|source| source.canonicalize().ok());
        Place { path, is_mount: mount.is_some(), volume_id, containers, source }
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

    /// The volume's path: the device of the attachment pod, or the path of the node.
    async fn source(&self, endpoint: &Endpoint) -> Result<PathBuf, Failure> {
        match &self.request.source {
            RequestSource::AttachmentPod(pod) => {
                let found = endpoint.sandbox(pod, None, self.deadline()).await;
                let found = found.map_err(|e| Failure { passes: true, ..Failure::from(&e) })?;
                claim_device::only(&claim_device::directory(&self.host.kubelet, &found.uid)?)
            }
            RequestSource::HostPath(path) => {
                let namespace = &self.request.pod.namespace;
                match self.host.allowed.iter().any(|rule| rule.allows(namespace, path)) {
                    true => Ok(path.clone()),
                    false => Err(Failure::later(
                        "HostPathNotAllowed",
                        format!(
                            "namespace {namespace} may not use the path {} of the node; an \
                             administrator allows it with --allow-host-path={namespace}=PREFIX \
                             of the node agents (DaemonSet block-volume-node), or use a claim",
                            path.display()
                        ),
                    )),
                }
            }
        }
    }
}
