//! `kubectl block_volume describe`: one attachment, with its conditions in the order in which they
//! come true, and what to do about the first one that does not hold.

use clap::Args;
use host_trigger::{sanitize::sanitize, size::human_size};
use kube::ResourceExt as _;

use super::{
    chain::{CHAIN, Progress, silence},
    cluster::Cluster,
    error::Error,
    list::source,
    output::{self, Output},
};
use crate::resource::{BlockVolumeAttachment, FORCE_ANNOTATION, Mount};

/// Describe an attachment: how far it is, and what is wrong
#[derive(Debug, Args)]
#[command(before_help = "Example: kubectl block_volume describe postgres-0-xvda")]
pub(super) struct Describe {
    /// Attachment, as `kubectl block_volume list` has it
    #[arg(value_name = "NAME")]
    name: String,

    /// Print the attachment in this format
    #[arg(short, long, value_name = "FORMAT", value_enum)]
    output: Option<Output>,
}

impl Describe {
    /// Runs it. Returns what is printed.
    ///
    /// # Errors
    /// There is no such attachment.
    pub(super) async fn run(&self, cluster: &Cluster) -> Result<String, Error> {
        let found = cluster.attachments().get_opt(&self.name).await.map_err(Error::Api)?;
        let Some(attachment) = found else {
            let (namespace, name) = (cluster.namespace.clone(), self.name.clone());
            return Err(Error::NotFound { what: "attachment", namespace, name });
        };
        let printed = output::one(self.output, &attachment)?;
        Ok(printed.unwrap_or_else(|| text(&attachment)))
    }
}

/// The attachment for people.
fn text(attachment: &BlockVolumeAttachment) -> String {
    let (spec, observed) = (&attachment.spec, attachment.observed());
    let size = |bytes: i64| human_size(u64::try_from(bytes).unwrap_or(0));
    let mut fields = vec![
        ("Name", attachment.name_any()),
        ("Namespace", attachment.namespace().unwrap_or_default()),
        ("Pod", format!("{}, container {}", spec.pod_name, spec.container_name)),
        ("Node", attachment.assignment().node_name.unwrap_or_default()),
        ("Source", source(&spec.source)),
        match &spec.mount {
            Some(mount) => ("Mount", mount_text(mount)),
            None => ("Device", spec.path().to_owned()),
        },
        ("Access", if spec.read_only { "read only" } else { "read and write" }.to_owned()),
    ];
    if let Some(limits) = &spec.limits {
        let iops = limits.iops.map(|iops| format!("{iops} operations/s"));
        let rate = limits.bytes_per_second.as_ref().map(|rate| format!("{} bytes/s", rate.0));
        fields.push(("Limits", iops.into_iter().chain(rate).collect::<Vec<_>>().join(", ")));
    }
    if let Some(id) = observed.volume_id {
        let (device, bytes) = (observed.guest_device.unwrap_or_default(), observed.size);
        fields
            .push(("Volume", format!("{id}, {device} in the guest, {}", size(bytes.unwrap_or(0)))));
    }
    if let Some(one) = observed.file_system {
        fields.push(("File system", format!("{}, {}", one.kind, size(one.size))));
    }
    if let Some(since) = &attachment.metadata.deletion_timestamp {
        fields.push(("Deleted", format!("since {}: it is gone when it is detached", since.0)));
    }
    if let Some(reason) = attachment.annotations().get(FORCE_ANNOTATION) {
        fields.push(("Force", reason.clone()));
    }
    let fields = fields.into_iter().filter(|(_, text)| !text.is_empty());
    let mut lines: Vec<_> = fields
        .map(|(name, text)| format!("{:13}{}", format!("{name}:"), sanitize(&text)))
        .collect();
    lines.push("Conditions:".to_owned());
    for condition_type in CHAIN {
        lines.extend(condition_lines(attachment, condition_type));
    }
    let progress = Progress::of(attachment);
    if let (Progress::Silent(condition), None) =
        (&progress, &attachment.metadata.deletion_timestamp)
    {
        lines.push(format!("Waiting:     {}", sanitize(&silence(*condition, attachment))));
    }
    lines.into_iter().map(|line| line + "\n").collect()
}

fn mount_text(mount: &Mount) -> String {
    let kind = mount.fs_type.clone();
    let group = mount.fs_group.map(|group| format!("group {group}"));
    let how: Vec<_> = kind.into_iter().chain(mount.options.iter().cloned()).chain(group).collect();
    match how.is_empty() {
        true => mount.path.clone(),
        false => format!("{} ({})", mount.path, how.join(", ")),
    }
}

/// A condition: its reason, and below it cause and remedy, each on a line of its own.
fn condition_lines(
    attachment: &BlockVolumeAttachment,
    condition_type: crate::resource::ConditionType,
) -> Vec<String> {
    let name = format!("{condition_type:?}");
    let Some(one) = attachment.condition(condition_type) else {
        return vec![format!("  {name:13}not reported")];
    };
    let mut lines = vec![format!(
        "  {name:13}{:9}{} (since {})",
        format!("{:?}", one.status),
        sanitize(&one.reason),
        one.last_transition_time.0
    )];
    let parts = one.message.split("; ").filter(|part| !part.is_empty());
    lines.extend(parts.map(|part| format!("               {}", sanitize(part))));
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::sample;

    #[test]
    fn conditions_come_in_their_order_with_cause_and_remedy() {
        let condition = |name: &str, status: &str, reason: &str, message: &str| {
            json!({ "type": name, "status": status, "reason": reason, "message": message,
                "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z" })
        };
        let mut attachment = sample::mount();
        attachment.status = sample::object(json!({
            "nodeName": "node-1", "size": 16777216, "volumeID": "v1", "guestDevice": "sda",
            "fileSystem": { "type": "ext4", "size": 14680064 },
            "conditions": [
                condition("Attached", "False", "NotKata", "it is runc's; use Kata's"),
                condition("SourceReady", "True", "HostPath", ""),
                condition("Accepted", "True", "Given", "the pod runs on node node-1"),
            ],
        }));
        let expected = "\
Name:        scratch
Namespace:   db
Pod:         postgres-0, container postgres
Node:        node-1
Source:      pvc/scratch
Mount:       /data (ext4, noatime)
Access:      read and write
Volume:      v1, sda in the guest, 16 MiB
File system: ext4, 14 MiB
Conditions:
  Accepted     True     Given (since 2026-01-01T00:00:00Z)
               the pod runs on node node-1
  SourceReady  True     HostPath (since 2026-01-01T00:00:00Z)
  Attached     False    NotKata (since 2026-01-01T00:00:00Z)
               it is runc's
               use Kata's
";
        assert_eq!(text(&attachment), expected);
    }

    #[test]
    fn of_what_nobody_has_reported_it_says_where_to_look() {
        let text = text(&sample::attachment());
        assert!(text.contains("  Accepted     not reported\n"), "{text}");
        assert!(text.contains("get deployment block-volume-controller"), "{text}");
    }
}
