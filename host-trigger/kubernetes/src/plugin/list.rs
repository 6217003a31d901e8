//! `kubectl block_volume list`: the attachments of a namespace, and how each one is.

use clap::Args;
use host_trigger::{output::table::table, sanitize::sanitize, size::human_size};
use kube::{Api, ResourceExt as _, api::ListParams};

use super::{
    chain::Progress,
    cluster::Cluster,
    error::Error,
    output::{self, Output},
};
use crate::resource::{BlockVolumeAttachment, ConditionType, Source};

/// List the volumes of a namespace
#[derive(Debug, Args)]
#[command(before_help = "Example: kubectl block_volume list --all-namespaces")]
pub(super) struct List {
    /// Only those of this pod
    #[arg(value_name = "POD")]
    pod: Option<String>,

    /// Of all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,

    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum)]
    output: Option<Output>,
}

impl List {
    /// Runs it. Returns what is printed.
    ///
    /// # Errors
    /// The API server does not tell.
    pub(super) async fn run(&self, cluster: &Cluster) -> Result<String, Error> {
        let all = match self.all_namespaces {
            true => Api::all(cluster.client.clone()),
            false => cluster.attachments(),
        };
        let mut found = all.list(&ListParams::default()).await.map_err(Error::Api)?.items;
        found.retain(|one| self.pod.as_ref().is_none_or(|pod| *pod == one.spec.pod_name));
        if let Some(text) = output::many(self.output, &found)? {
            return Ok(text);
        }
        if found.is_empty() {
            match self.all_namespaces {
                true => eprintln!("No block volumes found"),
                false => eprintln!("No block volumes found in namespace {}", cluster.namespace),
            }
            return Ok(String::new());
        }
        Ok(self.table(&found))
    }

    fn table(&self, found: &[BlockVolumeAttachment]) -> String {
        let head = [
            "NAMESPACE",
            "NAME",
            "POD",
            "CONTAINER",
            "SOURCE",
            "PATH",
            "SIZE",
            "ATTACHED",
            "REASON",
            "NODE",
            "VOLUME",
            "IN GUEST",
            "FILE SYSTEM",
        ];
        let mut rows = vec![head.map(str::to_owned)];
        rows.extend(found.iter().map(row));
        let is_wide = self.output == Some(Output::Wide);
        let lines = table(rows.into_iter().map(|row| self.chosen(row, is_wide)).collect());
        lines.into_iter().map(|line| line + "\n").collect()
    }

    /// The columns that are printed. Others have no width.
    fn chosen(&self, row: [String; 13], is_wide: bool) -> Vec<String> {
        let columns = row.into_iter().enumerate().filter(|(column, _)| match column {
            0 => self.all_namespaces,
            9.. => is_wide,
            _ => true,
        });
        columns.map(|(_, cell)| cell).collect()
    }
}

fn row(attachment: &BlockVolumeAttachment) -> [String; 13] {
    let (spec, observed) = (&attachment.spec, attachment.observed());
    let size = |bytes: i64| human_size(u64::try_from(bytes).unwrap_or(0));
    let is_attached = match attachment.condition(ConditionType::Attached) {
        Some(condition) => format!("{:?}", condition.status),
        None => "False".to_owned(),
    };
    let file_system = observed.file_system.map(|one| format!("{} {}", one.kind, size(one.size)));
    [
        attachment.namespace().unwrap_or_default(),
        attachment.name_any(),
        spec.pod_name.clone(),
        spec.container_name.clone(),
        source(&spec.source),
        spec.path().to_owned(),
        observed.size.map(size).unwrap_or_default(),
        is_attached,
        reason(attachment),
        attachment.assignment().node_name.unwrap_or_default(),
        observed.volume_id.unwrap_or_default(),
        observed.guest_device.unwrap_or_default(),
        file_system.unwrap_or_default(),
    ]
    .map(|cell| sanitize(&cell))
}

/// The reason of the condition that decides.
fn reason(attachment: &BlockVolumeAttachment) -> String {
    let progress = Progress::of(attachment);
    match attachment.metadata.deletion_timestamp {
        Some(_) => match attachment.condition(ConditionType::Attached) {
            Some(one) if one.reason != "Attached" => format!("Deleted: {}", one.reason),
            _ => "Deleted".to_owned(),
        },
        None => progress.reason().to_owned(),
    }
}

/// A source, as kubectl names a resource.
pub(super) fn source(source: &Source) -> String {
    match source {
        Source::PersistentVolumeClaim(claim) => format!("pvc/{}", claim.claim_name),
        Source::HostPath(host) => host.path.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    fn list(all_namespaces: bool, output: Option<Output>) -> List {
        List { pod: None, all_namespaces, output }
    }

    #[test]
    fn a_row_says_which_volume_is_where_and_how() {
        let text = list(false, None).table(&[sample::attachment()]);
        let lines: Vec<_> = text.lines().collect();
        let words: Vec<_> = lines[1].split_whitespace().collect();
        let expected = [
            "scratch",
            "postgres-0",
            "postgres",
            "pvc/scratch",
            "/dev/xvda",
            "-",
            "False",
            "NotReported",
        ];
        assert_eq!(words, expected);
        let wide = list(true, Some(Output::Wide)).table(&[sample::mount()]);
        assert!(wide.starts_with("NAMESPACE") && wide.contains("FILE SYSTEM"), "{wide}");
        assert!(wide.contains("/data"), "{wide}");
    }
}
