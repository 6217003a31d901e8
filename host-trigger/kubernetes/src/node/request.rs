//! What a node agent asks of its host for one attachment.

use std::path::PathBuf;

use host_trigger::pod::PodName;
use kube::ResourceExt as _;

use super::host::Failure;
use crate::{
    attachment_pod,
    resource::{BlockVolumeAttachment, FORCE_ANNOTATION, Mount, Source},
};

/// The place and the options of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The name of the attachment, in the namespace of the pod.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The pod.
    pub pod: PodName,
    /// Its UID.
    pub pod_uid: String,
    /// The name of the container.
    pub container: String,
    /// The path in the container.
    pub path: String,
    /// How the file system is mounted there; `None`: it is a device.
    pub mount: Option<Mount>,
    /// Where the volume is.
    pub source: RequestSource,
    /// The container can only read.
    pub read_only: bool,
    /// Operations per second; 0 is unlimited.
    pub iops: u64,
    /// Bytes per second; 0 is unlimited.
    pub bytes_per_second: u64,
    /// The ID of the volume as this node agent has reported it.
    pub volume_id: Option<String>,
    /// Its size in bytes as this node agent has reported it.
    pub reported_size: Option<u64>,
    /// Detach although the volume is in use: the reason that a person has given.
    pub force: Option<String>,
}

/// Where a volume is on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestSource {
    /// Among the volume devices of this pod.
    AttachmentPod(PodName),
    /// Here, if that is allowed.
    HostPath(PathBuf),
}

impl Request {
    /// What is asked for `attachment`.
    ///
    /// # Errors
    /// Its names, its path or its limits are not valid.
    pub fn new(attachment: &BlockVolumeAttachment) -> Result<Self, Failure> {
        let spec = &attachment.spec;
        let namespace = attachment.namespace().unwrap_or_default();
        let pod = |name: &str| {
            let pod = format!("{namespace}/{name}").parse::<PodName>();
            pod.map_err(|why| Failure::later("InvalidName", why))
        };
        let source = match &spec.source {
            Source::PersistentVolumeClaim(_) => {
                RequestSource::AttachmentPod(pod(&attachment_pod::name(attachment))?)
            }
            Source::HostPath(host) => RequestSource::HostPath(PathBuf::from(&host.path)),
        };
        let limits = spec.limits.clone().unwrap_or_default();
        let iops = u64::try_from(limits.iops.unwrap_or(0));
        let bytes_per_second = limits.bytes_per_second.map_or(Ok(0), |rate| rate.bytes());
        let invalid = |why: String| Failure::later("InvalidLimits", why);
        if spec.device_path.is_some() == spec.mount.is_some() {
            let message = "the spec needs either devicePath or mount, and not both";
            return Err(Failure::later("InvalidPath", message));
        }
        let observed = attachment.observed();
        Ok(Self {
            name: attachment.name_any(),
            uid: attachment.uid().unwrap_or_default(),
            pod: pod(&spec.pod_name)?,
            pod_uid: attachment.assignment().pod_uid.unwrap_or_default(),
            container: spec.container_name.clone(),
            path: spec.path().to_owned(),
            mount: spec.mount.clone(),
            source,
            read_only: spec.read_only,
            iops: iops.map_err(|_| invalid("iops is negative".to_owned()))?,
            bytes_per_second: bytes_per_second.map_err(|e| invalid(e.to_string()))?,
            volume_id: observed.volume_id,
            reported_size: observed.size.and_then(|size| u64::try_from(size).ok()),
            force: attachment.annotations().get(FORCE_ANNOTATION).cloned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{resource::Limits, sample};

    #[test]
    fn a_request_has_what_the_attachment_asks_for() {
        let mut attachment = sample::attachment();
        attachment.spec.limits =
            Some(Limits { iops: Some(5), bytes_per_second: sample::object("1Ki".into()) });
        let request = Request::new(&attachment).unwrap();
        assert_eq!(request.pod.to_string(), "db/postgres-0");
        assert_eq!((request.iops, request.bytes_per_second), (5, 1024));
        let RequestSource::AttachmentPod(pod) = request.source else { panic!("a host path") };
        assert_eq!(pod.to_string(), format!("db/{}", attachment_pod::name(&attachment)));
    }

    #[test]
    fn a_volume_has_one_path() {
        let mut attachment = sample::mount();
        let request = Request::new(&attachment).unwrap();
        assert_eq!(request.path, "/data");
        assert_eq!(request.mount.unwrap().options, ["noatime"]);
        attachment.spec.device_path = Some("/dev/xvda".to_owned());
        assert_eq!(Request::new(&attachment).unwrap_err().reason, "InvalidPath");
        attachment.spec.device_path = None;
        attachment.spec.mount = None;
        assert_eq!(Request::new(&attachment).unwrap_err().reason, "InvalidPath");
    }

    #[test]
    fn limits_that_an_older_api_server_let_pass_are_refused() {
        let mut attachment = sample::attachment();
        attachment.spec.limits = Some(Limits { iops: Some(-1), bytes_per_second: None });
        assert_eq!(Request::new(&attachment).unwrap_err().reason, "InvalidLimits");
    }
}
