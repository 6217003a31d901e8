//! `kubectl block_volume detach`: deletes an attachment.

use clap::Args;
use kube::{
    ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

use super::{
    cluster::Cluster,
    error::Error,
    output::{self, DryRun, Output},
    wait::WaitArgs,
};
use crate::resource::FORCE_ANNOTATION;

/// Detach a volume: delete its attachment
///
/// The attachment is gone when the volume is detached, and not before. A volume in use is not
/// detached: --wait says who holds it.
#[derive(Debug, Args)]
#[command(before_help = "Example: kubectl block_volume detach postgres-0-xvda --wait")]
pub(super) struct Detach {
    /// Attachment, as `kubectl block_volume list` has it
    #[arg(value_name = "NAME")]
    name: String,

    /// Detach although the volume is in use, for this reason: holders get I/O errors, and data
    /// that the guest has not written may be lost
    #[arg(long, value_name = "REASON", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    force: Option<String>,

    #[command(flatten)]
    wait: WaitArgs,

    /// Change nothing
    #[arg(long, value_name = "WHERE", value_enum, default_value_t, conflicts_with = "wait")]
    dry_run: DryRun,

    /// Print the attachment in this format, in place of a line that says what happened
    #[arg(short, long, value_name = "FORMAT", value_enum)]
    output: Option<Output>,
}

impl Detach {
    /// Runs it. Returns what is printed.
    ///
    /// # Errors
    /// There is no such attachment, it may not be deleted, or it is not gone in time.
    pub(super) async fn run(&self, cluster: &Cluster) -> Result<String, Error> {
        let (all, name) = (cluster.attachments(), &self.name);
        let there = all.get_opt(name).await.map_err(Error::Api)?;
        let Some(attachment) = there else {
            let (namespace, name) = (cluster.namespace.clone(), name.clone());
            return Err(Error::NotFound { what: "attachment", namespace, name });
        };
        let dry_run = self.dry_run == DryRun::Server;
        if self.dry_run != DryRun::Client {
            // Before it is deleted: a detach that has begun gives the holders some time.
            if let Some(reason) = &self.force {
                let body = json!({ "metadata": { "annotations": { FORCE_ANNOTATION: reason } } });
                let parameters = PatchParams { dry_run, ..PatchParams::default() };
                all.patch(name, &parameters, &Patch::Merge(&body)).await.map_err(Error::Api)?;
            }
            let parameters = DeleteParams { dry_run, ..DeleteParams::default() };
            all.delete(name, &parameters).await.map_err(Error::Api)?;
        }
        if self.wait.wait {
            self.wait.until_gone(all, name, attachment.uid().as_deref()).await?;
        }
        if let Some(text) = output::one(self.output, &attachment)? {
            return Ok(text);
        }
        let (pod, path) = (&attachment.spec.pod_name, attachment.spec.path());
        let suffix = self.dry_run.suffix();
        Ok(match self.wait.wait {
            true => format!("Successfully detached {path} from pod {pod} (attachment {name})\n"),
            false => format!(
                "Successfully submitted detach request of {path} from pod {pod} (attachment \
                 {name}){suffix}\n"
            ),
        })
    }
}
