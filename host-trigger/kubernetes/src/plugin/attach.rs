//! `kubectl block_volume attach`: creates an attachment.

use clap::Args;
use host_trigger::fs_group::FsGroupChange;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::PostParams};

use super::{
    cluster::Cluster,
    error::Error,
    output::{self, DryRun, Output},
    wait::WaitArgs,
};
use crate::resource::{
    BlockVolumeAttachment, BlockVolumeAttachmentSpec, ByteRate, ClaimSource, HostPathSource,
    Limits, Mount, Source,
};

/// The longest name of an object.
const MAX_NAME: usize = 253;

/// Attach a volume to a container of a running pod
///
/// The volume is a claim (volumeMode: Block), or a path of the pod's node where an administrator
/// allows it. The container gets a device, or the volume's file system is mounted there. Without
/// --wait this ends when the request is stored.
#[derive(Debug, Args)]
#[command(before_help = "Example: kubectl block_volume attach postgres-0 --claim scratch \
                         --device-path /dev/xvda --wait")]
pub(super) struct Attach {
    /// Pod
    #[arg(value_name = "POD")]
    pod: String,

    /// Container [default: the only one of the pod]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,

    #[command(flatten)]
    source: SourceArgs,

    #[command(flatten)]
    path: PathArgs,

    /// Type of the file system [default: the one that is found on the volume]
    #[arg(long, value_name = "TYPE", conflicts_with = "device_path")]
    fs_type: Option<String>,

    /// Mount options, such as noatime,commit=30
    #[arg(long, value_name = "OPTIONS", conflicts_with = "device_path", value_delimiter = ',')]
    mount_options: Vec<String>,

    /// Give all files to this group
    #[arg(long, value_name = "GID", conflicts_with = "device_path")]
    fs_group: Option<u32>,

    /// When the group of the files is changed [default: Always]
    #[arg(long, value_name = "POLICY", requires = "fs_group", value_enum)]
    fs_group_change_policy: Option<FsGroupChange>,

    /// The container can only read
    #[arg(long)]
    read_only: bool,

    /// Most operations per second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    iops: Option<i64>,

    /// Most bytes per second, such as 20Mi
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    bps: Option<ByteRate>,

    /// Name of the attachment [default: POD and the last part of the path, such as
    /// postgres-0-xvda]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    #[command(flatten)]
    wait: WaitArgs,

    /// Change nothing
    #[arg(long, value_name = "WHERE", value_enum, default_value_t, conflicts_with = "wait")]
    dry_run: DryRun,

    /// Print the attachment in this format, in place of a line that says what happened
    #[arg(short, long, value_name = "FORMAT", value_enum)]
    output: Option<Output>,
}

/// The volume.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct SourceArgs {
    /// Persistent volume claim with volumeMode: Block
    #[arg(long, value_name = "NAME")]
    claim: Option<String>,

    /// Block device or raw image of the node
    #[arg(long, value_name = "PATH")]
    host_path: Option<String>,
}

/// Where the container gets it.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct PathArgs {
    /// Path of the device in the container; it must not exist yet
    #[arg(long, value_name = "PATH")]
    device_path: Option<String>,

    /// Path in the container that the volume's file system is mounted at
    #[arg(long, value_name = "PATH")]
    mount_path: Option<String>,
}

fn parse_rate(text: &str) -> Result<ByteRate, String> {
    let rate = ByteRate(text.to_owned());
    rate.bytes().map_err(|e| e.to_string())?;
    Ok(rate)
}

impl Attach {
    /// Runs it. Returns what is printed.
    ///
    /// # Errors
    /// The request is not stored, or the volume not attached in time.
    pub(super) async fn run(&self, cluster: &Cluster) -> Result<String, Error> {
        let container = match &self.container {
            Some(container) => container.clone(),
            None => self.only_container(cluster).await?,
        };
        let attachment = self.attachment(container, &cluster.namespace);
        let name = attachment.metadata.name.clone().unwrap_or_default();
        let all = cluster.attachments();
        let (mut attachment, is_new) = match self.dry_run {
            DryRun::Client => (attachment, true),
            dry_run => {
                let parameters =
                    PostParams { dry_run: dry_run == DryRun::Server, ..PostParams::default() };
                match all.create(&parameters, &attachment).await {
                    Ok(created) => (created, true),
                    Err(kube::Error::Api(status)) if status.is_already_exists() => {
                        let there = all.get(&name).await.map_err(Error::Api)?;
                        if there.spec != attachment.spec {
                            let namespace = cluster.namespace.clone();
                            return Err(Error::Exists { namespace, name });
                        }
                        (there, false)
                    }
                    Err(e) => return Err(Error::Api(e)),
                }
            }
        };
        if self.wait.wait {
            attachment = self.wait.until_attached(all, &name).await?;
        }
        if let Some(text) = output::one(self.output, &attachment)? {
            return Ok(text);
        }
        Ok(self.line(&name, is_new))
    }

    /// What happened, in one line.
    fn line(&self, name: &str, is_new: bool) -> String {
        let (volume, pod, suffix) = (self.volume(), &self.pod, self.dry_run.suffix());
        let path = self.path();
        match (self.wait.wait, is_new) {
            (true, _) => format!(
                "Successfully attached {volume} to pod {pod} at {path} (attachment {name})\n"
            ),
            (false, true) => format!(
                "Successfully submitted attach request of {volume} to pod {pod} at {path} \
                 (attachment {name}){suffix}\n"
            ),
            (false, false) => {
                format!("Attachment {name} of {volume} to pod {pod} at {path} exists already\n")
            }
        }
    }

    fn volume(&self) -> String {
        match (&self.source.claim, &self.source.host_path) {
            (Some(claim), _) => format!("claim {claim}"),
            (None, path) => format!("host path {}", path.as_deref().unwrap_or_default()),
        }
    }

    fn path(&self) -> &str {
        let PathArgs { device_path, mount_path } = &self.path;
        device_path.as_deref().or(mount_path.as_deref()).unwrap_or_default()
    }

    async fn only_container(&self, cluster: &Cluster) -> Result<String, Error> {
        let pods = Api::<Pod>::namespaced(cluster.client.clone(), &cluster.namespace);
        let (namespace, pod) = (cluster.namespace.clone(), self.pod.clone());
        let found = pods.get_opt(&pod).await.map_err(Error::Api)?;
        let Some(spec) = found.and_then(|pod| pod.spec) else {
            return Err(Error::NotFound { what: "pod", namespace, name: pod });
        };
        let mut found: Vec<_> = spec.containers.into_iter().map(|one| one.name).collect();
        match (found.pop(), found.is_empty()) {
            (Some(only), true) => Ok(only),
            (last, _) => {
                found.extend(last);
                Err(Error::Containers { namespace, pod, found })
            }
        }
    }

    /// The object to be created.
    fn attachment(&self, container: String, namespace: &str) -> BlockVolumeAttachment {
        let source = match (&self.source.claim, &self.source.host_path) {
            (Some(claim), _) => {
                Source::PersistentVolumeClaim(ClaimSource { claim_name: claim.clone() })
            }
            (None, path) => {
                Source::HostPath(HostPathSource { path: path.clone().unwrap_or_default() })
            }
        };
        let mount = self.path.mount_path.as_ref().map(|path| Mount {
            path: path.clone(),
            fs_type: self.fs_type.clone(),
            options: self.mount_options.clone(),
            fs_group: self.fs_group.map(i64::from),
            fs_group_change_policy: self.fs_group_change_policy,
        });
        let limits = Limits { iops: self.iops, bytes_per_second: self.bps.clone() };
        let spec = BlockVolumeAttachmentSpec {
            pod_name: self.pod.clone(),
            container_name: container,
            source,
            device_path: self.path.device_path.clone(),
            mount,
            read_only: self.read_only,
            limits: Some(limits).filter(|limits| *limits != Limits::default()),
        };
        let name = self.name.clone().unwrap_or_else(|| default_name(&self.pod, self.path()));
        let mut attachment = BlockVolumeAttachment::new(&name, spec);
        attachment.metadata.namespace = Some(namespace.to_owned());
        attachment
    }
}

/// A name for the attachment of a pod at a path.
fn default_name(pod: &str, path: &str) -> String {
    let last = path.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default().to_lowercase();
    let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let last: String = last.chars().map(|c| if is_allowed(c) { c } else { '-' }).collect();
    let mut name = format!("{pod}-{}", last.trim_matches('-'));
    name.truncate(name.floor_char_boundary(MAX_NAME));
    name.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rstest::rstest;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        verb: Attach,
    }

    fn parse(words: &[&str]) -> Result<Attach, String> {
        let words = [&["x", "postgres-0"], words].concat();
        Line::try_parse_from(words).map(|line| line.verb).map_err(|e| e.to_string())
    }

    #[test]
    fn a_command_line_is_an_attachment() {
        let verb = parse(&[
            "--claim=scratch",
            "--mount-path=/data",
            "--mount-options=noatime,commit=5",
            "--bps=20Mi",
        ]);
        let verb = verb.unwrap();
        let attachment = verb.attachment("postgres".to_owned(), "db");
        assert_eq!(attachment.metadata.name.as_deref(), Some("postgres-0-data"));
        let spec = serde_json::to_value(&attachment.spec).unwrap();
        let expected = serde_json::json!({
            "podName": "postgres-0",
            "containerName": "postgres",
            "source": { "persistentVolumeClaim": { "claimName": "scratch" } },
            "mount": { "path": "/data", "options": ["noatime", "commit=5"] },
            "readOnly": false,
            "limits": { "bytesPerSecond": "20Mi" },
        });
        assert_eq!(spec, expected);
        let line = verb.line("postgres-0-data", true);
        let expected = "Successfully submitted attach request of claim scratch to pod postgres-0 \
                        at /data (attachment postgres-0-data)\n";
        assert_eq!(line, expected);
    }

    #[rstest]
    #[case("/dev/xvda", "postgres-0-xvda")]
    #[case("/srv/My_Data/", "postgres-0-my-data")]
    #[case("/-", "postgres-0")]
    #[case("/d\u{e4}ten", "postgres-0-d-ten")]
    fn an_attachment_is_called_by_its_pod_and_path(#[case] path: &str, #[case] name: &str) {
        assert_eq!(default_name("postgres-0", path), name);
    }

    #[rstest]
    #[case(&["--device-path=/dev/xvda"], "--claim")]
    #[case(&["--claim=a"], "--device-path")]
    #[case(&["--claim=a", "--host-path=/b", "--device-path=/dev/xvda"], "cannot be used with")]
    #[case(&["--claim=a", "--mount-path=/b", "--device-path=/dev/xvda"], "cannot be used with")]
    #[case(&["--claim=a", "--device-path=/dev/xvda", "--fs-type=ext4"], "cannot be used with")]
    #[case(&["--claim=a", "--device-path=/dev/xvda", "--timeout=5s"], "--wait")]
    #[case(&["--claim=a", "--device-path=/dev/xvda", "--wait", "--dry-run=server"],
        "cannot be used with")]
    #[case(&["--claim=a", "--device-path=/dev/xvda", "--bps=20MiB"], "20Mi")]
    fn what_cannot_be_meant_is_a_usage_error(#[case] words: &[&str], #[case] why: &str) {
        let error = parse(words).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}
